"""What is known of restore points after their VMs were booted.

    proven      the VM says when, and how; one that did not come up before has since
    not proven  the VM says when, and why; what was proven earlier stays
    all proven  the run says so, and its job, from when the first of them was

A VM that could not be tried (no room, no memory, a vault that was away) tells nothing of the restore point: the
verification fails with that, and what the others showed counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from raksha.db import backups, rows, tasks, telling, verifications
from raksha.db.columns import now
from raksha.db.models import BackupJob, BackupJobRun, BackupJobRunVm, Task, Verification
from raksha.notifications import Event
from raksha.states import BootOutcome, RunVmState, Source, TaskState, VerificationState
from raksha.tasks import Booted

_FAILED = {"code": "task_failed", "message": "an agent failed and did not say why"}


def machines(session: Session, run_id: str) -> list[BackupJobRunVm]:
    """Its VMs that are stored, without volumes that stand in the place of one."""
    mine = BackupJobRunVm.backupjobrun_id == run_id, BackupJobRunVm.state == RunVmState.STORED
    statement = select(BackupJobRunVm).where(*mine, BackupJobRunVm.source != Source.VOLUME)
    return list(session.scalars(statement.order_by(BackupJobRunVm.vm_id)))


def entry(vm: BackupJobRunVm, booted: Booted | None = None) -> dict[str, Any]:
    """What a verification tells of a VM."""
    found = {"id": vm.vm_id, "name": vm.name, "outcome": None, "proven_by": None, "reason": None, "seconds": None}
    return found if booted is None else {**found, **msgspec.structs.asdict(booted)}


def settle(session: Session, id: str) -> None:
    """End one whose tasks have all ended. Nothing otherwise; again is no harm."""
    row = verifications.get(session, None, id)
    mine = tasks.of_verification(session, id)
    if row.state not in verifications.GOING or not {task.state for task in mine} <= set(tasks.TERMINAL):
        return
    if row.cancel_requested_at is None and not mine:
        return
    failed = next((task for task in mine if task.state == TaskState.ERROR), None)
    done = row.state == VerificationState.RUNNING and all(task.state == TaskState.DONE for task in mine)
    if mine and done:
        end(session, row, VerificationState.DONE, None)
    elif row.cancel_requested_at is not None:
        end(session, row, VerificationState.CANCELLED, None)
    else:
        end(session, row, VerificationState.ERROR, (failed.error if failed else None) or _FAILED)


def end(session: Session, row: Verification, to: VerificationState, error: dict[str, Any] | None) -> None:
    """With what came of those VMs that were booted. Raises `StateConflict`: another ended it."""
    booted = _booted(tasks.of_verification(session, row.id))
    run_id = row.backupjobrun_id or ""
    told = list(row.vms)
    known = {vm.vm_id: vm for vm in machines(session, run_id)}
    if booted:
        told = [entry(known[vm["id"]], booted.get(vm["id"])) if vm["id"] in known else vm for vm in told]
    verifications.end(session, row.id, to, error=error, vms=told)
    backups.unpin(session, row.id)
    for vm, found in booted.items():
        _note(session, run_id, vm, found)
    if booted:
        _sum_up(session, row, list(booted.values()))


def _booted(of: Sequence[Task]) -> dict[str, Booted]:
    done = [task for task in of if task.state == TaskState.DONE and task.vm_id is not None]
    return {str(task.vm_id): msgspec.convert(task.result, Booted) for task in done}


def _note(session: Session, run_id: str, vm_id: str, booted: Booted) -> None:
    mine = BackupJobRunVm.backupjobrun_id == run_id, BackupJobRunVm.vm_id == vm_id
    values: dict[str, Any] = {"unproven_at": now(), "unproven_reason": booted.reason}
    if booted.outcome == BootOutcome.PROVEN:
        values = {"proven_restorable_at": now(), "proven_by": booted.proven_by}
        values |= {"unproven_at": None, "unproven_reason": None}
    rows.changed(session, update(BackupJobRunVm).where(*mine).values(**values))
    rows.reread(session, BackupJobRunVm)


def _sum_up(session: Session, row: Verification, booted: Sequence[Booted]) -> None:
    run_id = row.backupjobrun_id or ""
    if any(each.outcome != BootOutcome.PROVEN for each in booted):
        telling.tell(session, Event.RUN_UNPROVEN, BackupJobRun, run_id)
        return
    since = [vm.proven_restorable_at for vm in machines(session, run_id)]
    if None in since:  # others of it have not been booted yet
        return
    at = min(each for each in since if each is not None)
    rows.changed(session, update(BackupJobRun).where(BackupJobRun.id == run_id).values(proven_restorable_at=at))
    rows.reread(session, BackupJobRun)
    older = or_(BackupJob.proven_restorable_at.is_(None), BackupJob.proven_restorable_at < at)
    mine = update(BackupJob).where(BackupJob.id == row.backupjob_id, older)
    rows.changed(session, mine.values(proven_restorable_at=at, proven_run_id=run_id))
    rows.reread(session, BackupJob)
    telling.tell(session, Event.RUN_PROVEN, BackupJobRun, run_id)
