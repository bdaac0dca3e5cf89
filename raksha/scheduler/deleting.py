"""Removes runs that are DELETING: whoever builds on them stands alone first, then they wait in the trash, then they go.

    own the run                                     raksha.db.runs.own          another is at it: nothing
    copies of other runs that build on mine         consolidated; not there yet, or on their way out: later again
    my copies TRASHED                               nobody new gets them; who reads one reads on
    so many seconds later, and nobody reads them    DELETING: no way back
    run.json, then all that it named                from the vault
    the rows                                        tombstones of its tasks stay until their segments are collected

Promises: broken off anywhere, what is left restores or is gone, and the next one goes on. Segments are left to the
collection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha import crash
from raksha.config_scheduler import SchedulerSettings
from raksha.db import backups, jobs, rows, runs, vaults
from raksha.db.columns import SECOND
from raksha.db.models import BackupJobRunVm, Vault, VmResourceBackup
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import (
    CommitUnknown,
    Damaged,
    DatabaseBusy,
    DatabaseUnavailable,
    EpochStale,
    IdentityUnavailable,
    RakshaError,
    RowNotFound,
    StateConflict,
    StillNeeded,
    TrustBroken,
)
from raksha.scheduler import clearing, consolidating
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.scheduler.keeping import kept
from raksha.scheduler.places import writing
from raksha.states import BackupState, RunState
from raksha.vault import names
from raksha.vault.catalog import Catalog
from raksha.vault.commit import assert_writer

_log = logging.getLogger(__name__)

_PATIENCE = 30.0
#: seconds until somebody looks again at what others still need
_SOON, _LATER, _LONGEST = 15.0, 600.0, 3600.0
_GONE = (EpochStale, RowNotFound, DatabaseUnavailable, DatabaseBusy, CommitUnknown)


class _Victim(Struct, frozen=True):
    """A run on its way out."""

    id: str
    epoch: int
    #: that it is owned without a sign of its owner
    seconds: float
    backupjob: str
    vault: Vault | None
    copies: list[VmResourceBackup]
    vms: list[str]


def delete(database: Database, settings: SchedulerSettings, run_id: str, me: str, access: Access = ENVIRONMENT) -> bool:
    """Bring a run that is DELETING as far as it goes now. Whether it is gone. Raises nothing but what nobody thought
    of."""
    told = {"action": "delete", "backupjobrun": run_id}
    try:
        victim = database.run(partial(_own, run_id=run_id, me=me, seconds=settings.commit_lease))
    except (*_GONE, StateConflict, StillNeeded):
        return False
    try:
        with kept(partial(_keep, database, victim), victim.seconds):
            left = _delete(database, settings, victim, access)
    except _GONE as error:
        _log.warning("run %s: %s", run_id, error, extra=told)
    except (StillNeeded, StateConflict) as error:
        _log.debug("run %s cannot go yet: %s", run_id, error, extra=told)
        _put_off(database, victim, _SOON)
    except RakshaError as error:
        _log.warning("run %s cannot be deleted yet: %s", run_id, error, extra=told)
        _put_off(database, victim, _LATER)
    else:
        if left is None:
            _log.info("run %s is gone", run_id, extra=told)
            return True
        _put_off(database, victim, min(left, _LONGEST))
    return False


def waiting(database: Database, limit: int) -> list[str]:
    """Runs to be deleted that nobody works on; the newest first, as others may build on the older ones."""
    with database.reading() as session:
        return [run.id for run in runs.abandoned(session, RunState.DELETING, limit)]


def remove_jobs(
    database: Database,
    limit: int = 100,
    access: Access = ENVIRONMENT,
    collect: Callable[[Vault], object] = lambda _: True,
) -> int:
    """Jobs on their way out: their ended runs go, then what stayed of them in the cloud and their trusts, and at last
    their rows. How many are gone.

    `collect`: the garbage of a vault, None if it could not; called before the last trust that opens it is ended.
    """
    gone = 0
    with database.reading() as session:
        found = {
            job.id: (job.project_id, [each for each in (*job.former_trusts, job.trust_id) if each is not None])
            for job in jobs.deleting(session, limit)
        }
    for id, (project_id, trusts) in found.items():
        database.run(partial(runs.delete_ended, job_id=id))
        with database.reading() as session:
            if jobs.has_runs(session, id):
                continue
            able = jobs.trusts(session, project_id, id)
            last = bool(trusts) and set(able) <= set(trusts)
            opened = [each for each in vaults.all_vaults(session) if each.project_id == project_id and each.vault_uuid]
        try:
            # nobody could do that later
            if last and not all(_collected(access, database, vault, id, collect) for vault in opened):
                continue
            if trusts and clearing.remove_kept(access, able, id) == clearing.SOON:
                continue
            for trust in trusts:
                access.end(trust)
            database.run(partial(jobs.remove, id=id, ended=trusts))
        except IdentityUnavailable as error:
            _log.warning("the trust of job %s cannot be ended yet: %s", id, error, extra={"backupjob": id})
            continue
        except (StillNeeded, RowNotFound):
            continue
        gone += 1
    return gone


def _collected(
    access: Access, database: Database, vault: Vault, job_id: str, collect: Callable[[Vault], object]
) -> bool:
    """Or there is no hope for it. Raises `IdentityUnavailable`."""
    try:
        if access.credentials(database, vault, job_id) is None:
            return True  # it is opened without trusts
    except TrustBroken:
        return True
    return collect(vault) is not None


def _put_off(database: Database, victim: _Victim, seconds: float) -> None:
    database.run(partial(runs.postpone, id=victim.id, epoch=victim.epoch, seconds=seconds))


def _own(session: Session, run_id: str, me: str, seconds: float) -> _Victim:
    epoch = runs.own(session, run_id, me, seconds)
    run = runs.get(session, None, run_id)
    if run.state != RunState.DELETING:
        raise StateConflict(noun=runs.NOUN, id=run_id, found=run.state, wanted=RunState.DELETING, to="removed")
    vault = None if run.vault_id is None else vaults.get(session, run.vault_id)
    of_run = BackupJobRunVm.backupjobrun_id == run_id
    vms = list(session.scalars(select(BackupJobRunVm.vm_id).where(of_run)))
    return _Victim(run_id, epoch, seconds, run.backupjob_id, vault, backups.of_run(session, run_id), vms)


def _delete(database: Database, settings: SchedulerSettings, victim: _Victim, access: Access) -> float | None:
    """None: it is gone; otherwise the seconds that it stays in the trash. Raises `StillNeeded`: not yet."""
    if victim.vault is not None and victim.vault.vault_uuid is not None:
        credentials = access.credentials(database, victim.vault, victim.backupjob)
        with writing(victim.vault, _PATIENCE, credentials) as catalog:
            _free(database, catalog, victim, victim.vault.id, settings)
            left = database.run(partial(_trash, victim=victim, seconds=settings.trash_seconds))
            if left > 0:
                return left
            with crash.around("delete.copies"):
                database.run(partial(_begin, victim=victim))
            _empty(database, catalog, victim)
    with crash.around("delete.rows"):
        database.run(partial(runs.remove, id=victim.id, epoch=victim.epoch))
    return None


def _keep(database: Database, victim: _Victim) -> None:
    """Raises `EpochStale` when another took over."""
    database.run(partial(runs.keep, id=victim.id, epoch=victim.epoch, seconds=victim.seconds))


# -- others -----------------------------------------------------------------------------------------


def _free(database: Database, catalog: Catalog, victim: _Victim, vault_id: str, settings: SchedulerSettings) -> None:
    """Nobody builds on it any more, in the database and in the vault. Raises `StillNeeded`: not yet."""
    with database.reading() as session:
        on_mine = [child for copy in victim.copies for child in backups.children(session, copy.id)]
    for child in on_mine:
        if child.state != BackupState.AVAILABLE or child.other_map_digest is not None:
            continue  # what becomes of it is decided elsewhere; `_trash` sees whether it is still there
        _keep(database, victim)
        if not _on_its_way_out(database, child):
            consolidating.stand_alone(database, catalog, child, settings.spool(), settings.commit_lease)
    for vm in victim.vms:
        with database.reading() as session:
            swapped = backups.swapped(session, vault_id, vm)
        for copy in swapped:
            if copy.state in backups.READABLE:
                _settle(database, catalog, copy)
            elif copy.pin_count:  # its reader may have begun before it stood alone
                raise StillNeeded(noun=backups.NOUN, id=copy.id, found=copy.state, detail="somebody reads it")


def _settle(database: Database, catalog: Catalog, copy: VmResourceBackup) -> None:
    try:
        consolidating.settle(database, catalog, copy)
    except Damaged:
        # its `Backup` cannot be made any more, as data of it is lost. Where it goes itself nobody needs that, and it
        # would keep all others of its VM from going
        if not _on_its_way_out(database, copy) or copy.pin_count:
            raise


def _on_its_way_out(database: Database, child: VmResourceBackup) -> bool:
    with database.reading() as session:
        return runs.get(session, None, child.backupjobrun_id).state == RunState.DELETING


# -- itself -----------------------------------------------------------------------------------------


def _trash(session: Session, victim: _Victim, seconds: float) -> float:
    """TRASHED for as long as the operator says. Seconds that are left."""
    backups.fail(session, victim.id)
    latest = 0
    for copy in backups.of_run(session, victim.id):
        if copy.state in backups.READABLE:
            backups.trash(session, copy.id)
        latest = max(latest, backups.get(session, copy.id).trashed_at or 0)
    return (latest - rows.clock(session)) / SECOND + seconds if latest and seconds else 0.0


def _begin(session: Session, victim: _Victim) -> None:
    """All of them or none: raises `StillNeeded` while one is read, or others build on it."""
    for copy in backups.of_run(session, victim.id):
        if copy.state == BackupState.TRASHED:
            backups.begin_deleting(session, copy.id)
        elif copy.state == BackupState.ERROR:
            transition(session, VmResourceBackup, copy.id, BackupState.DELETING, start={BackupState.ERROR})


def _empty(database: Database, catalog: Catalog, victim: _Victim) -> None:
    """Newest object first, so that an interruption never leaves half a run visible."""
    assert_writer(catalog)
    for name in _objects(victim):
        _keep(database, victim)
        catalog.store.delete(name)


def _objects(victim: _Victim) -> Iterator[str]:
    yield names.run(victim.backupjob, victim.id)
    for vm in victim.vms:
        yield names.vm_metadata(victim.backupjob, victim.id, vm)
    for copy in victim.copies:
        key = consolidating.key_of(copy)
        yield names.metadata(key)
        yield names.image(key)
    for copy in victim.copies:
        for digest in (copy.map_digest, copy.other_map_digest):
            if digest is not None:
                yield names.map_object(consolidating.key_of(copy), digest)
