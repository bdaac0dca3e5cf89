"""gunicorn's threads, which answer in JSON what is no HTTP at all and so never reaches the application."""

from __future__ import annotations

import json
import uuid
from http import HTTPStatus
from typing import Any

from gunicorn.http import errors
from gunicorn.util import write_nonblock
from gunicorn.workers.gthread import ThreadWorker

from raksha.api.errors import SERVICE_TYPE
from raksha.api.request_id import HEADER

#: the first that fits
_STATUS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (errors.LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG),
    (errors.LimitRequestHeaders, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    (errors.UnsupportedTransferCoding, HTTPStatus.NOT_IMPLEMENTED),
    (errors.ExpectationFailed, HTTPStatus.EXPECTATION_FAILED),
    (errors.ForbiddenProxyRequest, HTTPStatus.FORBIDDEN),
    (errors.ParseException, HTTPStatus.BAD_REQUEST),
    # TLS was not spoken, or not ours
    (OSError, HTTPStatus.BAD_REQUEST),
)


class JsonThreadWorker(ThreadWorker):  # type: ignore[misc]
    """Instead of gunicorn's page of HTML, which also tells what it could not parse."""

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:  # noqa: ARG002
        status = next((status for kind, status in _STATUS if isinstance(exc, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
        id = f"req-{uuid.uuid4()}"
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log.error("[%s] %r", id, exc, exc_info=exc)
        else:
            self.log.warning("[%s] no request from %s: %r", id, addr, exc)
        try:
            write_nonblock(client, answer(status, id))
        except OSError as error:
            self.log.debug("[%s] the answer could not be sent: %s", id, error)


def answer(status: HTTPStatus, id: str) -> bytes:
    """A whole response with the body of errors."""
    entry = {
        "request_id": id,
        "code": f"{SERVICE_TYPE}.http_{status.value}",
        "status": status.value,
        "title": status.phrase,
        "detail": "The request could not be read." if status.value != 500 else "The service failed.",
    }
    body = json.dumps({"errors": [entry]}).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"{HEADER}: {id}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
