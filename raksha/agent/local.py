"""One libvirt host without any service: what `raksha local` does, for any caller.

Every method is one command: it opens what it needs, does its work and closes it. Writing commands hold the vault's
lock in the journal, commands on a VM hold the VM's. Reading commands (list, show, restore, export, verify) need a
vault and nothing else, so they work on a fresh host.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from raksha.agent.restore import Restored, RestoreOrder, restore
from raksha.agent.verify import verify_runs
from raksha.backup.run import BackupOrder, BackupResult, BackupRun
from raksha.config import Settings
from raksha.errors import Damaged, DiskLost, ResourceNotFound, VaultNotFound
from raksha.journal import Journal
from raksha.progress import Progress
from raksha.restore.context import Context
from raksha.restore.export import ExportDisk, Exported, export
from raksha.restore.source import DiskSource
from raksha.restore.verify import Finding
from raksha.retention import beyond_last
from raksha.types import ResourceKey
from raksha.vault.address import open_store
from raksha.vault.catalog import Catalog, Listing
from raksha.vault.collect import Collected, collect
from raksha.vault.commit import delete_unreadable, open_catalog_for_writing, plan_catalog
from raksha.vault.metadata import BackupMetadata, RunDocument, VmSummary, Writer
from raksha.vault.prune import remove_runs
from raksha.vault.store import Store
from raksha.virt.libvirt.engines import LibvirtEngines
from raksha.virt.libvirt.hook import install_hook, remove_hook
from raksha.virt.libvirt.host_recovery import VmRecovery, recover
from raksha.virt.libvirt.listing import VmEntry, list_vms


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune did, or would do."""

    deleted: tuple[RunDocument, ...]
    kept: tuple[RunDocument, ...]
    collected: Collected


@dataclass(frozen=True, slots=True)
class LocalHost:
    """The commands of one host."""

    settings: Settings
    progress: Progress
    #: set to end what is under way at the next safe moment
    cancel: threading.Event

    # -- writing ----------------------------------------------------------------------------------

    def backup(self, url: str, order: BackupOrder, *, take_over: bool = False) -> BackupResult:
        """One run of a job. Raises everything in `raksha.errors`; then nothing of it is visible."""
        with self._engine() as (journal, engine):
            for vm in order.vms:
                engine.identify(vm)  # a name that is wrong must not change the writer of a vault
            with self._writing(url, journal, take_over, first=True) as catalog:
                run = BackupRun(engine, catalog, journal, self.settings, self.progress, self.cancel)
                return run(order)

    def prune(self, url: str, keep_last: int, *, job: str | None = None, dry_run: bool = False) -> Pruned:
        """Delete all but the last restore points of each job (of one job), and what nothing refers to any more."""
        with closing(Journal(self.settings.state_dir)) as journal, self._writing(url, journal) as catalog:
            runs = catalog.runs()
            victims = [
                run
                for name in sorted({run.backupjob for run in runs if job is None or run.job_name == job})
                for run in beyond_last([each for each in runs if each.backupjob == name], keep_last)
            ]
            return self._remove(catalog, runs, victims, dry_run)

    def delete(self, url: str, texts: Sequence[str], *, dry_run: bool = False) -> Pruned:
        """Delete named restore points; those that build on them come to stand alone.

        One that cannot be read must be named by its whole id.
        """
        with closing(Journal(self.settings.state_dir)) as journal, self._writing(url, journal) as catalog:
            listing = catalog.listing()
            lost = [name for name in listing.damaged if name.split("/")[-2] in texts]
            wanted = [text for text in texts if not any(name.split("/")[-2] == text for name in lost)]
            victims = {run.backupjobrun: run for run in map(catalog.find, wanted)}
            if not dry_run:
                for name in lost:
                    delete_unreadable(catalog, name)
            return self._remove(catalog, listing.runs, list(victims.values()), dry_run)

    def _remove(
        self, catalog: Catalog, runs: Sequence[RunDocument], victims: Sequence[RunDocument], dry_run: bool
    ) -> Pruned:
        gone = {run.backupjobrun for run in victims}
        removed = 0 if dry_run else remove_runs(catalog, victims, self._spool(), self.progress, self.cancel)
        collected = collect(catalog, dry_run=dry_run, without=gone if dry_run else ())
        kept = tuple(run for run in runs if run.backupjobrun not in gone)
        return Pruned(tuple(victims), kept, Collected(deleted=collected.deleted + removed, kept=collected.kept))

    # -- reading ----------------------------------------------------------------------------------

    def runs(self, url: str, *, job: str | None = None, vm: str | None = None) -> Listing:
        """Restore points, oldest first; and those that cannot be read, whosever they are."""
        with self._reading(url) as catalog:
            listing = catalog.listing()
            wanted = [
                run
                for run in listing.runs
                if (job is None or run.job_name == job)
                and (vm is None or any(vm in (each.vm, each.name) for each in run.vms))
            ]
            return Listing(wanted, listing.damaged)

    def show(self, url: str, text: str) -> tuple[RunDocument, list[BackupMetadata]]:
        """A restore point and its disk copies."""
        with self._reading(url) as catalog:
            run = catalog.find(text)
            return run, [catalog.metadata(key) for key in run.resource_keys()]

    def verify(self, url: str, texts: Sequence[str] = (), *, data: bool = False) -> tuple[int, list[Finding]]:
        """Check restore points (default: all) and what they build on: the number of disk copies, what is wrong."""
        with self._reading(url) as catalog:
            if texts:
                return verify_runs(catalog, [catalog.find(text) for text in texts], self._context(), data=data)
            listing = catalog.listing()
            lost = [Finding(name, error.code, str(error), ()) for name, error in listing.damaged.items()]
            copies, findings = verify_runs(catalog, listing.runs, self._context(), data=data)
            return copies, [*lost, *findings]

    def restore(self, url: str, text: str, order: RestoreOrder) -> Restored:
        """A VM, or disks of one, from a restore point. Nothing half-made is left, except on a device (it says so)."""
        with self._reading(url) as catalog:
            run = catalog.find(text, order.vm)
            vm = catalog.vm(run, order.vm)
            sources = self._sources(catalog, run, vm, order.disks)
            metadata = {source.disk: catalog.metadata(self._key(run, vm, source.disk)) for source in sources}
            uri = self.settings.libvirt_uri
            machine = catalog.machine(run, vm) if order.new_name is not None else None
            return restore(order, vm.name, machine, sources, metadata, uri, self._context())

    def export(
        self,
        url: str,
        text: str,
        into: Path,
        *,
        vm: str | None = None,
        disks: Sequence[str] = (),
        flatten: bool = False,
    ) -> list[Exported]:
        """Plain qcow2 files of a VM's disks, each with its chain, or flattened."""
        with self._reading(url) as catalog:
            run = catalog.find(text, vm)
            summary = catalog.vm(run, vm)
            wanted = [
                ExportDisk(source, [each.resource_key for each in catalog.chain(self._key(run, summary, source.disk))])
                for source in self._sources(catalog, run, summary, disks)
            ]
            return export(wanted, into, self._context(), flatten=flatten)

    # -- the host ---------------------------------------------------------------------------------

    def vms(self) -> list[VmEntry]:
        """What there is, and what of it can be protected."""
        with self._engine() as (journal, engine):
            return list_vms(engine.connection, journal)

    def release(self, vms: Sequence[str]) -> dict[str, list[str]]:
        """Give VMs back without a trace of us in their chains: what was done, per VM."""
        with self._engine() as (_, engine):
            known = [engine.identify(vm) for vm in vms]
            return {vm.name: engine.release(vm.uuid) for vm in known}

    def recover(self, vms: Sequence[str] = (), *, dry_run: bool = False) -> list[VmRecovery]:
        """Bring VMs (default: all that the journal remembers), journal and files into line: what was seen and done."""
        with self._engine() as (journal, engine):
            return recover(engine.connection, journal, self.settings, vms, dry_run=dry_run)

    def install_hook(self) -> Path:
        """Have libvirt ask our journal before it starts a VM. Raises `HookForeign`, `OSError`."""
        with self._engine() as (_, engine):
            return install_hook(engine.connection, self.settings.state_dir)

    def remove_hook(self) -> list[str]:
        return remove_hook()

    # -- parts ------------------------------------------------------------------------------------

    @contextmanager
    def _engine(self) -> Iterator[tuple[Journal, LibvirtEngines]]:
        with (
            closing(Journal(self.settings.state_dir)) as journal,
            closing(LibvirtEngines(self.settings, journal)) as engine,
        ):
            yield journal, engine

    @contextmanager
    def _store(self, url: str) -> Iterator[Store]:
        patience = self.settings.vault_patience
        with closing(open_store(url, retry_deadline=patience, cancel=self.cancel)) as store:
            yield store

    @contextmanager
    def _reading(self, url: str) -> Iterator[Catalog]:
        with self._store(url) as store:
            yield Catalog.open(store)

    @contextmanager
    def _writing(
        self, url: str, journal: Journal, take_over: bool = False, *, first: bool = False
    ) -> Iterator[Catalog]:
        """`first`: where there is no vault, one may be made."""
        me = Writer(kind="host", id=journal.host_id, name=socket.gethostname())
        with self._store(url) as store:
            try:
                catalog = open_catalog_for_writing(store, me, take_over=take_over)
            except VaultNotFound:
                if not first:
                    raise
                catalog = plan_catalog(store, me)
            with journal.vault_lock(catalog.vault.id, url):
                yield catalog

    def _source(self, catalog: Catalog, vm: VmSummary, key: ResourceKey) -> DiskSource:
        """Raises `ParentMissing`, `DiskLost`."""
        chain = catalog.chain(key)
        try:
            readers = catalog.readers(chain)
            hashers = [catalog.hasher(metadata.key_id) for metadata in chain]
        except Damaged as error:
            lost = error.fields.get("name")
            raise DiskLost(
                disk=key.resource, vm=vm.name, run=key.backupjobrun, object=lost, detail=str(error)
            ) from error
        return DiskSource(
            vm=vm.name,
            disk=key.resource,
            run=key.backupjobrun,
            store=catalog.store,
            readers=readers,
            hashers=hashers,
        )

    def _key(self, run: RunDocument, vm: VmSummary, disk: str) -> ResourceKey:
        return ResourceKey(run.backupjob, run.backupjobrun, vm.vm, disk)

    def _sources(self, catalog: Catalog, run: RunDocument, vm: VmSummary, disks: Sequence[str]) -> list[DiskSource]:
        """The disks of a VM at a restore point: all of them, or those named. Raises `ResourceNotFound`."""
        known = [resource.resource for resource in vm.resources]
        for disk in disks:
            if disk not in known:
                raise ResourceNotFound(run=run.backupjobrun, resource=f"{vm.name}:{disk}")
        wanted = [target for target in known if not disks or target in disks]
        return [self._source(catalog, vm, self._key(run, vm, target)) for target in wanted]

    def _spool(self) -> Path:
        spool = self.settings.state_dir / "spool"
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        return spool

    def _context(self) -> Context:
        return Context(self._spool(), self.settings.workers, self.progress, self.cancel)
