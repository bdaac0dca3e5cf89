"""POSTs that their senders may repeat: done once, answered the same.

What `begin` answers::

    None     do it, then `finish` in the same transaction
    the row  answer with what it says
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, literal, select, update
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.columns import SECOND, now
from raksha.db.models import IdempotencyKey
from raksha.errors import KeyReused, RequestUnderWay


def begin(session: Session, project_id: str, key: str, fingerprint: str) -> IdempotencyKey | None:
    """None: the request is new. Otherwise how it was answered. `fingerprint`: a digest of user, URL and body.

    Raises `KeyReused` for another request under the same key, `RequestUnderWay` if the first has not been answered.
    """
    if rows.inserted(session, IdempotencyKey(project_id=project_id, key=key, fingerprint=fingerprint)):
        return None
    mine = IdempotencyKey.project_id == project_id, IdempotencyKey.key == key
    found = rows.one(session, select(IdempotencyKey).where(*mine), "idempotency key", key)
    if found.fingerprint != fingerprint:
        raise KeyReused(key=key)
    if found.status is None:
        raise RequestUnderWay(key=key)
    return found


def finish(session: Session, project_id: str, key: str, *, status: int, headers: dict[str, str], body: Any) -> None:
    """How it was answered."""
    mine = IdempotencyKey.project_id == project_id, IdempotencyKey.key == key
    rows.changed(session, update(IdempotencyKey).where(*mine).values(status=status, headers=headers, body=body))


def forget(session: Session, older_than: float) -> int:
    """Drop what is older than so many seconds. How many."""
    old = IdempotencyKey.created_at < now() - literal(round(older_than * SECOND))
    return rows.changed(session, delete(IdempotencyKey).where(old))
