"""What stands in a vault becomes rows again: after the database was lost, or was restored from an older dump.

    vault.json      the row of the vault, under the id that its writer has there; another writer only if told to
    run.json        in the order of commits: the job if it is unknown (paused, by hand only), the run, its VMs and disks
    BackupMetadata  the stored copies, each on what it builds on
    segments        tasks that nobody knows any more get tombstones, so that their garbage can be collected
    epochs          the number of the last commit, last of all: before that schedulers refuse (`database_behind`)

Each restore point is one transaction, and one that is known is left alone, so it may be broken off and done again.
Promises: nothing in the vault is changed (but its writer, where that is asked for); a point that lacks a document, or
what it builds on, is told and left out, as are all that build on it.
Not here: schedules, retention, users and limits. The vault does not have them. From here on the database's word counts
again: import only from a vault that nobody else could write to, or look at what came of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial

import msgspec
from msgspec import Struct
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.db import jobs, rows, vaults
from raksha.db.columns import SECOND
from raksha.db.models import (
    BackupJob,
    BackupJobRun,
    BackupJobRunVm,
    BackupJobRunVmResource,
    BackupJobVm,
    Task,
    Tombstone,
    Vault,
    VaultService,
    VmResourceBackup,
)
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import ChangedMeanwhile, Damaged, ParentMissing, VaultForeign, VaultWriterOther
from raksha.scheduler.draft import STRENGTH
from raksha.scheduler.parents import base_key
from raksha.scheduler.places import writer
from raksha.states import BackupKind, BackupState, Consistency, JobState, RunState, RunVmState, Source, Trigger
from raksha.vault import names
from raksha.vault.catalog import Catalog
from raksha.vault.collect import SEGMENT
from raksha.vault.commit import open_catalog_for_writing
from raksha.vault.metadata import BackupMetadata, RunDocument, VMMetadata, VmSummary, decode
from raksha.vault.recorded import digest_of
from raksha.vault.store import BACKUPS, SEGMENTS, Store

#: ids that services make; those of local mode may be any name, and the API could not address them
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: the engine of what is taken from storage
_STORAGE = "storage"
_AT_ONCE = 500
#: ids in the database
_LONGEST = 36


class Imported(Struct, frozen=True):
    """What came of it, or would."""

    vault: str
    #: ids of jobs and runs that were unknown
    jobs: tuple[str, ...]
    runs: tuple[str, ...]
    #: how many were known
    known: int
    #: why others were left out, by run (or by the object that should tell of it)
    left_out: dict[str, str]


class _Point(Struct, frozen=True):
    """All that the vault has of a restore point."""

    document: RunDocument
    copies: dict[tuple[str, str], BackupMetadata]
    #: by VM, with the digest of the document
    machines: dict[str, tuple[VMMetadata, str]]


def import_vault(
    database: Database,
    service: VaultService,
    project_id: str,
    store: Store,
    *,
    take_over: bool = False,
    dry_run: bool = False,
) -> Imported:
    """`store`: the project's vault at `service`, opened. `dry_run`: nothing is written.

    Raises `VaultNotFound`, `VaultWriterOther`: it is not this deployment's (`take_over`: it will be);
    `ChangedMeanwhile`: the project has another vault at that service; `VaultForeign`: what stands there is of another
    project; and what stores raise.
    """
    catalog = Catalog.open(store)
    vault = _vault(database, service, project_id, catalog, take_over, dry_run)
    found = catalog.listing()
    left_out = {name: str(error) for name, error in found.damaged.items()}
    made: dict[str, None] = {}
    added: list[str] = []
    known = 0
    lost = set[str]()
    for document in found.runs:
        why = _unfit(document) or _parent_lost(document, lost)
        if why is None:
            with database.reading() as session:
                there = session.get(BackupJobRun, document.backupjobrun)
                job = session.get(BackupJob, document.backupjob)
            if there is not None:
                known += 1
                continue
            if job is not None and job.project_id != project_id:
                raise VaultForeign(url=store.url, detail=f"job {job.id} is of project {job.project_id}")
            try:
                point = _read(catalog, document)
                if not dry_run:
                    database.run(partial(_add, vault=vault, point=point))
            except Damaged as error:
                why = str(error)
            else:
                added.append(document.backupjobrun)
                if job is None:
                    made[document.backupjob] = None
        if why is not None:
            lost.add(document.backupjobrun)
            left_out[document.backupjobrun] = why
    if not dry_run:
        newest = {run.backupjob: run for run in found.runs if run.backupjobrun not in lost}
        database.run(partial(_name_members, newest=newest))
        _bury(database, vault, store)
        database.run(partial(_set_number, vault=vault, number=_last(store, found.runs)))
    return Imported(vault.id, tuple(made), tuple(added), known, left_out)


# -- the vault --------------------------------------------------------------------------------------


def _vault(
    database: Database, service: VaultService, project_id: str, catalog: Catalog, take_over: bool, dry_run: bool
) -> Vault:
    """Its row, made where there is none."""
    document = catalog.vault
    with database.reading() as session:
        mine = Vault.vault_service_id == service.id, Vault.project_id == project_id
        row = session.scalars(select(Vault).where(*mine)).one_or_none()
        others = session.scalars(select(Vault).where(Vault.id == document.writer.id)).one_or_none()
    if row is not None and row.vault_uuid not in (None, document.id):
        raise ChangedMeanwhile(noun=vaults.NOUN, id=row.id, found=row.vault_uuid, given=document.id)
    if row is None and others is not None:
        raise VaultForeign(url=catalog.store.url, detail=f"it is that of project {others.project_id}")
    own = document.writer.kind == "service" and (row is None or row.id == document.writer.id)
    if not own and not take_over:
        told = f"{document.writer.name} ({document.writer.kind} {document.writer.id})"
        raise VaultWriterOther(url=catalog.store.url, writer=told)
    made = row or Vault(vault_service_id=service.id, project_id=project_id, url=catalog.store.url)
    if row is None and own:
        made.id = document.writer.id
    if dry_run:
        made.id = made.id or "(new)"
        return made
    if row is None:
        database.run(lambda session: _insert_vault(session, made))
    if not own:
        open_catalog_for_writing(catalog.store, writer(made), take_over=True)
    database.run(lambda session: vaults.established(session, made.id, document.id))
    return made


def _insert_vault(session: Session, made: Vault) -> None:
    session.add(made)
    session.flush()
    session.refresh(made)


def _set_number(session: Session, vault: Vault, number: int) -> None:
    older = Vault.id == vault.id, Vault.last_commit < number
    rows.changed(session, update(Vault).where(*older).values(last_commit=number))


def _last(store: Store, found: list[RunDocument]) -> int:
    """Of all commits that were ever begun: a number is used once."""
    prefix = names.EPOCHS.removeprefix(f"{BACKUPS}/")
    told = (name.rpartition("/")[2] for name in store.names(BACKUPS, prefix))
    return max([0, *(run.number for run in found), *(int(name) for name in told if name.isdigit())])


# -- restore points ---------------------------------------------------------------------------------


def _unfit(document: RunDocument) -> str | None:
    odd = next((id for id in (document.backupjob, document.backupjobrun) if not _ID.fullmatch(id)), None)
    if odd is not None:
        return f"{odd} is no id of a service: it was made in local mode"
    long = next((vm.vm for vm in document.vms if len(vm.vm) > _LONGEST), None)
    return None if long is None else f"{long} is no id of a VM"


def _parent_lost(document: RunDocument, lost: set[str]) -> str | None:
    parents = {resource.parent for vm in document.vms for resource in vm.resources if resource.parent is not None}
    gone = sorted(parents & lost)
    return None if not gone else f"it builds on {gone[0]}, which was left out"


def _read(catalog: Catalog, document: RunDocument) -> _Point:
    """Raises `Damaged`."""
    copies, machines = {}, {}
    for vm in document.vms:
        data = catalog.machine_bytes(document, vm)
        name = names.vm_metadata(document.backupjob, document.backupjobrun, vm.vm)
        machines[vm.vm] = decode(data, VMMetadata, name), digest_of(data)
    for key in document.resource_keys():
        copies[key.vm, key.resource] = found = catalog.metadata(key)
        catalog.reader(found)  # its map is there, and is the one that it names
    return _Point(document, copies, machines)


def _add(session: Session, vault: Vault, point: _Point) -> None:
    """Raises `Damaged` (nothing is kept) where it builds on what is not there."""
    document = point.document
    if session.get(BackupJob, document.backupjob) is None:
        _add_job(session, vault, document)
    kinds = {copy.kind for copy in point.copies.values()}
    volume = document.volume()
    run = BackupJobRun(
        id=document.backupjobrun, backupjob_id=document.backupjob, project_id=vault.project_id,
        state=RunState.AVAILABLE, trigger=Trigger.REQUEST, description="",
        kind=BackupKind.FULL if kinds == {BackupKind.FULL} else BackupKind.INCREMENTAL,
        created_at=_micros(document.started_at), started_at=_micros(document.started_at),
        taken_at=_micros(document.taken_at), finished_at=_micros(document.finished_at),
        skew_seconds=document.skew_seconds, warnings=["imported from its vault"],
        consistency=_weakest(document), bytes_total=volume.read, bytes_done=volume.read, bytes_sent=volume.sent,
        bytes_stored=volume.stored, vault_id=vault.id, commit_number=document.number,
        frozen_seconds=max((vm.frozen_seconds or 0.0 for vm in document.vms), default=0.0) or None,
    )  # fmt: skip
    session.add(run)
    session.flush()
    for vm in document.vms:
        _add_vm(session, vault, run, vm, point)


def _add_job(session: Session, vault: Vault, document: RunDocument) -> None:
    session.add(
        BackupJob(
            id=document.backupjob, project_id=vault.project_id, name=document.job_name[:255] or document.backupjob,
            description="Imported from its vault: schedule, retention and owner are to be said anew.",
            hints=dict(document.hints), vault_service_id=vault.vault_service_id,
        )
    )  # fmt: skip
    session.flush()
    transition(session, BackupJob, document.backupjob, JobState.PAUSED)


def _add_vm(session: Session, vault: Vault, run: BackupJobRun, vm: VmSummary, point: _Point) -> None:
    machine, digest = point.machines[vm.vm]
    row = BackupJobRunVm(
        backupjobrun_id=run.id, vm_id=vm.vm, name=vm.name[:255], state=RunVmState.STORED,
        source=_source(machine, vm), engine=vm.engine[:16], power=vm.power[:32], consistency=vm.consistency,
        taken_at=_micros(vm.taken_at), frozen_seconds=vm.frozen_seconds, host=None,
        server=None if machine.server is None else msgspec.to_builtins(machine.server),
    )  # fmt: skip
    session.add(row)
    session.flush()
    for each in vm.resources:
        _add_copy(session, vault, row, point.copies[vm.vm, each.resource], digest)


def _add_copy(session: Session, vault: Vault, vm: BackupJobRunVm, found: BackupMetadata, machine: str) -> None:
    disk = BackupJobRunVmResource(
        backupjobrun_vm_id=vm.id, resource=found.resource, size=found.size, kind=found.kind, mode=found.mode,
        reason=found.reason, facts=dict(found.facts), bytes_total=found.volume.read, bytes_done=found.volume.read,
        bytes_sent=found.volume.sent,
    )  # fmt: skip
    session.add(disk)
    session.flush()
    where = {"backupjob": found.backupjob, "backupjobrun": found.backupjobrun, "vm": found.vm}
    base = found.base_image
    session.add(
        VmResourceBackup(
            backupjobrun_vm_resource_id=disk.id, resource=found.resource, vault_id=vault.id,
            vault_service_id=vault.vault_service_id, vault_service_url=vault.url, project_id=vault.project_id,
            vm_resource_backup_backing_id=_backing(session, found), state=BackupState.AVAILABLE,
            vault_service_metadata={**where, "machine_digest": machine},
            backupjob_id=found.backupjob, backupjobrun_id=found.backupjobrun, vm_id=found.vm, kind=found.kind,
            size=found.size, cluster_size=found.cluster_size, key_id=found.key_id, map_digest=found.map.digest,
            map_size=found.map.size, image_size=found.image_size,
            base_image=None if base is None else base_key(base.path, base.size),
            bytes_read=found.volume.read, bytes_data=found.volume.data, bytes_sent=found.volume.sent,
            bytes_stored=found.volume.stored, taken_at=_micros(found.taken_at),
        )
    )  # fmt: skip
    session.flush()


def _backing(session: Session, found: BackupMetadata) -> str | None:
    """The copy that it builds on, which is no top from now on. Raises `ParentMissing`."""
    if found.parent is None:
        return None
    same = VmResourceBackup.vm_id == found.vm, VmResourceBackup.resource == found.resource
    mine = VmResourceBackup.backupjobrun_id == found.parent, *same
    parent = session.scalars(select(VmResourceBackup.id).where(*mine)).one_or_none()
    if parent is None:
        raise ParentMissing(run=found.backupjobrun, parent=found.parent)
    rows.changed(session, update(VmResourceBackup).where(VmResourceBackup.id == parent).values(top=False))
    rows.reread(session, VmResourceBackup)
    return parent


def _name_members(session: Session, newest: Mapping[str, RunDocument]) -> None:
    """What a job had in its last restore point is what it names. Every job names VMs or has a selector, but for those
    that were made here, also by an import that was broken off."""
    for job_id, document in newest.items():
        job = session.get(BackupJob, job_id)
        if job is None or job.vm_selector or jobs.members(session, [job_id])[job_id]:
            continue
        mine = BackupJobRunVm.backupjobrun_id == document.backupjobrun
        sources = {vm.vm_id: vm.source for vm in session.scalars(select(BackupJobRunVm).where(mine))}
        for position, (vm_id, source) in enumerate(sorted(sources.items())):
            session.add(BackupJobVm(backupjob_id=job_id, vm_id=vm_id, source=source, position=position))
    session.flush()


def _source(machine: VMMetadata, vm: VmSummary) -> Source:
    if machine.volume is not None:
        return Source.VOLUME
    return Source.STORAGE if vm.engine == _STORAGE else Source.HYPERVISOR


def _weakest(document: RunDocument) -> Consistency | None:
    return min((vm.consistency for vm in document.vms), key=STRENGTH.index, default=None)


def _micros(seconds: float) -> int:
    return round(seconds * SECOND)


# -- what is left of tasks --------------------------------------------------------------------------


def _bury(database: Database, vault: Vault, store: Store) -> None:
    """Whoever stored something and is known to nobody is over: what of it no map needs is garbage."""
    for batch in _batches(_tasks(store)):
        database.run(partial(_add_tombstones, vault=vault, epochs=batch))


def _tasks(store: Store) -> Iterator[tuple[str, int]]:
    """Ids of tasks of which segments are listed, with the number of the claim."""
    for name in store.names(SEGMENTS):
        fits = SEGMENT.fullmatch(name)
        if fits is not None:
            task, _, epoch = fits["claim"].rpartition(".")
            if _ID.fullmatch(task) and epoch.isdigit():
                yield task, int(epoch)


def _batches(found: Iterator[tuple[str, int]]) -> Iterator[dict[str, int]]:
    batch: dict[str, int] = {}
    for task, epoch in found:
        batch[task] = max(epoch, batch.get(task, 0))
        if len(batch) >= _AT_ONCE:
            yield batch
            batch = {}
    if batch:
        yield batch


def _add_tombstones(session: Session, vault: Vault, epochs: Mapping[str, int]) -> None:
    known = set(session.scalars(select(Task.id).where(Task.id.in_(epochs))))
    known |= set(session.scalars(select(Tombstone.task_id).where(Tombstone.task_id.in_(epochs))))
    session.add_all(
        Tombstone(task_id=task, vault_id=vault.id, epoch=epoch) for task, epoch in epochs.items() if task not in known
    )
    session.flush()
