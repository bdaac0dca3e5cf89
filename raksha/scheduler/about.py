"""What a scheduler does for a run is logged with the run, and with the request that asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha import logs
from raksha.db.models import BackupJobRun, Restore, Task
from raksha.db.session import Database


@contextmanager
def about_run(database: Database, run_id: str) -> Iterator[None]:
    """Raises `DatabaseUnavailable`, `DatabaseBusy`."""
    with database.reading() as session:
        request_id = session.scalars(select(BackupJobRun.request_id).where(BackupJobRun.id == run_id)).one_or_none()
    with logs.about(None, run_id, request_id):
        yield


@contextmanager
def about_task(database: Database, task: Task) -> Iterator[None]:
    """Raises `DatabaseUnavailable`, `DatabaseBusy`."""
    with database.reading() as session:
        request_id = request_of(session, task)
    with logs.about(task.id, task.backupjobrun_id, request_id):
        yield


def request_of(session: Session, task: Task) -> str | None:
    """Whose work a task is; None: nobody asked for it, a schedule did."""
    if task.restore_id is not None:
        return session.scalars(select(Restore.request_id).where(Restore.id == task.restore_id)).one_or_none()
    return session.scalars(select(BackupJobRun.request_id).where(BackupJobRun.id == task.backupjobrun_id)).one_or_none()
