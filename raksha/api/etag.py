"""Two who change the same thing: the second is told, never silently the winner.

A GET of one thing has `ETag: "<version>"`, the number of its changes. A PUT needs `If-Match` with it: without, 428; if
it was changed meanwhile, 412. `If-Match: *` says that the sender knows and wants to overwrite.
The version counts changes of what clients can change, not of what runs on (states, times): so there is no 304. Where
nothing counts, a digest of what can be changed does (`digest`).

    row = jobs.get(...);  etag.require(row.version, "backup job", id);  jobs.change(session, id, row.version, ...)
"""

from __future__ import annotations

import blake3
import flask

from raksha.errors import ConditionFailed, ConditionMissing

#: for the OpenAPI document
PARAMETER = {
    "in": "header",
    "name": "If-Match",
    "required": True,
    "schema": {"type": "string"},
    "description": "The ETag that was read, or *",
}


def headers(version: int | str) -> dict[str, str]:
    """For the answer that shows a thing at this version."""
    return {"ETag": f'"{version}"'}


def digest(*values: object) -> str:
    """The version of a thing that is no more than these values."""
    return blake3.blake3(repr(values).encode()).hexdigest(16)


def require_condition() -> None:
    """Before anything is read. Raises `ConditionMissing`."""
    if not flask.request.headers.get("If-Match", "").strip():
        raise ConditionMissing


def require(version: int | str, noun: str, id: str) -> None:
    """The caller knows the thing as it is. Raises `ConditionMissing`, `ConditionFailed`."""
    require_condition()
    # compared as strong ones: what a proxy has weakened is not the thing itself
    if not flask.request.if_match.contains(str(version)):
        raise ConditionFailed(noun=noun, id=id)
