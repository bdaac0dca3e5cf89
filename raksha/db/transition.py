"""The only writer of states.

Every change is one compare-and-swap::

    UPDATE noun SET state = :to, ... WHERE id = :id AND state IN (:start) [AND epoch = :epoch] [AND more]

so that of two that want different things exactly one gets it, and the other is told what it found. A move that
`moves.MOVES` does not list is an error of the program (`ValueError`), not of the world.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.util import identity_key

from raksha.db import telling
from raksha.db.models import Base
from raksha.db.moves import NOUNS, sources
from raksha.errors import EpochStale, RowNotFound, StateConflict, StillNeeded

_NOTHING: Mapping[str, ColumnElement[bool]] = {}


def transition(
    session: Session,
    noun: type[Base],
    id: str,
    to: StrEnum,
    *,
    start: Collection[StrEnum] | None = None,
    epoch: int | None = None,
    new_epoch: bool = False,
    where: Mapping[str, ColumnElement[bool]] = _NOTHING,
    **values: Any,
) -> None:
    """Bring one row to state `to`, and set `values` with it. A row of the session is read anew. What others are told
    of it is noted.

    `start`: states from which this caller means to come; None: all that may be followed by `to`. `epoch`: that the row
    must have. `new_epoch`: it gets the next one with the move. `where`: what must hold as well,
    by what is the case where it does not.
    Raises `RowNotFound`, `EpochStale`, `StateConflict` with the state found, `StillNeeded` if `where` did not hold;
    `ValueError` for a move that is not legal.
    """
    table = cast(Any, noun)
    allowed = _allowed(noun, to, start)
    conditions = [table.id == id, table.state.in_(sorted(allowed)), *where.values()]
    if epoch is not None:
        conditions.append(table.epoch == epoch)
    if new_epoch:
        values["epoch"] = table.epoch + 1
    session.flush()
    moved = _swap(session, noun, conditions, to, values) == 1
    problem = None if moved else _why_not(session, table, id, to, allowed, epoch, where)
    loaded = session.identity_map.get(identity_key(noun, id))
    # also where another was faster: whoever looks why, must see what that one left
    if loaded is not None and not isinstance(problem, RowNotFound):
        session.refresh(loaded)
    if problem is not None:
        raise problem
    telling.moved(session, noun, id, to, values)


def transition_all(
    session: Session,
    noun: type[Base],
    to: StrEnum,
    where: Sequence[ColumnElement[bool]],
    *,
    start: Collection[StrEnum] | None = None,
    **values: Any,
) -> int:
    """Bring all rows for which `where` holds to `to`; those in other states than `start` stay. How many there were.

    `ValueError` for a move that is not legal, or that others are told of. Rows of the session are read anew.
    """
    if (noun, to) in telling.MOVES:
        raise ValueError(f"{NOUNS[noun]}: others are told of each that becomes {to}, so they move one by one")
    table = cast(Any, noun)
    session.flush()
    count = _swap(session, noun, [table.state.in_(sorted(_allowed(noun, to, start))), *where], to, values)
    for row in list(session.identity_map.values()):
        if isinstance(row, noun):
            session.refresh(row)
    return count


def _allowed(noun: type[Base], to: StrEnum, start: Collection[StrEnum] | None) -> frozenset[StrEnum]:
    legal = sources(noun, to)
    allowed = legal if start is None else frozenset(start)
    if not allowed or not allowed <= legal:
        raise ValueError(f"{NOUNS[noun]}: no legal move from {', '.join(sorted(allowed - legal)) or 'nowhere'} to {to}")
    return allowed


def _swap(
    session: Session, noun: type[Base], conditions: Sequence[ColumnElement[bool]], to: StrEnum, values: dict[str, Any]
) -> int:
    statement = update(noun).where(*conditions).values(state=to, **values)
    result = session.execute(statement, execution_options={"synchronize_session": False})
    # rows matched, also where a database counts changed ones by default: proven in tests/contract
    return cast("CursorResult[Any]", result).rowcount


def _why_not(
    session: Session,
    table: Any,
    id: str,
    to: StrEnum,
    allowed: frozenset[StrEnum],
    epoch: int | None,
    where: Mapping[str, ColumnElement[bool]],
) -> RowNotFound | EpochStale | StateConflict | StillNeeded:
    name = NOUNS[table]
    columns = (table.state,) if epoch is None else (table.state, table.epoch)
    found = session.execute(select(*columns).where(table.id == id)).one_or_none()
    if found is None:
        return RowNotFound(noun=name, id=id)
    if epoch is not None and found.epoch != epoch:
        return EpochStale(noun=name, id=id, found=found.epoch, given=epoch)
    if where and found.state in allowed:
        return StillNeeded(noun=name, id=id, found=str(found.state), detail=" or ".join(where))
    return StateConflict(noun=name, id=id, found=str(found.state), wanted=", ".join(sorted(allowed)), to=str(to))
