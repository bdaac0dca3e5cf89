"""A copy that builds on another comes to stand alone, so that the other can go. No data moves.

    image tables and a new map, under a task of its own         inert
    the row takes the new map, the task is done                 one transaction: of two that try, one does it
    Backup and BackupMetadata say so                            as the row says, whoever writes them, however often
    the old map is forgotten                                    once nobody has the copy pinned

Readers that began before read the old map and what it builds on: both stay until the last step. So whoever means to
delete a copy first takes that step (`settle`) for all that have built on it. Why the row comes before what a reader
sees: docs/adr/0007-consolidation-row-first.md.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from msgspec.structs import replace
from sqlalchemy.orm import Session

from raksha import crash
from raksha.db import backups, tasks
from raksha.db.columns import SECOND, now
from raksha.db.models import Task, VmResourceBackup
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import ObjectMissing
from raksha.scheduler.keeping import kept
from raksha.scheduler.recording import recorded
from raksha.states import BackupKind, PinHolder, TaskKind, TaskState
from raksha.types import ResourceKey
from raksha.vault.catalog import Catalog
from raksha.vault.metadata import BackupMetadata, MapReference
from raksha.vault.prune import show_disk, write_consolidated
from raksha.vault.recorded import Record

_log = logging.getLogger(__name__)


def stand_alone(database: Database, catalog: Catalog, copy: VmResourceBackup, spool: Path, seconds: float) -> None:
    """Make a full copy of one that builds on another. `seconds`: of the lease of the task that it is.

    Raises `StillNeeded`, `StateConflict`, `EpochStale` when it is not to be had now, `Damaged` if its chain cannot be
    read: then nothing has changed.
    """
    task = database.run(partial(_begin, copy=copy, seconds=seconds))
    renew = partial(database.run, partial(tasks.renew, id=task.id, epoch=task.epoch, seconds=seconds))
    try:
        with kept(renew, seconds):
            with database.reading() as session:
                known = catalog.recorded(Record(recorded(session, [copy.id]), only=True))
            full = write_consolidated(known, known.metadata(key_of(copy)), f"{task.id}.{task.epoch}", spool)
        with crash.around("consolidate.swap"):
            database.run(partial(_swap, task=task, copy=copy, full=full))
    except BaseException:
        database.run(partial(_give_up, task=task))
        raise
    told = {"action": "consolidate", "backupjobrun": copy.backupjobrun_id}
    _log.info("%s of VM %s stands alone now", copy.resource, copy.vm_id, extra=told)


def settle(database: Database, catalog: Catalog, copy: VmResourceBackup) -> None:
    """Take a consolidation to its end: the vault says what the row says, the old map is forgotten.

    Raises `StillNeeded` while somebody reads the copy, `Damaged`, `VaultError`.
    """
    wanted = metadata_of(catalog, copy)
    if catalog.metadata(key_of(copy)) != wanted:
        show_disk(catalog, wanted)
    database.run(partial(backups.forget_other, copy=copy))


def metadata_of(catalog: Catalog, copy: VmResourceBackup) -> BackupMetadata:
    """What `BackupMetadata` is to say of a copy whose row has another map than it."""
    found = catalog.metadata(key_of(copy))
    if copy.map_digest is None:
        raise ObjectMissing(name=f"the map of {copy.id}")
    if found.map.digest == copy.map_digest:
        return found
    return replace(
        found,
        kind=BackupKind.FULL,
        parent=None,
        map=MapReference(digest=copy.map_digest, size=copy.map_size),
        image_size=copy.image_size,
        volume=replace(found.volume, stored=copy.bytes_stored),
    )


def key_of(copy: VmResourceBackup) -> ResourceKey:
    return ResourceKey(copy.backupjob_id, copy.backupjobrun_id, copy.vm_id, copy.resource)


def _begin(session: Session, copy: VmResourceBackup, seconds: float) -> Task:
    """What is stored under a task that has not ended is nobody's garbage; what is read is pinned."""
    task = tasks.add(
        session, kind=TaskKind.CONSOLIDATE, project_id=copy.project_id, backupjobrun_id=copy.backupjobrun_id,
        vault_id=copy.vault_id, vm_id=copy.vm_id, order={"copy": copy.id},
    )  # fmt: skip
    transition(session, Task, task.id, TaskState.READY)
    transition(
        session, Task, task.id, TaskState.CLAIMED, start={TaskState.READY}, new_epoch=True,
        lease_until=now() + round(seconds * SECOND), started_at=now(),
    )  # fmt: skip
    chain = backups.chain(session, copy.id)
    backups.pin(session, PinHolder.CONSOLIDATE, task.id, [each.id for each in chain if each.state in backups.READABLE])
    return task


def _swap(session: Session, task: Task, copy: VmResourceBackup, full: BackupMetadata) -> None:
    tasks.finish(session, task.id, task.epoch, TaskState.DONE)
    backups.swap_map(
        session, copy.id, old=copy.map_digest or "", new=full.map.digest, map_size=full.map.size, backing_id=None,
        kind=BackupKind.FULL, image_size=full.image_size, bytes_stored=full.volume.stored,
    )  # fmt: skip
    backups.unpin(session, task.id)


def _give_up(session: Session, task: Task) -> None:
    """Nothing, if it is done, or was given up for it."""
    if tasks.get(session, task.id).state == TaskState.CLAIMED:
        tasks.finish(session, task.id, task.epoch, TaskState.ERROR)
    backups.unpin(session, task.id)
