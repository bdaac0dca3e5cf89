"""Fires jobs that are due.

    for each job that is due, fifty in a transaction:
        what to run now, and what was missed            raksha.schedule.due
        its last run is still under way: let it pass    the job says so, and owes a full run if this was to be one
        otherwise                                       one run, queued, and the job's next time: compare-and-swap

Promises: a fire time becomes a run once or is counted as missed, whoever fires and whoever dies. Does not promise that
a run that is under way was seen when two are made in the same moment, one by hand: they share no VM at once (dispatch).
A job that cannot be read is suspended with the reason, so that it is in nobody's way.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.db import jobs, rows, runs, schedules
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobRun
from raksha.db.session import Database
from raksha.errors import RakshaError
from raksha.schedule import Due, Schedule, due, wants_full
from raksha.scheduler.suspension import suspend
from raksha.states import BackupKind

_log = logging.getLogger(__name__)

#: jobs of one transaction: half the time of single ones, and a short lock
BATCH = 50
#: seconds that a fire may be late without counting as missed
GRACE = 300


class Ticked(Struct, frozen=True):
    """What one round did."""

    #: jobs looked at
    seen: int = 0
    #: runs made
    fired: int = 0
    #: jobs of which a run was let pass
    passed: int = 0


def tick(database: Database, batches: int = 20) -> Ticked:
    """Fire what is due now, up to so many batches."""
    total = Ticked()
    for _ in range(batches):
        done = database.run(fire_batch)
        total = Ticked(total.seen + done.seen, total.fired + done.fired, total.passed + done.passed)
        if done.seen < BATCH:
            break
    return total


def fire_batch(session: Session) -> Ticked:
    """One transaction. Four statements for all jobs, three for each."""
    found = jobs.due(session, BATCH)
    if not found:
        return Ticked()
    now = rows.clock(session) // SECOND
    ids = [job.id for job in found]
    busy, based = _busy(session, ids), runs.based(session, ids)
    fired = passed = 0
    for job in found:
        try:
            schedule = schedules.of(job)
            if schedule is None:
                runs.pass_over(session, job, next_run_at=None, missed=0)
                continue
            planned = due(schedule, _dealt_with(job), now, GRACE)
        except RakshaError as error:
            suspend(session, job.id, error)
            continue
        if planned.at is None:
            passed += _nothing_now(session, job, planned)
        elif job.id in busy:
            passed += _overlap(session, job, planned, busy[job.id])
        else:
            fired += _fire(session, job, schedule, planned, based=job.id in based)
    return Ticked(len(found), fired, passed)


def _dealt_with(job: BackupJob) -> int:
    """Epoch seconds."""
    if job.fired_upto is not None:
        return job.fired_upto // SECOND
    return (job.next_run_at or 0) // SECOND - 1


def _fire(session: Session, job: BackupJob, schedule: Schedule, planned: Due, *, based: bool) -> bool:
    owed = planned.full or job.next_full_at is not None
    full = wants_full(schedule, owed, job.runs_since_full if based else None)
    values: dict[str, Any] = {"fired_upto": planned.upto * SECOND}
    if full:
        values["next_full_at"] = None
    if planned.missed:
        values["last_missed_reason"] = _reason("downtime", "no scheduler was there in time; one run makes up for all")
    kind = BackupKind.FULL if full else BackupKind.INCREMENTAL
    run = runs.fire(session, job, kind=kind, next_run_at=_micros(planned.again), missed=planned.missed, **values)
    return run is not None


def _nothing_now(session: Session, job: BackupJob, planned: Due) -> bool:
    """Missed and skipped, or late and waiting for its window, or the schedule says another time than the row."""
    values: dict[str, Any] = {"fired_upto": planned.upto * SECOND}
    if planned.missed:
        values["last_missed_reason"] = _reason("downtime", "no scheduler was there in time; what it missed is skipped")
    done = runs.pass_over(session, job, next_run_at=_micros(planned.again), missed=planned.missed, **values)
    return done and planned.missed > 0


def _overlap(session: Session, job: BackupJob, planned: Due, run_id: str) -> bool:
    values: dict[str, Any] = {
        "fired_upto": planned.upto * SECOND,
        "last_missed_reason": _reason("previous_run_under_way", f"run {run_id} had not ended", backupjobrun_id=run_id),
    }
    if planned.full and job.next_full_at is None:
        values["next_full_at"] = job.next_run_at
    again = _micros(planned.again)
    return runs.pass_over(session, job, next_run_at=again, missed=planned.missed + 1, **values)


def _busy(session: Session, job_ids: Sequence[str]) -> dict[str, str]:
    """Jobs with a run that has not ended, and which."""
    mine = BackupJobRun.backupjob_id.in_(job_ids), BackupJobRun.state.in_(runs.UNDER_WAY)
    found = session.execute(select(BackupJobRun.backupjob_id, BackupJobRun.id).where(*mine))
    return {job: run for job, run in found}  # noqa: C416 rows, not pairs


def _micros(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * SECOND


def _reason(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"code": code, "message": message, **more}
