"""What a project has, and may have."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.models import BackupJob, BackupJobRun, ProjectLimit, VmResourceBackup
from raksha.db.runs import POINTS, UNDER_WAY
from raksha.states import BackupState, RunState


class Usage(Struct, frozen=True):
    """Of one project."""

    jobs: int
    #: restore points
    runs: int
    #: runs that have not ended
    runs_under_way: int
    #: bytes that its restore points refer to, each copy for itself: what is shared counts for each
    stored_bytes: int


def usage(session: Session, project_id: str) -> Usage:
    """Four statements, each from an index alone."""
    return Usage(
        jobs=jobs(session, project_id),
        runs=runs(session, project_id, POINTS),
        runs_under_way=runs(session, project_id, UNDER_WAY),
        stored_bytes=stored_bytes(session, project_id),
    )


def jobs(session: Session, project_id: str) -> int:
    """How many jobs a project has."""
    mine = BackupJob.project_id == project_id
    return session.execute(select(func.count()).select_from(BackupJob).where(mine)).scalar_one()


def runs(session: Session, project_id: str, states: Collection[RunState]) -> int:
    """How many of its runs are in one of these states."""
    mine = BackupJobRun.project_id == project_id, BackupJobRun.state.in_(states)
    return session.execute(select(func.count()).select_from(BackupJobRun).where(*mine)).scalar_one()


def stored_bytes(session: Session, project_id: str) -> int:
    """That its restore points refer to."""
    kept = VmResourceBackup.state.in_((BackupState.AVAILABLE, BackupState.DEGRADED, BackupState.TRASHED))
    mine = VmResourceBackup.project_id == project_id, kept
    total = func.coalesce(func.sum(VmResourceBackup.bytes_stored), 0)
    return int(session.execute(select(total).where(*mine)).scalar_one())


def limits(session: Session, project_id: str) -> dict[str, int]:
    """Where a project's limits differ from the default. -1: no limit."""
    mine = ProjectLimit.project_id == project_id
    return {limit.name: limit.value for limit in session.scalars(select(ProjectLimit).where(mine))}


def all_limits(session: Session) -> list[ProjectLimit]:
    """Of every project that has some."""
    return list(session.scalars(select(ProjectLimit).order_by(ProjectLimit.project_id, ProjectLimit.name)))


def set_limit(session: Session, project_id: str, name: str, value: int | None) -> None:
    """Give a project a limit of its own; -1: none; None: the default again."""
    if value is None:
        mine = ProjectLimit.project_id == project_id, ProjectLimit.name == name
        rows.changed(session, delete(ProjectLimit).where(*mine))
    elif not rows.inserted(session, ProjectLimit(project_id=project_id, name=name, value=value)):
        mine = ProjectLimit.project_id == project_id, ProjectLimit.name == name
        rows.changed(session, update(ProjectLimit).where(*mine).values(value=value))
