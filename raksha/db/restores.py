"""Restores: what was asked for, what has been made, how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.models import BackupJobRun, Restore
from raksha.db.paging import Columns, Page, Wanted, page
from raksha.errors import EpochStale
from raksha.states import RestoreState

NOUN = "restore"

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
