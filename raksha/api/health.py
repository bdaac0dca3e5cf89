"""`/healthcheck`: for load balancers, and in detail for operators.

Anybody is told whether this process can serve: 200 or 503. Who may (rule `healthcheck:detail`) is told what was
asked and what it said, which may name hosts.
"""

from __future__ import annotations

import logging

import flask
from flask.typing import ResponseReturnValue

from raksha.api.nouns import for_everybody
from raksha.api.policy import Allow, Rule
from raksha.api.services import frame
from raksha.errors import NotAuthenticated, NotScoped, RakshaError

LOG = logging.getLogger(__name__)

PATH = "/healthcheck"

_DETAIL = Rule("healthcheck:detail", Allow.ADMIN, "See what the health check found.", "GET", PATH)
RULES = (_DETAIL,)


def add_to(app: flask.Flask) -> None:
    app.add_url_rule(PATH, view_func=healthcheck)


@for_everybody
def healthcheck() -> ResponseReturnValue:
    found = {name: _ask(name) for name in sorted(frame().services.checks)}
    healthy = not any(found.values())
    body: dict[str, object] = {"healthy": healthy}
    if _may_see_detail():
        body["checks"] = [{"name": name, "healthy": not wrong, "detail": wrong} for name, wrong in found.items()]
    return body, 200 if healthy else 503, {"Cache-Control": "no-store"}


def _ask(name: str) -> str:
    """What is wrong, or an empty string."""
    try:
        frame().services.checks[name]()
    except RakshaError as error:
        LOG.warning("%s: %s", name, error, extra={"action": "healthcheck", "check": name})
        return str(error)
    return ""


def _may_see_detail() -> bool:
    try:
        identity = frame().services.authenticator.identify(flask.request)
    except (NotAuthenticated, NotScoped):
        return False
    return frame().policy.allows(_DETAIL.name, identity, None)
