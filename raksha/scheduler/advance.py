"""Runs whose tasks have been claimed or have ended move on.

    READY        a task was claimed                                     ->  RUNNING
    RUNNING      one failed, and the job says abort                     ->  the others are told to stop
    RUNNING      all have ended, well or well enough                    ->  COMMITTING, slots are kept
    RUNNING      all have ended, otherwise                              ->  ERROR, its hosts are told, perhaps a retry
    CANCELLING   all have ended                                         ->  CANCELLED, its hosts are told
    any          a task needs a person, the others have ended           ->  NEEDS_ATTENTION, until it does not

The commit itself, and what follows it, is not here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import backups, groups, jobs, runs, tasks
from raksha.db.columns import now
from raksha.db.models import BackupJob, BackupJobRun, BackupJobRunVm, Barrier, Task
from raksha.db.session import Database
from raksha.db.transition import transition, transition_all
from raksha.errors import StateConflict
from raksha.scheduler import releasing, retry
from raksha.scheduler.about import about_run
from raksha.states import BarrierState, Consistency, RunState, RunVmState, TaskKind, TaskState

_log = logging.getLogger(__name__)

#: runs that tasks can move
_MOVED = (RunState.READY, RunState.RUNNING, RunState.CANCELLING, RunState.NEEDS_ATTENTION)
#: runs looked at in one round
LOOKED_AT = 1000

_VM_STATES: Mapping[TaskState, RunVmState] = {
    TaskState.DONE: RunVmState.STORED,
    TaskState.ERROR: RunVmState.ERROR,
    TaskState.CANCELLED: RunVmState.CANCELLED,
    TaskState.NEEDS_ATTENTION: RunVmState.NEEDS_ATTENTION,
}


_UNSETTLED = (RunVmState.PENDING, RunVmState.RUNNING, RunVmState.NEEDS_ATTENTION)


class Advanced(Struct, frozen=True):
    """What one round did: how many runs came to which state."""

    moved: Mapping[RunState, int]


def advance(database: Database, settings: SchedulerSettings) -> Advanced:
    """One round over the runs that can move."""
    with database.reading() as session:
        active = BackupJobRun.state.in_(_MOVED)
        asked = (BackupJobRun.state == RunState.QUEUED) & BackupJobRun.cancel_requested_at.is_not(None)
        statement = select(BackupJobRun.id).where(active | asked).order_by(BackupJobRun.created_at)
        found = list(session.scalars(statement.limit(LOOKED_AT)))
        ids = [id for id in found if _may_move(session, id)]
    moved: dict[RunState, int] = {}
    for id in ids:
        with about_run(database, id):
            try:
                state = database.run(partial(settle, run_id=id, settings=settings))
            except StateConflict:  # another scheduler was first, or it was cancelled just now
                continue
            if state is not None:
                moved[state] = moved.get(state, 0) + 1
                _log.info("the run is %s", state, extra={"action": "advance"})
    return Advanced(moved)


def _may_move(session: Session, run_id: str) -> bool:
    """Cheaper than a transaction that writes: most runs have just one claimed task and are to be left alone."""
    run = runs.get(session, None, run_id)
    mine = _own(tasks.of_run(session, run_id))
    if run.state != RunState.RUNNING or run.cancel_requested_at is not None or groups.of_run(session, run_id):
        return True
    return any(task.state not in (TaskState.READY, TaskState.CLAIMED) for task in mine)


def settle(session: Session, run_id: str, settings: SchedulerSettings) -> RunState | None:
    """Bring one run as far as its tasks allow. The state it came to; None: it stays."""
    run = runs.get(session, None, run_id)
    job = jobs.get(session, None, run.backupjob_id)
    before = run.state
    mine = _own(tasks.of_run(session, run_id))
    _begin(session, run, mine)
    _stop(session, run, job, mine)
    mine = _own(tasks.of_run(session, run_id))
    _settle_vms(session, run_id, mine)
    if all(task.state in tasks.TERMINAL for task in mine):
        _end(session, run, job, mine, settings)
    elif all(task.state in (*tasks.TERMINAL, TaskState.NEEDS_ATTENTION) for task in mine):
        if run.state != RunState.NEEDS_ATTENTION:
            transition(session, BackupJobRun, run.id, RunState.NEEDS_ATTENTION, error=_first_error(mine))
    elif run.state == RunState.NEEDS_ATTENTION:
        transition(session, BackupJobRun, run.id, RunState.RUNNING, error=None)
    now_is = runs.get(session, None, run_id).state
    return None if now_is == before else now_is


def _own(found: Iterable[Task]) -> list[Task]:
    return [task for task in found if task.kind == TaskKind.BACKUP]


def _begin(session: Session, run: BackupJobRun, mine: list[Task]) -> None:
    claimed = [task.vm_id for task in mine if task.epoch > 0]
    if claimed and run.state == RunState.READY:
        # the first claim, which may have been a whole round ago
        began = min((task.started_at for task in mine if task.started_at is not None), default=now())
        transition(session, BackupJobRun, run.id, RunState.RUNNING, start={RunState.READY}, started_at=began)
    if claimed:
        of_run = BackupJobRunVm.backupjobrun_id == run.id, BackupJobRunVm.vm_id.in_(claimed)
        transition_all(session, BackupJobRunVm, RunVmState.RUNNING, of_run, start={RunVmState.PENDING})


def _stop(session: Session, run: BackupJobRun, job: BackupJob, mine: list[Task]) -> None:
    """Tell tasks to stop: somebody wants the run no more, or it cannot end well."""
    if run.cancel_requested_at is not None and run.state in (RunState.QUEUED, RunState.READY, RunState.RUNNING):
        if run.state == RunState.QUEUED:
            to = RunState.CANCELLED
            transition(session, BackupJobRun, run.id, to, start={RunState.QUEUED}, finished_at=now())
        else:
            transition(session, BackupJobRun, run.id, RunState.CANCELLING, start={run.state})
    unasked = [t for t in mine if t.state not in tasks.TERMINAL and t.cancel_requested_at is None]
    if unasked and (run.state == RunState.CANCELLING or _doomed(session, run, job, mine)):
        tasks.cancel(session, run_id=run.id)


def _doomed(session: Session, run: BackupJobRun, job: BackupJob, mine: list[Task]) -> bool:
    if job.on_vm_failure == "degrade":
        return False
    group = groups.of_run(session, run.id)
    failed = any(task.state in (TaskState.ERROR, TaskState.CANCELLED) for task in mine)
    return failed or (group is not None and group.state == BarrierState.FAILED)


def _settle_vms(session: Session, run_id: str, mine: list[Task]) -> None:
    statement = select(BackupJobRunVm).where(BackupJobRunVm.backupjobrun_id == run_id)
    vms = {vm.vm_id: vm for vm in session.scalars(statement)}
    for task in mine:
        vm, to = vms.get(task.vm_id or ""), _VM_STATES.get(task.state)
        if vm is None or to is None or vm.state == to or vm.state not in _UNSETTLED:
            continue
        if vm.state == RunVmState.PENDING and to in (RunVmState.STORED, RunVmState.NEEDS_ATTENTION):
            transition(session, BackupJobRunVm, vm.id, RunVmState.RUNNING, start={RunVmState.PENDING})
        if vm.state == RunVmState.NEEDS_ATTENTION and to == RunVmState.CANCELLED:
            to = RunVmState.ERROR
        transition(session, BackupJobRunVm, vm.id, to, error=task.error)


def _end(session: Session, run: BackupJobRun, job: BackupJob, mine: list[Task], settings: SchedulerSettings) -> None:
    if run.state == RunState.CANCELLED:
        return
    if run.state == RunState.CANCELLING:
        transition(session, BackupJobRun, run.id, RunState.CANCELLED, finished_at=now())
        let_go(session, run)
        return
    stored = [task for task in mine if task.state == TaskState.DONE]
    if stored and (len(stored) == len(mine) or job.on_vm_failure == "degrade"):
        group = groups.of_run(session, run.id)
        # what is taken from storage is no part of it
        whole = all(task.state == TaskState.DONE for task in mine if task.needs is None)
        together = group is None or (group.state == BarrierState.DONE and whole)
        if together or job.on_vm_failure == "degrade":
            consistent = None if group is None else together and _stood_still(session, run, group)
            transition(session, BackupJobRun, run.id, RunState.COMMITTING, group_consistent=consistent)
            return
        fail(session, run, job, group.error if group and group.error else _NO_GROUP, settings)
        return
    fail(session, run, job, _first_error(mine), settings)


def _stood_still(session: Session, run: BackupJobRun, group: Barrier) -> bool:
    """Whether no guest wrote anything from the first snapshot to the last: each was frozen, or did not run."""
    vms = select(BackupJobRunVm).where(BackupJobRunVm.backupjobrun_id == run.id)
    still = {vm.vm_id for vm in session.scalars(vms) if vm.consistency in (Consistency.OFFLINE, Consistency.PAUSED)}
    members = groups.members(session, group.id)
    captured = all(member.captured_at is not None for member in members)
    return captured and all(member.frozen_at is not None or member.vm_id in still for member in members)


_NO_GROUP = {"code": "group_failed", "message": "the VMs were not frozen together"}


def _first_error(mine: list[Task]) -> dict[str, Any]:
    """Of a task that failed by itself before those that were stopped because of it."""
    for state in (TaskState.ERROR, TaskState.NEEDS_ATTENTION):
        for task in mine:
            if task.state == state and task.error:
                return {**task.error, "vm_id": task.vm_id}
    return {"code": "task_failed", "message": "an agent failed and did not say why"}


def fail(
    session: Session,
    run: BackupJobRun,
    job: BackupJob,
    error: dict[str, Any],
    settings: SchedulerSettings,
    epoch: int | None = None,
) -> None:
    """End a run that is to become no restore point; queue another in its place if its job wants that.

    Its hosts are told, and its VMs are not to be had until they have heard. `epoch`: of whoever commits it. Raises
    `EpochStale`, `StateConflict`.
    """
    transition(session, BackupJobRun, run.id, RunState.ERROR, epoch=epoch, error=error, finished_at=now())
    let_go(session, run)
    retry.after(session, run, job, error, settings)


def let_go(session: Session, run: BackupJobRun) -> None:
    """What a run without result holds."""
    backups.fail(session, run.id)
    backups.unpin(session, run.id)
    releasing.tell_hosts(session, run, None)
    releasing.release_when_over(session, run.id)
