"""Notifications that wait to be sent. Who has a lease on the oldest of them sends; nobody else does meanwhile.

Promises: at least once, and what happened to one thing for the first time in the order in which it happened: whoever
sends begins with the oldest, and removes nothing before the bus has it. A sender that dies, or is slow, is followed by
another one that sends again what may have been sent: with the same `message_id`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, literal, or_, select, update
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.columns import SECOND, now
from raksha.db.models import Notification


def waits(session: Session) -> bool:
    """Whether there is anything to send. Cheaper than to begin."""
    return session.scalars(select(Notification.number).limit(1)).first() is not None


def take(session: Session, sender: str, lease: float, limit: int) -> list[Notification]:
    """The oldest that wait, for `lease` seconds this sender's; none: there are none, or another one sends."""
    head = session.scalars(select(Notification.number).order_by(Notification.number).limit(1)).first()
    if head is None:
        return []
    free = or_(Notification.lease_until < now(), Notification.sender_id == sender)
    mine = update(Notification).where(Notification.number == head, free)
    until = now() + literal(round(lease * SECOND))
    if rows.changed(session, mine.values(sender_id=sender, lease_until=until)) == 0:
        return []
    return list(session.scalars(select(Notification).order_by(Notification.number).limit(limit)))


def sent(session: Session, numbers: Sequence[int], sender: str) -> None:
    """The bus has these; the sender sends no more for now."""
    rows.changed(session, delete(Notification).where(Notification.number.in_(numbers)))
    rows.changed(session, update(Notification).where(Notification.sender_id == sender).values(lease_until=0))


def drop(session: Session, older_than: float) -> int:
    """Remove what could not be sent for so many seconds. How many."""
    old = Notification.created_at < now() - literal(round(older_than * SECOND))
    return rows.changed(session, delete(Notification).where(old))
