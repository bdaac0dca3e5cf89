"""Verifications: which are asked for or due, how far they are, what they found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, exists, func, literal, select, update
from sqlalchemy.orm import Session

from raksha.db import rows, runs
from raksha.db.columns import SECOND, now
from raksha.db.models import BackupJob, BackupJobRun, Task, Verification
from raksha.db.paging import Columns, Page, Wanted, page
from raksha.db.transition import transition
from raksha.errors import StateConflict
from raksha.states import JobState, RunState, Trigger, VerificationState

NOUN = "verification"

GOING = (VerificationState.QUEUED, VerificationState.RUNNING)

COLUMNS: Columns = {"id": Verification.id, "state": Verification.state, "created_at": Verification.created_at}


def create(session: Session, job: BackupJob, run_id: str | None, **more: Any) -> Verification:
    """Of one restore point of a job, or of all. Raises `StateConflict` while another looks at the same in the same
    way."""
    boot = more.get("boot", False)
    mine = Verification.backupjob_id == job.id, Verification.backupjobrun_id == run_id, Verification.boot == boot
    same = (*mine, Verification.state.in_(GOING))
    other = session.scalars(select(Verification).where(*same).limit(1)).first()
    if other is not None:
        over = ", ".join(state for state in VerificationState if state not in GOING)
        raise StateConflict(noun=NOUN, id=other.id, found=other.state, wanted=over, to="begun again")
    made = Verification(project_id=job.project_id, backupjob_id=job.id, backupjobrun_id=run_id, **more)
    session.add(made)
    session.flush()
    return made


def get(session: Session, project_id: str | None, id: str) -> Verification:
    """Of this project (None: of any). Raises `RowNotFound`, also for that of another."""
    mine = () if project_id is None else (Verification.project_id == project_id,)
    return rows.one(session, select(Verification).where(Verification.id == id, *mine), NOUN, id)


def listed(
    session: Session, project_id: str | None, wanted: Wanted, where: Sequence[ColumnElement[bool]] = ()
) -> Page[Verification]:
    """Raises `SortKeyUnknown`, `MarkerUnknown`."""
    mine = () if project_id is None else (Verification.project_id == project_id,)
    return page(session, select(Verification).where(*mine, *where), COLUMNS, wanted)


def going(session: Session, limit: int) -> list[Verification]:
    """Those that have not ended, the oldest first."""
    statement = select(Verification).where(Verification.state.in_(GOING)).order_by(Verification.created_at)
    return list(session.scalars(statement.limit(limit)))


def take(session: Session, id: str, seen: int) -> bool:
    """Become the one who makes its tasks, who saw `seen` as its epoch. False: another does, or it is queued no more."""
    mine = Verification.id == id, Verification.state == VerificationState.QUEUED, Verification.epoch == seen
    done = rows.changed(session, update(Verification).where(*mine).values(epoch=seen + 1)) == 1
    rows.reread(session, Verification)
    return done


def request_cancel(session: Session, id: str) -> None:
    """A scheduler brings it about. Again is no harm. Raises `RowNotFound`, `StateConflict` when it is over."""
    can = Verification.id == id, Verification.state.in_(GOING)
    asked = func.coalesce(Verification.cancel_requested_at, now())
    if rows.changed(session, update(Verification).where(*can).values(cancel_requested_at=asked)) == 0:
        found = get(session, None, id).state
        raise StateConflict(noun=NOUN, id=id, found=found, wanted=", ".join(GOING), to=VerificationState.CANCELLED)
    rows.reread(session, Verification)


def progress(session: Session, id: str, *, done: int, total: int) -> None:
    mine = Verification.id == id
    rows.changed(session, update(Verification).where(mine).values(bytes_done=done, bytes_total=total))
    rows.reread(session, Verification)


def note_vms(session: Session, id: str, vms: list[dict[str, Any]]) -> None:
    """Of a test restore: which VMs are booted."""
    rows.changed(session, update(Verification).where(Verification.id == id).values(vms=vms))
    rows.reread(session, Verification)


def end(session: Session, id: str, to: VerificationState, **values: Any) -> None:
    """With its tasks, which have ended and stored nothing. Raises `StateConflict`: somebody else ended it."""
    transition(session, Verification, id, to, finished_at=now(), **values)
    for task in session.scalars(select(Task).where(Task.verification_id == id)):
        session.delete(task)
    session.flush()


def due(session: Session, seconds: float) -> BackupJob | None:
    """The job whose restore points were longest not looked at, if that is longer than `seconds` ago. Points that are
    damaged come first: what they lack may have been stored again. None in a project where another is under way."""
    old = now() - literal(round(seconds * SECOND))
    busy = _busy(boot=False)
    last = _last_scheduled(boot=False)
    mine = BackupJobRun.backupjob_id == BackupJob.id
    points = exists().where(mine, BackupJobRun.state.in_(runs.POINTS), BackupJobRun.finished_at < old)
    damaged = exists().where(mine, BackupJobRun.state == RunState.DEGRADED)
    looked = func.coalesce(last, literal(0))
    statement = (
        select(BackupJob)
        .where(BackupJob.state != JobState.DELETING, points, looked < old, ~busy)
        .order_by(damaged.desc(), looked, BackupJob.id)
    )
    return session.scalars(statement.limit(1)).first()


def boots_under_way(session: Session) -> int:
    """Test restores that have tasks."""
    tasks = exists().where(Task.verification_id == Verification.id)
    mine = Verification.boot.is_(True), Verification.state.in_(GOING), tasks
    return session.execute(select(func.count()).select_from(Verification).where(*mine)).scalar_one()


def boot_due(session: Session, seconds: float) -> tuple[BackupJob, BackupJobRun] | None:
    """The job that longest had no test restore of those for which it is time, and its newest whole restore point.
    `seconds`: between two, where the job says nothing; 0: never. None in a project where another is under way."""
    every = func.coalesce(BackupJob.test_every, literal(round(seconds)))
    last = func.coalesce(_last_scheduled(boot=True), literal(0))
    points = exists().where(BackupJobRun.backupjob_id == BackupJob.id, BackupJobRun.state == RunState.AVAILABLE)
    statement = (
        select(BackupJob)
        .where(BackupJob.state != JobState.DELETING, every > 0, last < now() - every * SECOND, points)
        .where(~_busy(boot=True))
        .order_by(last, BackupJob.id)
    )
    job = session.scalars(statement.limit(1)).first()
    run = None if job is None else newest_whole(session, job.id)
    return None if job is None or run is None else (job, run)


def newest_whole(session: Session, job_id: str) -> BackupJobRun | None:
    """The newest restore point of a job of which no damage is known."""
    mine = BackupJobRun.backupjob_id == job_id, BackupJobRun.state == RunState.AVAILABLE
    return session.scalars(select(BackupJobRun).where(*mine).order_by(BackupJobRun.commit_number.desc())).first()


def _busy(*, boot: bool) -> ColumnElement[bool]:
    same = Verification.project_id == BackupJob.project_id, Verification.boot == boot
    return exists().where(*same, Verification.state.in_(GOING))


def _last_scheduled(*, boot: bool) -> Any:
    same = Verification.backupjob_id == BackupJob.id, Verification.boot == boot
    timely = Verification.trigger == Trigger.SCHEDULE
    return select(func.max(Verification.created_at)).where(*same, timely).scalar_subquery()
