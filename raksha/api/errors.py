"""What goes wrong, as HTTP: one body for every error, one table from errors to statuses.

    {"errors": [{"request_id", "code": "data-protection.state_conflict", "status": 409, "title", "detail"}]}

`code` is stable and for programs; `detail` is for people and may change. A request with several faults has an entry
for each. What is our own fault (5xx) says nothing of us but its code and the request id: the log has the rest.
There is never a traceback, never a page of HTML.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import flask
import marshmallow
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest, HTTPException

from raksha import errors
from raksha.api import request_id
from raksha.errors import RakshaError, RequestInvalid

LOG = logging.getLogger(__name__)

SERVICE_TYPE = "data-protection"

#: seconds after which what is retryable may be tried again
RETRY_AFTER = 5

#: entries of one answer
_MAX_PROBLEMS = 20

#: the class itself counts, then 400 for what the command line calls a wrong argument, then its nearest family
STATUS: dict[type[RakshaError], int] = {
    RakshaError: 500,
    errors.NotFound: 404,
    errors.Refused: 409,
    errors.VaultError: 503,
    errors.NeedsAttention: 409,
    errors.Interrupted: 503,
    errors.SettingsWrong: 500,
    errors.HypervisorUnavailable: 503,
    errors.DatabaseUnavailable: 503,
    errors.DatabaseBusy: 503,
    errors.SchemaWrong: 503,
    errors.ChangedMeanwhile: 412,
    errors.NotAuthenticated: 401,
    errors.NotAllowed: 403,
    errors.NotScoped: 403,
    errors.TrustRefused: 403,
    errors.TargetTokenRefused: 403,
    errors.IdentityUnavailable: 503,
    errors.CloudUnavailable: 503,
    errors.CloudRefused: 403,
    errors.TooManyServers: 403,
    errors.LimitExceeded: 403,
    errors.VersionNotServed: 406,
    errors.ConditionMissing: 428,
    errors.ConditionFailed: 412,
}

#: of what Flask and Werkzeug refuse by themselves; others are `http_<status>`
_HTTP_CODES = {
    400: "request_invalid",
    404: errors.NothingHere.code,
    405: "method_not_allowed",
    413: "request_too_large",
    415: "not_json",
    500: "internal_error",
}

_HTTP_DETAILS = {
    400: "The request cannot be read.",
    404: errors.NothingHere.message,
    405: "This address does not take this method.",
    413: "The body of the request is too large.",
    415: "The body of a request is application/json.",
}

#: exit code
_WRONG_ARGUMENT = 2

#: headers of an HTTPException that are kept
_KEPT = frozenset({"allow", "retry-after", "www-authenticate"})


_EXAMPLE = "req-5f3c1e2a-8d4b-4c6f-9a7e-0b1d2c3e4f50"


class ErrorEntry(marshmallow.Schema):
    """One thing that is wrong."""

    request_id = marshmallow.fields.String(required=True, metadata={"example": _EXAMPLE})
    code = marshmallow.fields.String(required=True, metadata={"pattern": "^[a-z0-9._-]+$"})
    status = marshmallow.fields.Integer(required=True)
    title = marshmallow.fields.String(required=True)
    detail = marshmallow.fields.String(required=True)
    min_version = marshmallow.fields.String(metadata={"description": "With 406: the lowest version served."})
    max_version = marshmallow.fields.String(metadata={"description": "With 406: the highest version served."})


class ErrorBody(marshmallow.Schema):
    """The body of every answer from 400 on."""

    errors = marshmallow.fields.List(marshmallow.fields.Nested(ErrorEntry), required=True)


def status_of(kind: type[RakshaError]) -> int:
    """The HTTP status of an error."""
    if kind not in STATUS and kind.exit_code == _WRONG_ARGUMENT:
        return 400
    return next(STATUS[base] for base in kind.__mro__ if base in STATUS)


def register(app: flask.Flask, unreadable: tuple[type[Exception], ...]) -> None:
    """From now on `app` answers every error in this form. `unreadable`: see `app.create_app`."""
    app.register_error_handler(RakshaError, raksha_error)
    app.register_error_handler(HTTPException, http_exception)
    for kind in unreadable:
        app.register_error_handler(kind, _unreadable)


def raksha_error(error: RakshaError) -> ResponseReturnValue:
    """What Raksha refuses or fails at."""
    status = status_of(type(error))
    headers: dict[str, str] = {}
    if status >= 500:
        LOG.error("%s: %s", error.code, error, extra={"action": "api_error", "code": error.code})
        details = ["The service could not do this; its log says why under this request id."]
    elif isinstance(error, RequestInvalid):
        details = [f"{where}: {what}" for where, what in error.fields["problems"][:_MAX_PROBLEMS]]
    else:
        details = [str(error)]
    if error.retryable:
        headers["Retry-After"] = str(RETRY_AFTER)
    if isinstance(error, errors.NotAuthenticated):
        headers["WWW-Authenticate"] = error.fields["challenge"]
    more = {}
    if isinstance(error, errors.VersionNotServed):
        more = {"min_version": error.fields["minimum"], "max_version": error.fields["maximum"]}
    return {"errors": [entry(error.code, status, detail, **more) for detail in details]}, status, headers


def http_exception(error: HTTPException) -> ResponseReturnValue:
    """What Flask, Werkzeug and webargs refuse, and whatever else was raised: Flask logs that and makes it a 500."""
    data = getattr(error, "data", None) or {}
    if error.code == 400 and "messages" in data:
        return raksha_error(RequestInvalid(problems=list(problems(data["messages"]))))
    status = error.code or 500
    detail = _HTTP_DETAILS.get(status, HTTPStatus(status).description or HTTPStatus(status).phrase)
    if status >= 500:
        detail = "The service failed; its log says why under this request id."
    headers = {name: value for name, value in error.get_headers() if name.lower() in _KEPT}
    return {"errors": [entry(_HTTP_CODES.get(status, f"http_{status}"), status, detail)]}, status, headers


def _unreadable(_error: Exception) -> ResponseReturnValue:
    """What the server could not read to its end."""
    return http_exception(BadRequest())


def entry(code: str, status: int, detail: str, **more: str) -> dict[str, Any]:
    """One entry of the body."""
    ids = request_id.current()
    return {
        "request_id": ids.local if ids else "-",
        "code": f"{SERVICE_TYPE}.{code}",
        "status": status,
        "title": HTTPStatus(status).phrase,
        "detail": detail,
        **more,
    }


def problems(messages: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Marshmallow's nested messages as pairs of where and what. The location at the top ("json") is left out."""
    if isinstance(messages, dict):
        for key, inner in messages.items():
            step = "" if key == "_schema" or (not path and key in ("json", "query")) else shown(key)
            yield from problems(inner, f"{path}.{step}" if path and step else path or step)
    elif isinstance(messages, list):
        for inner in messages:
            yield from problems(inner, path)
    else:
        yield path or "request", str(messages)


def shown(name: object) -> str:
    """A name that the client gave, short and without what could hurt a terminal or a log."""
    text = re.sub(r"[^\x20-\x7e]", "?", str(name))
    return text if len(text) <= 64 else f"{text[:64]}…"
