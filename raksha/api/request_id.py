"""Every request has an id: in each answer, in each line of the log, and in what it leads to.

The id is made here, always: what a client could choose would let it write into the log of others. An id that came
with the request (another service's, `req-<uuid>`) is kept beside it as the global id, as all OpenStack services do;
anything else in that header is ignored.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HEADER = "X-Openstack-Request-Id"

_VALID = re.compile(r"req-[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII)


class RequestIds(Struct, frozen=True):
    """Of one request."""

    #: made by us, unique
    local: str
    #: of the request to another service that led to this one
    outer: str | None = None


_current: ContextVar[RequestIds | None] = ContextVar("raksha_request_ids", default=None)


def current() -> RequestIds | None:
    """Those of the request that this thread is at, if it is at one."""
    return _current.get()


class RequestIdMiddleware:
    """The outermost layer: also what a middleware below answers has an id."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = environ.get("HTTP_X_OPENSTACK_REQUEST_ID", "")
        ids = RequestIds(f"req-{uuid.uuid4()}", given if _VALID.fullmatch(given) else None)
        token = _current.set(ids)
        try:
            return self._application(environ, _with_header(start_response, ids.local))
        finally:
            _current.reset(token)


def _with_header(start_response: StartResponse, value: str) -> StartResponse:
    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Callable[[bytes], object]:
        others = [header for header in headers if header[0].lower() != HEADER.lower()]
        return start_response(status, [*others, (HEADER, value)], *rest)

    return start


class RequestIdFilter(logging.Filter):
    """Gives each record `request_id` and `global_request_id`; `-` outside of requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        ids = _current.get()
        record.request_id = ids.local if ids else "-"
        record.global_request_id = (ids and ids.outer) or "-"
        return True
