"""Which restore points of a job are to go: what its owner wants kept, applied after each commit and now and then.

Promises: the newest restorable point stays, whatever else happens at the same moment: it is written to in the same
transaction, so whoever deletes it comes before or after. Runs that failed are kept for a while, for who wants to know
why.
"""

from __future__ import annotations

import logging
from functools import partial

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import jobs, points, rows, runs
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobRun
from raksha.db.session import Database
from raksha.errors import Protected, RakshaError, RowNotFound, StateConflict, StillNeeded
from raksha.retention import Point
from raksha.states import JobState, RunState

_log = logging.getLogger(__name__)


def retain(database: Database, settings: SchedulerSettings, job_id: str) -> list[str]:
    """Runs of a job that are DELETING from now on."""
    try:
        doomed = database.run(partial(_retain, job_id=job_id, settings=settings))
    except (StateConflict, RowNotFound):  # somebody deletes at the same moment; the next look decides anew
        return []
    except RakshaError as error:
        _log.error("retention of job %s: %s", job_id, error, extra={"action": "retain", "backupjob": job_id})
        return []
    for id in doomed:
        _log.info("run %s is kept no longer", id, extra={"action": "retain", "backupjobrun": id})
    return doomed


def all_jobs(database: Database) -> list[str]:
    """Those with anything to look at."""
    with database.reading() as session:
        going = BackupJob.state != JobState.DELETING
        return list(session.scalars(select(BackupJob.id).where(going).order_by(BackupJob.id)))


def _retain(session: Session, job_id: str, settings: SchedulerSettings) -> list[str]:
    job = jobs.get(session, None, job_id)
    found = points.of_job(session, job_id)
    now = rows.clock(session) // SECOND
    decisions = points.decided(found, points.policy(job), now, settings.keep_failed)
    doomed = [decision.point for decision in decisions if not decision.kept]
    restorable = [point for point in found if point.restorable]
    if not doomed or not restorable:
        return []
    _hold(session, max(restorable, key=lambda point: (point.taken_at, point.id)))
    done = []
    for point in doomed:
        try:
            runs.begin_deleting(session, point.id)
        except (Protected, StillNeeded, StateConflict):  # its owner was faster
            continue
        done.append(point.id)
    return done


def _hold(session: Session, newest: Point) -> None:
    """Nobody deletes it before this transaction has ended. Raises `StateConflict` if somebody just did."""
    there = BackupJobRun.id == newest.id, BackupJobRun.state == RunState.AVAILABLE
    statement = update(BackupJobRun).where(*there).values(version=BackupJobRun.version)
    if rows.changed(session, statement) == 0:
        found = runs.get(session, None, newest.id).state
        raise StateConflict(noun=runs.NOUN, id=newest.id, found=found, wanted=RunState.AVAILABLE, to="held")
