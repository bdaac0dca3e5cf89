"""What follows, in the same transaction, from what an agent says about a task: rows of disks, progress, ends.

The rows of a backup's disks are made when its agent says that they are stored: only then it is known which disks there
were, and what each copy builds on. What the agent says is compared with what it was asked; a copy may build on nothing
but what was pinned for it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.db import backups, rows, runs, vaults
from raksha.db.columns import SECOND
from raksha.db.models import BackupJobRun, BackupJobRunVm, BackupJobRunVmResource, Task, VmResourceBackup
from raksha.errors import ResultInvalid
from raksha.scheduler import releasing, restoring, temporary, verifying
from raksha.scheduler.parents import base_key
from raksha.states import BackupKind, TaskKind, TaskState
from raksha.tasks import BackupOrder, Booted, Finish, Finished, Report, Restored, Stored, Verified
from raksha.types import ResourceKey
from raksha.vault.metadata import BackupMetadata

_RESULTS: dict[TaskKind, type[msgspec.Struct]] = {
    TaskKind.BACKUP: Stored,
    TaskKind.FINISH: Finished,
    TaskKind.RELEASE: Finished,
    TaskKind.RESTORE: Restored,
    TaskKind.VERIFY: Verified,
    TaskKind.BOOT: Booted,
}


def begun(session: Session, task: Task) -> None:
    """An agent has claimed it."""
    if task.restore_id is not None:
        restoring.begun(session, task.restore_id, task.epoch)
    elif task.verification_id is not None:
        verifying.begun(session, task.verification_id)
    elif task.kind == TaskKind.BACKUP and task.needs is not None:
        mine = BackupJobRunVm.backupjobrun_id == task.backupjobrun_id, BackupJobRunVm.vm_id == task.vm_id
        rows.changed(session, update(BackupJobRunVm).where(*mine).values(host=task.host))
        rows.reread(session, BackupJobRunVm)


def progress(session: Session, task: Task, said: Report) -> None:
    """An agent has told how far it is."""
    if task.kind in (TaskKind.BACKUP, TaskKind.FINISH) and said.made:
        temporary.told(session, task, said)
    if task.restore_id is not None:
        restoring.progress(session, task.restore_id, said)
    elif task.verification_id is not None:
        verifying.progress(session, task.verification_id, said)
    elif task.kind == TaskKind.BACKUP and task.backupjobrun_id is not None and said.disks:
        vm = _vm_of(session, task)
        for disk in said.disks:
            done = {"bytes_total": disk.total, "bytes_done": disk.done, "bytes_sent": disk.sent}
            _disk(session, vm, disk.resource, size=disk.size, **done)
        runs.sum_progress(session, task.backupjobrun_id)


def problem(task: Task, said: Finish) -> ResultInvalid | None:
    """Why what is said to be done is not what was asked for."""
    if said.to != TaskState.DONE:
        return None
    detail = None
    if not isinstance(said.result, _RESULTS[task.kind]):
        detail = f"a {task.kind} does not end with {type(said.result).__name__}"
    elif isinstance(said.result, Stored):
        detail = _not_ordered(msgspec.convert(task.order, BackupOrder), said.result)
    return None if detail is None else ResultInvalid(host=task.host, vm=task.vm_id, detail=detail)


def _not_ordered(order: BackupOrder, stored: Stored) -> str | None:
    named = [disk.resource for disk in stored.disks]
    if (stored.vm.vm, stored.machine.vm) != (order.vm, order.vm):
        return "it is of another VM"
    if not named or len(set(named)) != len(named):
        return "no disk, or one of them twice"
    if sorted(named) != sorted(resource.resource for resource in stored.vm.resources):
        return "its summary has other disks"
    for disk in stored.disks:
        if disk.resource_key != ResourceKey(order.backupjob, order.backupjobrun, order.vm, disk.resource):
            return f"disk {disk.resource} is of another run"
        if (disk.parent is None) != (disk.kind == BackupKind.FULL):
            return f"disk {disk.resource} is {disk.kind} and its parent {disk.parent}"
        parent = order.parents.get(disk.resource)
        if disk.parent is not None and (parent is None or parent.key.backupjobrun != disk.parent):
            return f"disk {disk.resource} builds on {disk.parent}, which was not given to it"
    return None


def ended(session: Session, task: Task, said: Finish | None) -> None:
    """A claim has ended, whatever way."""
    if task.restore_id is not None:
        restoring.settle(session, task.restore_id)
    elif task.kind == TaskKind.BACKUP and said is not None and isinstance(said.result, Stored):
        if task.state == TaskState.DONE:
            _stored(session, task, said.result)
    elif task.kind == TaskKind.FINISH and task.backupjobrun_id is not None:
        if said is not None and isinstance(said.result, Finished):
            _warn(session, task, said.result.warnings)
        releasing.release_when_over(session, task.backupjobrun_id)


# -- stored disks -----------------------------------------------------------------------------------


def _stored(session: Session, task: Task, stored: Stored) -> None:
    vm = _vm_of(session, task)
    summary = stored.vm
    mine = update(BackupJobRunVm).where(BackupJobRunVm.id == vm.id)
    facts: dict[str, Any] = {
        "name": summary.name,
        "engine": summary.engine,
        "power": summary.power,
        "consistency": summary.consistency,
        "taken_at": round(summary.taken_at * SECOND),
        "frozen_seconds": summary.frozen_seconds,
        "warnings": list(stored.warnings),
        "server": None if stored.machine.server is None else msgspec.to_builtins(stored.machine.server),
    }
    rows.changed(session, mine.values(**facts))
    for disk in stored.disks:
        # what was to be read has been read
        read = {"bytes_total": disk.volume.read, "bytes_done": disk.volume.read, "bytes_sent": disk.volume.sent}
        row = _disk(
            session, vm, disk.resource,
            size=disk.size, kind=disk.kind, mode=disk.mode, reason=disk.reason, facts=dict(disk.facts), **read,
        )  # fmt: skip
        _copy(session, task, row, disk)
    runs.sum_progress(session, vm.backupjobrun_id)


def _copy(session: Session, task: Task, disk: BackupJobRunVmResource, of: BackupMetadata) -> None:
    vault = vaults.get(session, task.vault_id or "")
    parent = None if of.parent is None else _copy_of(session, of.parent, of.vm, of.resource)
    base = of.base_image
    backups.create(
        session, disk, vault,
        vm_resource_backup_backing_id=parent,
        vault_service_metadata={"backupjob": of.backupjob, "backupjobrun": of.backupjobrun, "vm": of.vm},
        backupjob_id=of.backupjob, backupjobrun_id=of.backupjobrun, vm_id=of.vm,
        kind=of.kind, size=of.size, cluster_size=of.cluster_size, key_id=of.key_id,
        map_digest=of.map.digest, map_size=of.map.size, image_size=of.image_size,
        base_image=None if base is None else base_key(base.path, base.size),
        bytes_read=of.volume.read, bytes_data=of.volume.data, bytes_sent=of.volume.sent,
        bytes_stored=of.volume.stored, taken_at=round(of.taken_at * SECOND),
    )  # fmt: skip


def _copy_of(session: Session, run_id: str, vm_id: str, resource: str) -> str:
    mine = VmResourceBackup.backupjobrun_id == run_id, VmResourceBackup.vm_id == vm_id
    statement = select(VmResourceBackup.id).where(*mine, VmResourceBackup.resource == resource)
    return session.scalars(statement).one()


def _vm_of(session: Session, task: Task) -> BackupJobRunVm:
    mine = BackupJobRunVm.backupjobrun_id == task.backupjobrun_id, BackupJobRunVm.vm_id == task.vm_id
    return rows.one(session, select(BackupJobRunVm).where(*mine), "VM of a run", str(task.vm_id))


def _disk(session: Session, vm: BackupJobRunVm, resource: str, **values: Any) -> BackupJobRunVmResource:
    """The row of a disk with these values; made where it is not there yet."""
    mine = BackupJobRunVmResource.backupjobrun_vm_id == vm.id, BackupJobRunVmResource.resource == resource
    row = BackupJobRunVmResource(backupjobrun_vm_id=vm.id, resource=resource, **values)
    if session.scalars(select(BackupJobRunVmResource.id).where(*mine)).first() is None and rows.inserted(session, row):
        return row
    rows.changed(session, update(BackupJobRunVmResource).where(*mine).values(**values))
    rows.reread(session, BackupJobRunVmResource)
    return rows.one(session, select(BackupJobRunVmResource).where(*mine), "disk of a run", resource)


def _warn(session: Session, task: Task, warnings: tuple[str, ...]) -> None:
    if warnings:
        run = runs.get(session, None, task.backupjobrun_id or "")
        told = [*run.warnings, *[f"{task.vm_id}: {warning}" for warning in warnings]]
        rows.changed(session, update(BackupJobRun).where(BackupJobRun.id == run.id).values(warnings=told))
        rows.reread(session, BackupJobRun)
