"""Slots of what only so many may use at once: a VM, a host, a project, a vault.

A slot is a row, taken by inserting it: its primary key is the limit, whoever counts. All slots of a run are taken in
one transaction or none is, in one order, so that groups never wait for each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct
from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.models import Reservation


class Slot(Struct, frozen=True, order=True):
    """One slot that is wanted."""

    #: `vm`, `host`, `project`, `vault`
    kind: str
    name: str
    #: how many there are
    limit: int = 1
    #: how many of them are wanted, all or none
    count: int = 1


def reserve(session: Session, holder_id: str, wanted: Iterable[Slot]) -> Slot | None:
    """Take the slots; None: done, as is asking again for what the holder has. Otherwise the first that is full:
    nothing was taken."""
    want = sorted(set(wanted))
    mine: Counter[tuple[str, str]] = Counter()
    taken: dict[tuple[str, str], set[int]] = {(slot.kind, slot.name): set() for slot in want}
    statement = select(Reservation).where(tuple_(Reservation.kind, Reservation.name).in_(list(taken)))
    for row in session.scalars(statement):
        taken[row.kind, row.name].add(row.slot)
        if row.holder_id == holder_id:
            mine[row.kind, row.name] += 1
    new = []
    for slot in want:
        missing = max(0, slot.count - mine[slot.kind, slot.name])
        free = [number for number in range(slot.limit) if number not in taken[slot.kind, slot.name]]
        if len(free) < missing:
            return slot
        new += [
            Reservation(kind=slot.kind, name=slot.name, slot=number, holder_id=holder_id) for number in free[:missing]
        ]
    # somebody else took one of them between the look and the insertion: it is as if it was full
    return None if rows.inserted(session, *new) else want[0]


def release(session: Session, holder_id: str) -> int:
    """Give back all that a run or restore holds. How many slots."""
    return rows.changed(session, delete(Reservation).where(Reservation.holder_id == holder_id))


def holders(session: Session, kind: str, name: str) -> list[str]:
    """Who holds slots of it."""
    mine = Reservation.kind == kind, Reservation.name == name
    return list(session.scalars(select(Reservation.holder_id).where(*mine).order_by(Reservation.slot)))


def all_holders(session: Session) -> set[str]:
    """Everybody who holds a slot: for the one who looks for slots of runs that are over."""
    return set(session.scalars(select(Reservation.holder_id).distinct()))
