"""POSTs that may be sent again: with the same `Idempotency-Key` they are done once and answered the same.

    def work(session):
        return once(session, lambda: answer(...))      # in the transaction that does it
    return services().database.run(work)

A key is of one project and one request (user, address, body); for another request it is refused. Answers are
kept for a day or so (the scheduler forgets them). What failed left nothing behind and is tried anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import blake3
import flask
from sqlalchemy.orm import Session

from raksha.api.services import identity
from raksha.db import idempotency
from raksha.errors import RequestInvalid

HEADER = "Idempotency-Key"

_PATTERN = "[A-Za-z0-9._:-]{8,128}"
_VALID = re.compile(_PATTERN, re.ASCII)

#: for the OpenAPI document
PARAMETER = {
    "in": "header",
    "name": HEADER,
    "schema": {"type": "string", "pattern": f"^{_PATTERN}$"},
    "description": "Sent again with the same key it is done once and answered the same",
}
_KEPT = ("Location", "ETag")


def once(session: Session, do: Callable[[], flask.Response]) -> flask.Response:
    """What `do` answers, or what it answered to the same request before.

    Raises `RequestInvalid`, `KeyReused`, `RequestUnderWay`.
    """
    key = given_key()
    if key is None:
        return do()
    project = identity().project_id
    before = idempotency.begin(session, project, key, _fingerprint())
    if before is not None:
        again = flask.jsonify(before.body)
        again.status_code = before.status or 200
        again.headers.update(before.headers or {})
        return again
    response = do()
    headers = {name: response.headers[name] for name in _KEPT if name in response.headers}
    idempotency.finish(
        session, project, key, status=response.status_code, headers=headers, body=response.get_json(silent=True)
    )
    return response


def given_key() -> str | None:
    """Raises `RequestInvalid` for one that is none."""
    key = flask.request.headers.get(HEADER)
    if key is not None and not _VALID.fullmatch(key):
        raise RequestInvalid(problems=[(HEADER, "8 to 128 of A-Z a-z 0-9 . _ : -, such as a UUID")])
    return key


def _fingerprint() -> str:
    request = flask.request
    parts = [identity().user_id, request.method, request.full_path]
    digest = blake3.blake3("\0".join(parts).encode())
    digest.update(b"\0")
    digest.update(request.get_data(cache=True))
    return digest.hexdigest()
