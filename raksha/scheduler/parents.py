"""Which stored copies a VM's backup may use: parents, history, clones. All of them are pinned for its run.

    parent      of each disk, the newest copy of this job whose chain is whole
    history     other copies of the VM's disks, of any job, the newest first: chains of the parents among them
    clones      copies of disks on the same base images: a full copy may share their segments

Promises: whatever an order names, and all that it builds on, stays in the vault until the run is over. Whether a VM's
change tracker counts from a parent, its agent finds out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import blake3
from msgspec import Struct
from sqlalchemy.orm import Session

from raksha.db import backups
from raksha.db.backups import Known
from raksha.db.models import BackupJobRun
from raksha.scheduler.recording import recorded
from raksha.states import BackupKind, BackupState, PinHolder, Reason
from raksha.tasks import Copy, SeenDisk
from raksha.types import ResourceKey
from raksha.vault.recorded import RecordedCopy

#: copies of a disk that trackers may count from
_HISTORY = 16
#: disks on the same base image: they hold the same data, one would nearly do
_CLONES = 2


class Used(Struct, frozen=True):
    """What the order of one VM may use."""

    parents: dict[str, Copy]
    reasons: dict[str, Reason]
    history: tuple[Copy, ...]
    clones: tuple[Copy, ...]
    recorded: tuple[RecordedCopy, ...]


def base_key(path: str, size: int) -> str:
    """Names a base image, the same on every host: a copy of it bears another date there."""
    return blake3.blake3(f"{size} {path}".encode()).hexdigest()


def choose(session: Session, run: BackupJobRun, vault_id: str, vm_id: str, disks: Sequence[SeenDisk]) -> Used:
    """Copies for one VM of a run, pinned. Raises `StateConflict` if one went meanwhile: look again."""
    known = backups.of_vm(session, vault_id, vm_id)
    chains = {each.copy.id: chain for each in known if (chain := _chain(each, known)) is not None}
    parents: dict[str, Known] = {}
    reasons: dict[str, Reason] = {}
    for each in known:
        disk = each.copy.resource
        if disk in parents or each.copy.backupjob_id != run.backupjob_id or not each.is_point:
            continue
        if run.kind == BackupKind.FULL:
            reasons[disk] = Reason.ASKED
        elif each.copy.id in chains:
            parents[disk] = each
            reasons.pop(disk, None)
        else:
            reasons[disk] = Reason.PARENT_DAMAGED
    history = _history(known, parents, chains)
    clones = _clones(session, vault_id, vm_id, disks)
    wanted = [*parents.values(), *history, *clones]
    backups.pin(session, PinHolder.RUN, run.id, [each.copy.id for each in wanted])
    return Used(
        {disk: _named(each) for disk, each in parents.items()},
        reasons,
        _all_named(history),
        _all_named(clones),
        recorded(session, [each.copy.id for each in wanted]),
    )


def _chain(newest: Known, known: Sequence[Known]) -> list[Known] | None:
    """A copy and all that it builds on; None if any of it is not as it should be."""
    by_id = {each.copy.id: each for each in known}
    chain = []
    step: str | None = newest.copy.id
    while step is not None:
        each = by_id.get(step)
        if each is None or each.copy.state != BackupState.AVAILABLE:
            return None
        chain.append(each)
        step = each.copy.vm_resource_backup_backing_id
    return chain


def _history(
    known: Sequence[Known], parents: Mapping[str, Known], chains: Mapping[str, Sequence[Known]]
) -> list[Known]:
    """Newest first, without the parents themselves."""
    wanted: dict[str, Known] = {}
    for disk in {each.copy.resource for each in known}:
        mine = [each for each in known if each.copy.resource == disk and each.copy.state == BackupState.AVAILABLE]
        points = [each for each in mine if each.is_point][:_HISTORY]
        base = parents.get(disk) or next((each for each in points if each.copy.id in chains), None)
        for each in (*points, *(chains[base.copy.id] if base else ())):
            wanted[each.copy.id] = each
    for parent in parents.values():
        wanted.pop(parent.copy.id, None)
    return [each for each in known if each.copy.id in wanted]


def _clones(session: Session, vault_id: str, vm_id: str, disks: Sequence[SeenDisk]) -> list[Known]:
    found = []
    for key in sorted({base_key(disk.base.path, disk.base.size) for disk in disks if disk.base is not None}):
        found += backups.on_base(session, vault_id, key, limit=_CLONES, but_vm=vm_id)
    return found


def _named(each: Known) -> Copy:
    copy = each.copy
    key = ResourceKey(copy.backupjob_id, copy.backupjobrun_id, copy.vm_id, copy.resource)
    return Copy(key=key, size=copy.size, number=each.number)


def _all_named(found: Sequence[Known]) -> tuple[Copy, ...]:
    return tuple(map(_named, found))
