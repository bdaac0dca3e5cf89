"""The application: every layer that a request goes through, in the order it goes through them.

    RequestIdMiddleware    an id for the request, also for what the layers below refuse
    StripIdentity          what came in from outside cannot claim to be somebody
    authenticator.wrap     Keystone's middleware, where that is used
    admit                  version -> route known -> identity -> policy -> If-Match -> nothing unexpected
    (the view)             body and query by their schemas, then what the noun does
    announce, log_request  on every answer, errors too

What is not marked by `nouns.operation` or `for_everybody` has no way in: `create_app` refuses to make such an
application.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import flask
import flask_smorest
from werkzeug.exceptions import HTTPException

from raksha.api import (
    backupjobruns,
    backupjobs,
    errors,
    etag,
    health,
    limits,
    metrics,
    pages,
    restores,
    retention_preview,
    schedule_preview,
    service_list,
    usage,
    vaults,
    verifications,
    versions,
    vms,
)
from raksha.api.auth import StripIdentity
from raksha.api.metrics import Metrics
from raksha.api.nouns import IdConverter, Noun, ProjectConverter, described, operation_of
from raksha.api.policy import Policy, Rule
from raksha.api.request_id import RequestIdMiddleware
from raksha.api.services import Frame, Services, attach, frame
from raksha.config_api import ApiSettings
from raksha.errors import RequestInvalid

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LOG = logging.getLogger(__name__)

#: all of v1
NOUNS: tuple[Noun, ...] = (
    backupjobs.NOUN,
    backupjobruns.NOUN,
    retention_preview.NOUN,
    restores.NOUN,
    verifications.NOUN,
    schedule_preview.NOUN,
    vms.NOUN,
    vaults.NOUN,
    limits.NOUN,
    usage.NOUN,
    service_list.NOUN,
)
#: rules of what is no route of a noun
OTHER_RULES = (*health.RULES, *metrics.RULES, restores.ANYWHERE)


class _Api(flask_smorest.Api):  # type: ignore[misc]
    """flask-smorest's, with our body of errors; `errors.register` answers them."""

    ERROR_SCHEMA = errors.ErrorBody

    def _register_error_handlers(self) -> None:
        """`errors.register` does."""

    def _register_pagination_header(self) -> None:
        """Pages are in the body: `pagination.collection`."""


def create_app(
    settings: ApiSettings,
    services: Services,
    nouns: tuple[Noun, ...] = NOUNS,
    unreadable: tuple[type[Exception], ...] = (),
) -> flask.Flask:
    """`unreadable`: what the WSGI server raises for a body that it cannot read to its end.

    Raises `SettingsWrong` for a policy file that cannot be used.
    """
    app = flask.Flask("raksha.api", static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=settings.limits.max_body_bytes,
        API_TITLE="Raksha data protection",
        API_VERSION=str(versions.MAXIMUM),
        OPENAPI_VERSION="3.0.3",
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    # an address is right or it is not: a redirect would be a page of HTML
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.converters |= {"project": ProjectConverter, "id": IdConverter}
    attach(app, Frame(settings, services, Policy([*OTHER_RULES, *rules(nouns)], settings.policy_file)))
    errors.register(app, unreadable)
    # before anything that can refuse: what is refused counts as well
    Metrics().add_to(app)
    app.before_request(admit)
    app.after_request(versions.announce)
    app.after_request(log_request)

    api = _Api(app, spec_kwargs={"info": {"description": pages.DESCRIPTION}})
    describe_authentication(api)
    for converter in (ProjectConverter, IdConverter):
        api.register_converter(converter, described)
    for noun in nouns:
        api.register_blueprint(noun)
        for number, alias in enumerate(noun.aliases):
            app.register_blueprint(noun, name=f"{noun.name}_alias_{number}", url_prefix=alias)
    pages.add_to(app, api)
    health.add_to(app)
    _refuse_unmarked(app)
    stack: WSGIApplication = services.authenticator.wrap(app.wsgi_app)
    app.wsgi_app = RequestIdMiddleware(StripIdentity(stack))  # type: ignore[method-assign]
    return app


def rules(nouns: tuple[Noun, ...] = NOUNS) -> list[Rule]:
    """Of every route."""
    return [rule for noun in nouns for rule in noun.rules]


def admit() -> None:
    """Whether a request gets to its view; before anything that it sent is parsed."""
    versions.negotiate()
    request = flask.request
    if isinstance(request.routing_exception, HTTPException):
        raise request.routing_exception
    operation = operation_of(flask.current_app, request.endpoint or "")
    if operation is None or operation.rule is None:
        return
    flask.g.identity = frame().services.authenticator.identify(request)
    frame().policy.require(operation.rule.name, flask.g.identity, (request.view_args or {}).get("tenant_id"))
    _refuse_other_sites(request)
    if operation.needs_if_match:
        etag.require_condition()
    if not operation.takes_query and request.query_string:
        names = request.args or ["query"]
        raise RequestInvalid(problems=[(errors.shown(name), "Unknown parameter.") for name in names])
    if not operation.takes_body and request.get_data(cache=True):
        raise RequestInvalid(problems=[("body", "This takes no body.")])


def _refuse_other_sites(request: flask.Request) -> None:
    """A browser that knows a password for us would send it along with what any page makes it send."""
    if request.method not in ("GET", "HEAD") and request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
        raise RequestInvalid(problems=[("Sec-Fetch-Site", "Pages of other sites may not ask for this.")])


def log_request(response: flask.Response) -> flask.Response:
    """One line for every request. The address as a literal: it may hold anything."""
    request, identity = flask.request, flask.g.get("identity")
    LOG.info(
        "%s %r %s user=%s project=%s seconds=%.4f",
        request.method,
        request.path,
        response.status_code,
        identity.user_id if identity else "-",
        identity.project_id if identity else "-",
        time.monotonic() - flask.g.began,
        extra={"action": "api_request"},
    )
    return response


def describe_authentication(api: flask_smorest.Api) -> None:
    schemes: dict[str, Any] = {
        "basic": {"type": "http", "scheme": "basic"},
        "keystone": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
    }
    for name, scheme in schemes.items():
        api.spec.components.security_scheme(name, scheme)
    api.spec.options["security"] = [{name: []} for name in schemes]


def _refuse_unmarked(app: flask.Flask) -> None:
    unmarked = sorted({rule.rule for rule in app.url_map.iter_rules() if operation_of(app, rule.endpoint) is None})
    if unmarked:
        raise RuntimeError(f"nobody said who may call {', '.join(unmarked)}")
