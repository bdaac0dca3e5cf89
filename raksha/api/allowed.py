"""How much a project may have: the limits of the service, and those that it has instead."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from sqlalchemy.orm import Session

from raksha.api.services import settings
from raksha.db import restores, room, runs, usage
from raksha.db.models import BackupJob
from raksha.errors import LimitExceeded

#: names of `project_limits`, by the field in which clients see them
OF_A_PROJECT: Mapping[str, str] = {
    "max_jobs": "jobs",
    "max_runs": "runs",
    "max_stored_bytes": "stored_bytes",
    "max_concurrent_runs": "concurrent_runs",
}


class Allowed(Struct, frozen=True):
    """-1: any number."""

    max_jobs: int
    max_runs: int
    max_stored_bytes: int
    max_concurrent_runs: int


def of(session: Session, project_id: str) -> Allowed:
    """What a project may have."""
    general, own = settings().limits, usage.limits(session, project_id)
    defaults = {
        "max_jobs": general.max_jobs,
        "max_runs": general.max_runs,
        "max_stored_bytes": general.max_stored_bytes,
        "max_concurrent_runs": settings().max_runs_per_project,
    }
    return Allowed(**{field: own.get(name, defaults[field]) for field, name in OF_A_PROJECT.items()})


def one_more_job(session: Session, project_id: str) -> None:
    """Raises `LimitExceeded`. Two that ask at the same moment may both be let in."""
    _within("backup jobs", usage.jobs(session, project_id) + 1, of(session, project_id).max_jobs)


def one_more_run(session: Session, job: BackupJob) -> None:
    """Raises `LimitExceeded`. What comes between this and its start, dispatch sees."""
    going = usage.runs(session, job.project_id, runs.UNDER_WAY)
    _within("runs that have not ended", going + 1, settings().limits.max_runs_under_way)
    may = of(session, job.project_id)
    short = room.shortage(session, job, room.Most(may.max_runs, may.max_stored_bytes))
    if short is not None:
        raise LimitExceeded(what=short.what, limit=short.limit, wanted=short.wanted)


def one_more_restore(session: Session, project_id: str) -> None:
    """Raises `LimitExceeded`."""
    limit = settings().limits.max_restores_under_way
    _within("restores that have not ended", restores.under_way(session, project_id) + 1, limit)


def vms_of_a_job(count: int) -> None:
    """Raises `LimitExceeded`."""
    _within("VMs of a backup job", count, settings().limits.max_vms_per_job)


def _within(what: str, wanted: int, limit: int) -> None:
    if limit >= 0 and wanted > limit:
        raise LimitExceeded(what=what, limit=limit, wanted=wanted)
