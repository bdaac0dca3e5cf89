"""Restores: what was asked for, what has been made, how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.columns import now
from raksha.db.models import BackupJobRun, Restore
from raksha.db.paging import Columns, Page, Wanted, page
from raksha.errors import EpochStale, StateConflict
from raksha.states import RestoreState

NOUN = "restore"

#: states in which it can be told to end
CANCELLABLE = (RestoreState.QUEUED, RestoreState.RUNNING)
#: nobody works on it any more: what a person must look at is begun anew, not gone on with
OVER = (RestoreState.DONE, RestoreState.CANCELLED, RestoreState.ERROR, RestoreState.NEEDS_ATTENTION)

COLUMNS: Columns = {"id": Restore.id, "state": Restore.state, "created_at": Restore.created_at}


def create(session: Session, run: BackupJobRun, *, target: Any, **more: Any) -> Restore:
    """A new restore of a run, queued. The caller pins what it reads in the same transaction."""
    restore = Restore(project_id=run.project_id, backupjobrun_id=run.id, target=target, **more)
    session.add(restore)
    session.flush()
    return restore


def get(session: Session, project_id: str | None, id: str) -> Restore:
    """A restore of this project (None: of any). Raises `RowNotFound`, also for that of another."""
    mine = () if project_id is None else (Restore.project_id == project_id,)
    return rows.one(session, select(Restore).where(Restore.id == id, *mine), NOUN, id)


def listed(
    session: Session, project_id: str | None, wanted: Wanted, where: Sequence[ColumnElement[bool]] = ()
) -> Page[Restore]:
    """Raises `SortKeyUnknown`, `MarkerUnknown`."""
    mine = () if project_id is None else (Restore.project_id == project_id,)
    return page(session, select(Restore).where(*mine, *where), COLUMNS, wanted)


def in_state(session: Session, states: Sequence[RestoreState], limit: int) -> list[Restore]:
    """The oldest first."""
    statement = select(Restore).where(Restore.state.in_(states)).order_by(Restore.created_at)
    return list(session.scalars(statement.limit(limit)))


def take(session: Session, id: str, seen: int) -> bool:
    """Become the one who makes its tasks, who saw `seen` as its epoch. False: another does, or it is queued no more."""
    mine = Restore.id == id, Restore.state == RestoreState.QUEUED, Restore.epoch == seen
    done = rows.changed(session, update(Restore).where(*mine).values(epoch=seen + 1)) == 1
    rows.reread(session, Restore)
    return done


def request_cancel(session: Session, id: str) -> None:
    """Somebody wants the end of a restore: a scheduler brings it about. Again is no harm.

    Raises `RowNotFound`, `StateConflict` when it is over, or a person must look at it.
    """
    can = Restore.id == id, Restore.state.in_(CANCELLABLE)
    asked = func.coalesce(Restore.cancel_requested_at, now())
    if rows.changed(session, update(Restore).where(*can).values(cancel_requested_at=asked)) == 0:
        found = get(session, None, id).state
        if found == RestoreState.CANCELLING:
            return
        raise StateConflict(noun=NOUN, id=id, found=found, wanted=", ".join(CANCELLABLE), to=RestoreState.CANCELLED)
    rows.reread(session, Restore)


def has_trust(session: Session, trust_id: str) -> bool:
    """Whether a restore acts by it."""
    return session.scalars(select(Restore.id).where(Restore.trust_id == trust_id)).first() is not None


def with_ended_trusts(session: Session, limit: int) -> list[Restore]:
    """Those that act no more, and have a trust still: it is to be ended."""
    over = Restore.trust_id.is_not(None), Restore.state.in_(OVER)
    return list(session.scalars(select(Restore).where(*over).limit(limit)))


def forget_trust(session: Session, id: str) -> None:
    """It is no more."""
    rows.changed(session, update(Restore).where(Restore.id == id, Restore.state.in_(OVER)).values(trust_id=None))
    rows.reread(session, Restore)


def under_way(session: Session, project_id: str) -> int:
    """Restores of a project that have not ended."""
    mine = Restore.project_id == project_id, Restore.state.in_((*CANCELLABLE, RestoreState.CANCELLING))
    return session.execute(select(func.count()).select_from(Restore).where(*mine)).scalar_one()


def progress(session: Session, id: str, epoch: int, *, done: int, total: int) -> None:
    """Bytes, as its agent reports them. Raises `EpochStale`."""
    _change(session, id, epoch, {"bytes_done": done, "bytes_total": total})


def record_made(session: Session, id: str, epoch: int, made: Any) -> None:
    """What it is about to make or write to, said before: so that what it leaves can be found. Raises `EpochStale`."""
    restore = get(session, None, id)
    _change(session, id, epoch, {"made": [*restore.made, made]})


def _change(session: Session, id: str, epoch: int, values: dict[str, Any]) -> None:
    mine = Restore.id == id, Restore.epoch == epoch
    if rows.changed(session, update(Restore).where(*mine).values(**values)) == 0:
        raise EpochStale(noun=NOUN, id=id, found=get(session, None, id).epoch, given=epoch)
    rows.reread(session, Restore)
