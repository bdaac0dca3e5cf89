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
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from raksha.backup.run import BackupOrder, BackupResult, BackupRun
from raksha.config import Settings
from raksha.errors import VaultNotFound
from raksha.journal import Journal
from raksha.progress import Progress
from raksha.vault.address import open_store
from raksha.vault.catalog import Catalog, Listing
from raksha.vault.collect import Collected, collect
from raksha.vault.commit import delete_unreadable, open_catalog_for_writing, plan_catalog
from raksha.vault.metadata import BackupMetadata, RunDocument, Writer
from raksha.vault.prune import remove_runs
from raksha.vault.store import Store
from raksha.virt.libvirt.engines import LibvirtEngines
from raksha.virt.libvirt.host_recovery import VmRecovery, recover
from raksha.virt.libvirt.listing import VmEntry, list_vms

if TYPE_CHECKING:
    from raksha.agent.restore import Restored, RestoreOrder
    from raksha.restore.context import Context
    from raksha.restore.export import Exported
    from raksha.restore.verify import Finding


class Pruned(Struct, frozen=True):
    """What a prune did, or would do."""

    deleted: tuple[RunDocument, ...]
    kept: tuple[RunDocument, ...]
    collected: Collected


class LocalHost(Struct, frozen=True):
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
        from raksha.retention import beyond_last  # it knows about time zones, which takes a moment

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

    # Backups and lists start without what follows here: it takes a third of their start.

    def verify(self, url: str, texts: Sequence[str] = (), *, data: bool = False) -> tuple[int, list[Finding]]:
        """Check restore points (default: all) and what they build on: the number of disk copies, what is wrong."""
        from raksha.agent.verify import verify_runs

        with self._reading(url) as catalog:
            context = self._context()
            if texts:
                return verify_runs(catalog, [catalog.find(text) for text in texts], context, data=data)
            listing = catalog.listing()
            return verify_runs(catalog, listing.runs, context, listing.damaged, data=data)

    def restore(self, url: str, text: str, order: RestoreOrder) -> Restored:
        """A VM, or disks of one, from a restore point. Nothing half-made is left, except on a device (it says so)."""
        from raksha.agent.restore import restore

        with self._reading(url) as catalog:
            return restore(order, catalog, catalog.find(text, order.vm), self.settings.libvirt_uri, self._context())

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
        from raksha.agent.export import export_disks

        with self._reading(url) as catalog:
            run = catalog.find(text, vm)
            return export_disks(catalog, run, catalog.vm(run, vm), disks, into, self._context(), flatten=flatten)

    # -- the host ---------------------------------------------------------------------------------

    def vms(self) -> list[VmEntry]:
        """What there is, and what of it can be protected."""
        with self._engine() as (journal, engine):
            return list_vms(engine.connection, journal, engine.choose)

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
        from raksha.virt.libvirt.hook import install_hook

        with self._engine() as (_, engine):
            return install_hook(engine.connection, self.settings.state_dir)

    def remove_hook(self) -> list[str]:
        from raksha.virt.libvirt.hook import remove_hook

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

    def _spool(self) -> Path:
        spool = self.settings.state_dir / "spool"
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        return spool

    def _context(self) -> Context:
        from raksha.restore.context import Context

        return Context(self._spool(), self.settings.workers, self.progress, self.cancel)
