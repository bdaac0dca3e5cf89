"""A job's runs as its retention sees them: the same for whoever deletes and for whoever asks what would be deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobRun
from raksha.db.runs import ENDED
from raksha.errors import RetentionInvalid
from raksha.retention import Decision, Point, Retention, decide
from raksha.states import RunState


def of_job(session: Session, job_id: str) -> list[Point]:
    """Runs of a job that have ended and are there, oldest first. One without a time of its own counts from its end.

    A degraded one takes no place of a whole one, and stays: whether it restores, a person finds out.
    """
    taken = func.coalesce(BackupJobRun.taken_at, BackupJobRun.finished_at, BackupJobRun.created_at)
    columns = BackupJobRun.id, taken, BackupJobRun.protected, BackupJobRun.state
    mine = BackupJobRun.backupjob_id == job_id, BackupJobRun.state.in_(ENDED)
    statement = select(*columns).where(*mine).order_by(taken, BackupJobRun.id)
    return [
        Point(id, int(at // SECOND), protected or state == RunState.DEGRADED, restorable=state == RunState.AVAILABLE)
        for id, at, protected, state in session.execute(statement)
    ]


def policy(job: BackupJob) -> Retention | None:
    """What the row says; None: everything stays. Raises `RetentionInvalid` for a row that cannot be read."""
    if job.retention is None:
        return None
    try:
        return msgspec.convert(job.retention, Retention)
    except msgspec.ValidationError as error:
        raise RetentionInvalid(field="row", detail=error) from error


def decided(found: Sequence[Point], retention: Retention | None, now: int, keep_failed: float) -> list[Decision]:
    """What becomes of each point, oldest first: as the job says, and failed runs for a while. Where nothing is
    restorable, nothing goes. `now`: epoch seconds; `keep_failed`: seconds.

    Raises `ZoneUnknown`, `RetentionInvalid`.
    """
    if not any(point.restorable for point in found):
        return [Decision(point, True, ("nothing is restorable: all stay",)) for point in found]
    counted = [point for point in found if point.restorable or point.protected]
    if retention is None:
        decisions = [Decision(point, True, ("the job has no retention: all stay",)) for point in counted]
    else:
        decisions = decide(counted, retention)
    told = {decision.point.id: decision for decision in decisions}
    return [told.get(point.id) or _failed(point, now, keep_failed) for point in found]


def _failed(point: Point, now: int, keep_failed: float) -> Decision:
    days = f"{keep_failed / 86400:g} days"
    if now - point.taken_at > keep_failed:
        return Decision(point, False, (f"not restorable, and older than {days}",))
    return Decision(point, True, (f"not restorable; it is kept for {days}, for who wants to know why",))


def document(retention: Retention | None) -> Any:
    """For the column `retention` of a job."""
    return None if retention is None else msgspec.to_builtins(retention)
