"""Makes restore points of runs whose tasks are done.

    own the run: a higher epoch, a lease            raksha.db.runs.own          another took it up: nothing
    is run.json there with our number?              then only the database is left
    the next number of the vault, noted with the run, one transaction           not before `epochs/<n>` was seen absent
    Backup, BackupMetadata, VMMetadata, epochs/<n>, run.json                    raksha.vault.commit.commit_numbered
    AVAILABLE with all its copies, pins let go, FINISH tasks, one transaction   raksha.db.runs.publish

Promises: killed or overtaken anywhere, the next one comes to the same result; who was overtaken writes what the other
writes, or nothing. A fault that may pass is met by trying again, later each time; the VMs of the run stay reserved. One
that will not pass (damage, a database older than the vault) ends the run with the error; a vault that is not as it was
does so after `max_wait`. A run is never failed after its `run.json` may be there.
"""

from __future__ import annotations

import logging
from functools import partial
from itertools import islice

from msgspec.structs import replace
from sqlalchemy import update
from sqlalchemy.orm import Session

from raksha import crash
from raksha.config_scheduler import SchedulerSettings
from raksha.db import backups, jobs, rows, runs, tasks, vaults
from raksha.db.columns import SECOND
from raksha.db.models import BackupJobRun, Task, VmResourceBackup
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import (
    ChangedMeanwhile,
    CommitUnknown,
    Damaged,
    DatabaseBehind,
    DatabaseBusy,
    DatabaseUnavailable,
    EpochStale,
    NotFound,
    ObjectCorrupt,
    RakshaError,
    Refused,
    StateConflict,
    StillNeeded,
)
from raksha.scheduler import advance, releasing
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.scheduler.draft import Draft, draft
from raksha.scheduler.places import writing
from raksha.scheduler.recording import note_machines
from raksha.states import BackupState, RunState, TaskKind
from raksha.vault.catalog import Catalog
from raksha.vault.commit import StoredDisk, check_epoch, commit_numbered, is_committed, put_epoch
from raksha.vault.metadata import BackupMetadata

_log = logging.getLogger(__name__)

#: seconds that one request to a vault is repeated before the run is put off
_PATIENCE = 30.0
#: seconds before a run is tried again; doubled each time
_FIRST, _LONGEST = 2.0, 300.0
_DOUBT = {"code": "damaged", "message": "while it was stored, damage was found in what it may build on"}
#: somebody else has it, or the database says no more for now: there is nothing to be told
_NOT_MINE = (EpochStale, StateConflict, StillNeeded, DatabaseUnavailable, DatabaseBusy, CommitUnknown)


def commit(
    database: Database, settings: SchedulerSettings, run_id: str, me: str, access: Access = ENVIRONMENT
) -> frozenset[str]:
    """Bring a run that is COMMITTING to its end, or put it off. Hosts that have something to claim now.

    `me`: names this scheduler. Raises nothing but what nobody thought of.
    """
    told = {"action": "commit", "backupjobrun": run_id}
    try:
        epoch = database.run(partial(_own, run_id=run_id, me=me, seconds=settings.commit_lease))
    except _NOT_MINE:
        return frozenset()
    try:
        return _commit(database, settings, run_id, epoch, access)
    except _NOT_MINE as error:
        _log.warning("run %s: %s", run_id, error, extra=told)
    except RakshaError as error:
        delay = min(_FIRST * 2.0 ** min(epoch, 16), _LONGEST)
        _log.warning("run %s is not committed yet, again in %.0f s: %s", run_id, delay, error, extra=told)
        database.run(partial(runs.postpone, id=run_id, epoch=epoch, seconds=delay))
    return frozenset()


def _commit(database: Database, settings: SchedulerSettings, run_id: str, epoch: int, access: Access) -> frozenset[str]:
    with database.reading() as session:
        found = draft(session, run_id)
        waited = (rows.clock(session) - found.run.created_at) / SECOND
    told = {"action": "commit", "backupjobrun": run_id}
    try:
        number = _write(database, settings, found, epoch, access)
    except (Refused, NotFound) as error:  # the vault is not as it was: somebody may put it right
        if isinstance(error, _NOT_MINE) or found.document.number or waited < settings.max_wait:
            raise
        number = error
    if isinstance(number, RakshaError):
        _log.error("run %s cannot be committed: %s", run_id, number, extra=told)
        return database.run(partial(_fail, found=found, epoch=epoch, error=number, settings=settings))
    with crash.around("commit.publish"):
        hosts = database.run(partial(_publish, found=found, epoch=epoch, number=number))
    _log.info("run %s is restore point %d of its vault", run_id, number, extra=told)
    return hosts


def _own(session: Session, run_id: str, me: str, seconds: float) -> int:
    epoch = runs.own(session, run_id, me, seconds)
    state = runs.get(session, None, run_id).state
    if state != RunState.COMMITTING:
        raise StateConflict(noun=runs.NOUN, id=run_id, found=state, wanted=RunState.COMMITTING, to="committed")
    return epoch


# -- the vault --------------------------------------------------------------------------------------


def _write(
    database: Database, settings: SchedulerSettings, found: Draft, epoch: int, access: Access
) -> int | RakshaError:
    """All objects of the run. Its number; or why there is no hope for it, `run.json` not being there."""

    def fence() -> None:
        database.run(partial(runs.keep, id=found.run.id, epoch=epoch, seconds=settings.commit_lease))

    credentials = access.credentials(database, found.vault, found.run.backupjob_id)
    with writing(found.vault, _PATIENCE, credentials) as catalog:
        document = found.document
        if document.number and is_committed(catalog, document):
            return document.number
        try:
            disks = [_stored(catalog, disk) for disk in found.disks]
            document = replace(document, number=_number(database, catalog, found, epoch))
            commit_numbered(catalog, document, disks, found.machines, fence)
        except Damaged as error:
            if document.number:
                put_epoch(catalog, document)  # the number is used up: no gap for those who count
            return error
        except DatabaseBehind as error:
            return error
        return document.number


def _stored(catalog: Catalog, disk: BackupMetadata) -> StoredDisk:
    """The part list as its map says. Raises `Damaged` if the map is not there, or is another."""
    reader = catalog.reader(disk)
    parts = tuple(islice(reader.parts(), catalog.store.manifest_limit))
    size = sum(part.size for part in parts)
    if size != disk.image_size:
        raise ObjectCorrupt(name=reader.name, detail=f"its image has {size} bytes, not {disk.image_size}")
    return StoredDisk(metadata=disk, parts=parts)


def _number(database: Database, catalog: Catalog, found: Draft, epoch: int) -> int:
    """Raises `DatabaseBehind` without taking one, if the vault has commits that the database does not know."""
    while True:
        with database.reading() as session:
            seen = vaults.get(session, found.vault.id).last_commit
        if not found.document.number:
            check_epoch(catalog, seen + 1, _taker(database, found.vault.id, seen + 1))
        try:
            with crash.around("commit.number"):
                return database.run(partial(runs.take_number, id=found.run.id, epoch=epoch, seen=seen))
        except ChangedMeanwhile:  # another run was committed at the same moment
            continue


def _taker(database: Database, vault_id: str, number: int) -> str | None:
    """The run that has a number by now: it was committed between two looks."""
    with database.reading() as session:
        return runs.of_number(session, vault_id, number)


# -- the database -----------------------------------------------------------------------------------


def _publish(session: Session, found: Draft, epoch: int, number: int) -> frozenset[str]:
    run = found.run
    nobodys = {"owner_id": None, "lease_until": None}
    runs.publish(session, run.id, epoch, commit_number=number, **found.facts, **nobodys)
    note_machines(session, run.id, found.machines)
    _doubt(session, run.id)
    backups.unpin(session, run.id)
    hosts = releasing.tell_hosts(session, runs.get(session, None, run.id), number)
    # definitions of VMs hold secrets: they are in the vault now
    mine = Task.backupjobrun_id == run.id, Task.kind == TaskKind.BACKUP
    rows.changed(session, update(Task).where(*mine).values(result=None))
    releasing.release_when_over(session, run.id)
    return frozenset(hosts)


def _doubt(session: Session, run_id: str) -> None:
    """Copies that were stored while what they build on, or may share data with, was found damaged: they are DEGRADED as
    well until a verification finds them whole. Jobs with such are the first that are looked at again."""
    lost = [copy for copy in backups.pinned_by(session, run_id) if copy.state == BackupState.DEGRADED]
    disks = {(copy.vm_id, copy.resource) for copy in lost}
    bases = {copy.base_image for copy in lost} - {None}
    doubtful = [
        copy.id for copy in backups.of_run(session, run_id)
        if (copy.vm_id, copy.resource) in disks or copy.base_image in bases
    ]  # fmt: skip
    for id in doubtful:
        transition(session, VmResourceBackup, id, BackupState.DEGRADED, start={BackupState.AVAILABLE})
    if doubtful:
        transition(session, BackupJobRun, run_id, RunState.DEGRADED, start={RunState.AVAILABLE}, error=_DOUBT)


def _fail(
    session: Session, found: Draft, epoch: int, error: RakshaError, settings: SchedulerSettings
) -> frozenset[str]:
    run = runs.get(session, None, found.run.id)
    # what was lost in the vault is stored again by the next run
    document = {**error.document(), "retryable": isinstance(error, Damaged)}
    advance.fail(session, run, jobs.get(session, None, run.backupjob_id), document, settings, epoch)
    told = [task for task in tasks.of_run(session, run.id) if task.kind == TaskKind.FINISH]
    return frozenset(task.host for task in told if task.host is not None)


def waiting(database: Database, limit: int) -> list[str]:
    """Runs to be committed that nobody works on."""
    with database.reading() as session:
        return [run.id for run in runs.abandoned(session, RunState.COMMITTING, limit)]
