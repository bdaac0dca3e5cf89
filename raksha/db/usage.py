"""What a project has, and may have."""

from __future__ import annotations

from msgspec import Struct
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.models import BackupJob, BackupJobRun, ProjectLimit, VmResourceBackup
from raksha.db.runs import UNDER_WAY
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

    def count(noun: type[BackupJob] | type[BackupJobRun], *where: object) -> int:
        mine = noun.project_id == project_id
        return session.execute(select(func.count()).select_from(noun).where(mine, *where)).scalar_one()  # type: ignore[arg-type]

    points = BackupJobRun.state.in_((RunState.AVAILABLE, RunState.DEGRADED))
    mine = VmResourceBackup.project_id == project_id
    kept = VmResourceBackup.state.in_((BackupState.AVAILABLE, BackupState.DEGRADED, BackupState.TRASHED))
    stored = select(func.coalesce(func.sum(VmResourceBackup.bytes_stored), 0)).where(mine, kept)
    return Usage(
        jobs=count(BackupJob),
        runs=count(BackupJobRun, points),
        runs_under_way=count(BackupJobRun, BackupJobRun.state.in_(UNDER_WAY)),
        stored_bytes=int(session.execute(stored).scalar_one()),
    )


def limits(session: Session, project_id: str) -> dict[str, int]:
    """Where a project's limits differ from the default. -1: no limit."""
    mine = ProjectLimit.project_id == project_id
    return {limit.name: limit.value for limit in session.scalars(select(ProjectLimit).where(mine))}


def set_limit(session: Session, project_id: str, name: str, value: int | None) -> None:
    """Give a project a limit of its own; -1: none; None: the default again."""
    if value is None:
        mine = ProjectLimit.project_id == project_id, ProjectLimit.name == name
        rows.changed(session, delete(ProjectLimit).where(*mine))
    elif not rows.inserted(session, ProjectLimit(project_id=project_id, name=name, value=value)):
        mine = ProjectLimit.project_id == project_id, ProjectLimit.name == name
        rows.changed(session, update(ProjectLimit).where(*mine).values(value=value))
