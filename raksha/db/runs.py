"""Runs: fired once per job and time, retried once, committed by one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, delete, exists, func, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from raksha.db import rows, telling, vaults
from raksha.db.columns import SECOND, now
from raksha.db.models import (
    BackupJob,
    BackupJobRun,
    BackupJobRunVm,
    BackupJobRunVmResource,
    Barrier,
    Task,
    Tombstone,
    VmResourceBackup,
)
from raksha.db.paging import Columns, Page, Wanted, page
from raksha.db.transition import transition, transition_all
from raksha.errors import EpochStale, Protected, StateConflict, StillNeeded
from raksha.notifications import Event
from raksha.states import BackupKind, BackupState, JobState, RunState, TaskState, Trigger

NOUN = "backup job run"

COLUMNS: Columns = {
    "id": BackupJobRun.id,
    "state": BackupJobRun.state,
    "kind": BackupJobRun.kind,
    "created_at": BackupJobRun.created_at,
}

#: states in which a run holds, or waits for, slots
UNDER_WAY = (RunState.QUEUED, RunState.READY, RunState.RUNNING, RunState.COMMITTING, RunState.CANCELLING)
#: states in which it can be told to end
CANCELLABLE = (RunState.QUEUED, RunState.READY, RunState.RUNNING)
#: restore points
POINTS = (RunState.AVAILABLE, RunState.DEGRADED)
#: what can be deleted
ENDED = (*POINTS, RunState.CANCELLED, RunState.ERROR)
#: states of a full run that others will soon build on
_SOON = (RunState.QUEUED, RunState.READY, RunState.RUNNING, RunState.COMMITTING)
_TERMINAL_TASKS = (TaskState.DONE, TaskState.ERROR, TaskState.CANCELLED)


class Detail(Struct, frozen=True):
    """A run with all that belongs to it."""

    run: BackupJobRun
    vms: list[BackupJobRunVm]
    #: by id of the VM's row
    resources: dict[str, list[BackupJobRunVmResource]]
    #: by id of the resource's row
    backups: dict[str, VmResourceBackup]
    #: what their tasks have in the cloud for the time being (`Task.temporary`), by id of the VM
    temporary: dict[str, list[dict[str, Any]]]


def create(session: Session, job: BackupJob, *, kind: BackupKind, trigger: Trigger, **more: Any) -> BackupJobRun:
    """A new run of a job, queued. The job counts it towards its next full one; a full one pays what the job owes."""
    given = {"user_id": job.user_id, **more}
    run = BackupJobRun(backupjob_id=job.id, project_id=job.project_id, kind=kind, trigger=trigger, **given)
    session.add(run)
    session.flush()
    values: dict[str, Any] = {"runs_since_full": _since_full(kind)}
    if kind == BackupKind.FULL:
        values["next_full_at"] = None
    rows.changed(session, update(BackupJob).where(BackupJob.id == job.id).values(**values))
    rows.reread(session, BackupJob)
    return run


def fire(
    session: Session, job: BackupJob, *, kind: BackupKind, next_run_at: int | None, missed: int = 0, **job_values: Any
) -> BackupJobRun | None:
    """Start the run for which `job` (as `jobs.due` read it) is due, and set the job's next time.

    None: another scheduler was first, the schedule was changed, or the job no longer fires. Fifty in one transaction
    take half the time of fifty transactions.
    """
    seen = BackupJob.id == job.id, BackupJob.state == JobState.ACTIVE, BackupJob.next_run_at == job.next_run_at
    values: dict[str, Any] = {"next_run_at": next_run_at, "runs_since_full": _since_full(kind), **job_values}
    if missed:
        values |= {"missed_runs": BackupJob.missed_runs + missed, "last_missed_at": now()}
    if rows.changed(session, update(BackupJob).where(*seen).values(**values)) == 0:
        return None
    run = BackupJobRun(
        backupjob_id=job.id,
        project_id=job.project_id,
        user_id=job.user_id,
        kind=kind,
        trigger=Trigger.SCHEDULE,
        scheduled_at=job.next_run_at,
    )
    # a clock that went back could bring a time again: the constraint has the last word
    return run if rows.inserted(session, run) else None


def pass_over(session: Session, job: BackupJob, *, next_run_at: int | None, missed: int, **job_values: Any) -> bool:
    """Let fire times go by without a run; `missed` of them are noted. False: the job was changed, or another scheduler
    was first."""
    seen = BackupJob.id == job.id, BackupJob.state == JobState.ACTIVE, BackupJob.next_run_at == job.next_run_at
    values: dict[str, Any] = {"next_run_at": next_run_at, **job_values}
    if missed:
        values |= {"missed_runs": BackupJob.missed_runs + missed, "last_missed_at": now()}
    return rows.changed(session, update(BackupJob).where(*seen).values(**values)) == 1


def retry(session: Session, failed: BackupJobRun, *, delay: float) -> BackupJobRun | None:
    """A new run in place of one that failed, not before `delay` seconds from now. None: there is one already."""
    run = BackupJobRun(
        backupjob_id=failed.backupjob_id,
        project_id=failed.project_id,
        user_id=failed.user_id,
        description=failed.description,
        kind=failed.kind,
        trigger=Trigger.RETRY,
        retry_of=failed.id,
        attempt=failed.attempt + 1,
        not_before=rows.clock(session) + round(delay * SECOND),
    )
    return run if rows.inserted(session, run) else None


def get(session: Session, project_id: str | None, id: str, *, job_id: str | None = None) -> BackupJobRun:
    """A run of this project (None: of any) and job. Raises `RowNotFound`, also for that of another."""
    mine = [] if project_id is None else [BackupJobRun.project_id == project_id]
    if job_id is not None:
        mine.append(BackupJobRun.backupjob_id == job_id)
    return rows.one(session, select(BackupJobRun).where(BackupJobRun.id == id, *mine), NOUN, id)


def listed(
    session: Session,
    project_id: str | None,
    wanted: Wanted,
    *,
    job_id: str | None = None,
    where: Sequence[ColumnElement[bool]] = (),
) -> Page[BackupJobRun]:
    """Raises `SortKeyUnknown`, `MarkerUnknown`."""
    # the job alone where there is one: its index has the order as well
    mine = []
    if job_id is not None:
        mine.append(BackupJobRun.backupjob_id == job_id)
    elif project_id is not None:
        mine.append(BackupJobRun.project_id == project_id)
    return page(session, select(BackupJobRun).where(*mine, *where), COLUMNS, wanted)


def detail(session: Session, run: BackupJobRun) -> Detail:
    """Five statements, however many VMs and disks."""
    of_run = BackupJobRunVm.backupjobrun_id == run.id
    vms = list(session.scalars(select(BackupJobRunVm).where(of_run).order_by(BackupJobRunVm.vm_id)))
    resources: dict[str, list[BackupJobRunVmResource]] = {vm.id: [] for vm in vms}
    statement = select(BackupJobRunVmResource).where(BackupJobRunVmResource.backupjobrun_vm_id.in_(list(resources)))
    for resource in session.scalars(statement.order_by(BackupJobRunVmResource.resource)):
        resources[resource.backupjobrun_vm_id].append(resource)
    backups = session.scalars(select(VmResourceBackup).where(VmResourceBackup.backupjobrun_id == run.id))
    tasks = select(Task.vm_id, Task.temporary).where(Task.backupjobrun_id == run.id, Task.clear_at.is_not(None))
    temporary = {vm_id: kept for vm_id, kept in session.execute(tasks) if vm_id is not None and kept}
    return Detail(run, vms, resources, {backup.backupjobrun_vm_resource_id: backup for backup in backups}, temporary)


def change(session: Session, id: str, version: int, **values: Any) -> None:
    """Change description or `protected` of a run that its reader knew at `version`. Raises `ChangedMeanwhile`."""
    rows.change_version(session, BackupJobRun, NOUN, id, version, values)


def queued(session: Session, limit: int) -> list[BackupJobRun]:
    """Runs that wait for slots, fair between projects: the first of each, then the second of each, and so on."""
    turn = func.row_number().over(
        partition_by=BackupJobRun.project_id, order_by=(BackupJobRun.created_at, BackupJobRun.id)
    )
    waiting = BackupJobRun.state == RunState.QUEUED, BackupJobRun.not_before <= now()
    inner = select(BackupJobRun, turn.label("turn")).where(*waiting).subquery()
    run = aliased(BackupJobRun, inner)
    statement = select(run).order_by(inner.c.turn, inner.c.created_at, inner.c.id).limit(limit)
    return list(session.scalars(statement))


def under_way(session: Session, job_id: str) -> list[BackupJobRun]:
    """Runs of a job that have not ended."""
    mine = BackupJobRun.backupjob_id == job_id, BackupJobRun.state.in_(UNDER_WAY)
    return list(session.scalars(select(BackupJobRun).where(*mine).order_by(BackupJobRun.created_at)))


def based(session: Session, job_ids: Sequence[str]) -> set[str]:
    """Jobs that an increment can build on: they have a restore point, whose oldest need not be the full run that the
    job began with, for that may be gone by its retention; or are about to have a full one."""
    mine = BackupJobRun.backupjob_id == BackupJob.id
    point = exists().where(mine, BackupJobRun.state.in_(POINTS))
    soon = exists().where(mine, BackupJobRun.kind == BackupKind.FULL, BackupJobRun.state.in_(_SOON))
    return set(session.scalars(select(BackupJob.id).where(BackupJob.id.in_(job_ids), or_(point, soon))))


def restore_points(session: Session, job_id: str) -> dict[str, bool]:
    """Restore points of a job by id, and whether each is protected."""
    mine = BackupJobRun.backupjob_id == job_id, BackupJobRun.state.in_(POINTS)
    found = session.execute(select(BackupJobRun.id, BackupJobRun.protected).where(*mine).order_by(BackupJobRun.id))
    return {id: protected for id, protected in found}  # noqa: C416 rows, not pairs


def request_cancel(session: Session, id: str) -> None:
    """Somebody wants the end of a run: a scheduler brings it about. Again is no harm.

    Raises `RowNotFound`, `StateConflict` for a run that may be durable already, or is over.
    """
    can = BackupJobRun.id == id, BackupJobRun.state.in_(CANCELLABLE)
    asked = func.coalesce(BackupJobRun.cancel_requested_at, now())
    if rows.changed(session, update(BackupJobRun).where(*can).values(cancel_requested_at=asked)) == 0:
        found = get(session, None, id).state
        if found == RunState.CANCELLING:
            return
        raise StateConflict(noun=NOUN, id=id, found=found, wanted=", ".join(CANCELLABLE), to=RunState.CANCELLED)
    rows.reread(session, BackupJobRun)


def begin_deleting(session: Session, id: str) -> None:
    """No restore point any more; a scheduler removes its copies, its objects and its row.

    Raises `RowNotFound`, `Protected`, `StateConflict` while it is under way.
    """
    if get(session, None, id).protected:
        raise Protected(id=id)
    free = {"it is protected": BackupJobRun.protected.is_(False)}
    transition(session, BackupJobRun, id, RunState.DELETING, start=ENDED, where=free)


def delete_ended(session: Session, job_id: str) -> int:
    """The same for all runs of a job that have ended, protected or not: the job itself goes. How many."""
    mine = BackupJobRun.backupjob_id == job_id
    return transition_all(session, BackupJobRun, RunState.DELETING, [mine], start=ENDED)


def of_number(session: Session, vault_id: str, number: int) -> str | None:
    """The run whose commit has, or is to have, a number."""
    mine = BackupJobRun.vault_id == vault_id, BackupJobRun.commit_number == number
    return session.scalars(select(BackupJobRun.id).where(*mine)).one_or_none()


# -- committing and deleting: by one scheduler at a time ----------------------------------------------


def own(session: Session, id: str, owner_id: str, seconds: float) -> int:
    """Become the one who commits or deletes a run, if nobody is or his lease is over. Returns the new epoch.

    Raises `StillNeeded` while another holds it.
    """
    free = or_(BackupJobRun.owner_id.is_(None), BackupJobRun.lease_until < now(), BackupJobRun.owner_id == owner_id)
    lease = now() + literal(round(seconds * SECOND))
    values = {"owner_id": owner_id, "lease_until": lease, "epoch": BackupJobRun.epoch + 1}
    if rows.changed(session, update(BackupJobRun).where(BackupJobRun.id == id, free).values(**values)) == 0:
        raise StillNeeded(noun=NOUN, id=id, found="owned by another scheduler", detail="its lease is not over")
    rows.reread(session, BackupJobRun)
    return get(session, None, id).epoch


def keep(session: Session, id: str, epoch: int, seconds: float) -> None:
    """Prolong the lease of `own`. Raises `EpochStale` when another took over."""
    mine = BackupJobRun.id == id, BackupJobRun.epoch == epoch
    lease = now() + literal(round(seconds * SECOND))
    if rows.changed(session, update(BackupJobRun).where(*mine).values(lease_until=lease)) == 0:
        raise EpochStale(noun=NOUN, id=id, found=get(session, None, id).epoch, given=epoch)


def postpone(session: Session, id: str, epoch: int, seconds: float) -> None:
    """Give up what `own` gave, for anybody to take it up again after so many seconds. Nothing if another took over."""
    mine = BackupJobRun.id == id, BackupJobRun.epoch == epoch
    later = now() + literal(round(seconds * SECOND))
    rows.changed(session, update(BackupJobRun).where(*mine).values(owner_id=None, lease_until=later))
    rows.reread(session, BackupJobRun)


def abandoned(session: Session, state: RunState, limit: int) -> list[BackupJobRun]:
    """Runs being committed (or deleted) whose owner is gone, or has never been; the newest commits first."""
    gone = or_(BackupJobRun.lease_until.is_(None), BackupJobRun.lease_until < now())
    order = BackupJobRun.commit_number.desc(), BackupJobRun.created_at
    statement = select(BackupJobRun).where(BackupJobRun.state == state, gone)
    return list(session.scalars(statement.order_by(*order).limit(limit)))


def take_number(session: Session, id: str, epoch: int, seen: int) -> int:
    """The number of a run's commit: the one that it has, or the next of its vault, whose last one the caller saw.

    Raises `EpochStale` when another took over, `ChangedMeanwhile`: look again which is the last.
    """
    run = get(session, None, id)
    if run.commit_number is not None:
        return run.commit_number
    number = vaults.take_number(session, run.vault_id or "", seen)
    mine = BackupJobRun.id == id, BackupJobRun.epoch == epoch, BackupJobRun.commit_number.is_(None)
    if rows.changed(session, update(BackupJobRun).where(*mine).values(commit_number=number)) == 0:
        raise EpochStale(noun=NOUN, id=id, found=get(session, None, id).epoch, given=epoch)
    rows.reread(session, BackupJobRun)
    return number


def publish(session: Session, id: str, epoch: int, *, commit_number: int, **values: Any) -> None:
    """Make a run a restore point, with all its disk copies: the database's half of the commit point.

    Raises `EpochStale`, `StateConflict`: a run is published by its owner, from COMMITTING, once; of copies only such
    that are in the making.
    """
    copies = session.scalars(select(VmResourceBackup.id).where(VmResourceBackup.backupjobrun_id == id)).all()
    for copy in copies:
        transition(session, VmResourceBackup, copy, BackupState.AVAILABLE, start={BackupState.CREATING})
    parents = select(VmResourceBackup.vm_resource_backup_backing_id).where(VmResourceBackup.backupjobrun_id == id)
    backing = [parent for parent in session.scalars(parents) if parent is not None]
    rows.changed(session, update(VmResourceBackup).where(VmResourceBackup.id.in_(backing)).values(top=False))
    rows.reread(session, VmResourceBackup)
    stored = select(func.coalesce(func.sum(VmResourceBackup.bytes_stored), 0))
    transition(
        session,
        BackupJobRun,
        id,
        RunState.AVAILABLE,
        start={RunState.COMMITTING},
        epoch=epoch,
        commit_number=commit_number,
        finished_at=now(),
        bytes_stored=stored.where(VmResourceBackup.backupjobrun_id == id).scalar_subquery(),
        **values,
    )


def points_of(session: Session, job_id: str) -> list[BackupJobRun]:
    """All restore points of a job, the oldest commit first."""
    mine = BackupJobRun.backupjob_id == job_id, BackupJobRun.state.in_(POINTS)
    return list(session.scalars(select(BackupJobRun).where(*mine).order_by(BackupJobRun.commit_number)))


def sum_progress(session: Session, id: str) -> None:
    """Bytes of the run := those of its disks."""
    disk = BackupJobRunVmResource
    of_run = disk.backupjobrun_vm_id == BackupJobRunVm.id, BackupJobRunVm.backupjobrun_id == id
    sums = {
        column.key: select(func.coalesce(func.sum(column), 0)).where(*of_run).scalar_subquery()
        for column in (disk.bytes_total, disk.bytes_done, disk.bytes_sent)
    }
    rows.changed(session, update(BackupJobRun).where(BackupJobRun.id == id).values(**sums))


def remove(session: Session, id: str, epoch: int) -> None:
    """Remove the rows of a run whose objects are gone from the vault; tombstones stay of its tasks.

    Raises `EpochStale`, `StateConflict` if it is not DELETING, `StillNeeded` if a copy is not, or a task is not over.
    """
    run = get(session, None, id)
    if run.epoch != epoch:
        raise EpochStale(noun=NOUN, id=id, found=run.epoch, given=epoch)
    if run.state != RunState.DELETING:
        raise StateConflict(noun=NOUN, id=id, found=run.state, wanted=RunState.DELETING, to="removed")
    copies = VmResourceBackup.backupjobrun_id == id
    for copy, state in session.execute(select(VmResourceBackup.id, VmResourceBackup.state).where(copies)):
        if state != BackupState.DELETING:
            raise StillNeeded(noun=NOUN, id=id, found=run.state, detail=f"its copy {copy} is {state}")
    left = select(Task.id).where(Task.backupjobrun_id == id, Task.clear_at.is_not(None))
    if (task := session.scalars(left).first()) is not None:
        raise StillNeeded(noun=NOUN, id=id, found=run.state, detail=f"its task {task} may have left something behind")
    _bury_tasks(session, run)
    telling.tell(session, Event.RUN_DELETE, BackupJobRun, id)
    # children first; what refers to a copy from another run makes this fail, as it should
    for noun in (VmResourceBackup, Barrier, Task):
        rows.changed(session, delete(noun).where(noun.backupjobrun_id == id))
    rows.changed(session, delete(BackupJobRun).where(BackupJobRun.id == id))


def _bury_tasks(session: Session, run: BackupJobRun) -> None:
    statement = select(Task.id, Task.state, Task.vault_id, Task.epoch).where(Task.backupjobrun_id == run.id)
    for task, state, vault, epoch in session.execute(statement).all():
        if state not in _TERMINAL_TASKS:
            raise StillNeeded(noun=NOUN, id=run.id, found=run.state, detail=f"its task {task} is {state}")
        if vault is not None:
            session.add(Tombstone(task_id=task, vault_id=vault, epoch=epoch))
    session.flush()


def _since_full(kind: BackupKind) -> Any:
    return 0 if kind == BackupKind.FULL else BackupJob.runs_since_full + 1
