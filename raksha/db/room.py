"""Whether a project has room for one more restore point: for whoever starts a run by hand, and for whoever dispatches.

Restore points that the retention of the run's job will remove once the new one is there do not count: otherwise a job
that keeps as many as its project may have would never run again. Bytes count as they are: of a chain whose oldest point
goes, the next one takes over most. Two that look at the same moment may both find room.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from sqlalchemy.orm import Session

from raksha.db import points, rows, usage
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob
from raksha.db.runs import POINTS
from raksha.errors import RetentionInvalid, ZoneUnknown
from raksha.retention import Point, decide
from raksha.states import RunState

#: states of runs that are to become restore points and have been started
_TO_COME = (RunState.READY, RunState.RUNNING, RunState.COMMITTING, RunState.NEEDS_ATTENTION)


class Most(Struct, frozen=True):
    """What a project may have. -1: any number."""

    runs: int
    stored_bytes: int


class Shortage(Struct, frozen=True):
    """Which limit leaves no room."""

    #: as clients know it: `max_runs`, `max_stored_bytes`
    name: str
    #: the same for people
    what: str
    limit: int
    wanted: int


def most(own: Mapping[str, int], default: Most) -> Most:
    """`own`: where the project's limits differ (`usage.limits`)."""
    return Most(own.get("runs", default.runs), own.get("stored_bytes", default.stored_bytes))


def shortage(session: Session, job: BackupJob, may: Most, stored_bytes: int | None = None) -> Shortage | None:
    """Why a run of this job would be too much; None: there is room. Nothing is counted that is not limited.

    `stored_bytes`: of its project, if the caller knows.
    """
    if may.runs >= 0:
        wanted = usage.runs(session, job.project_id, (*POINTS, *_TO_COME)) + 1
        if wanted > may.runs:
            wanted -= _making_way(session, job)
        if wanted > may.runs:
            return Shortage("max_runs", "restore points", may.runs, wanted)
    if may.stored_bytes >= 0:
        # how much it will be nobody knows: one byte more is too much
        wanted = 1 + (usage.stored_bytes(session, job.project_id) if stored_bytes is None else stored_bytes)
        if wanted > may.stored_bytes:
            return Shortage("max_stored_bytes", "stored bytes", may.stored_bytes, wanted)
    return None


def _making_way(session: Session, job: BackupJob) -> int:
    """How many restore points of a job go once there is a new one."""
    there = [point for point in points.of_job(session, job.id) if point.restorable]
    new = Point("", rows.clock(session) // SECOND)
    try:
        retention = points.policy(job)
        decisions = [] if retention is None else decide([*there, new], retention)
    except (RetentionInvalid, ZoneUnknown):  # nothing goes by what cannot be read
        return 0
    return sum(not decision.kept for decision in decisions)
