"""BACKUP: capture one VM and store its disks; the capture stays open until its FINISH task.

::

    journal: the run has begun
    prepare                          checks, overlays; the chain is untouched
    freeze, snapshot, thaw           alone, or with the group: `barrier`
    store every disk, check          inert objects
    Stored                           the capture is kept open

Any error before that: the capture is abandoned, its layers stay, the next run stores the union. What a process that was
killed left behind, recovery has put right before this begins, so a task that is claimed again is simply done again.

What is to be taken from storage goes another way: `storage_backup`.
"""

from __future__ import annotations

import logging

from raksha.agent import copies
from raksha.agent.barrier import Member
from raksha.agent.captures import OpenCapture
from raksha.agent.host import Host
from raksha.agent.storing import Storing
from raksha.agent.work import End, Work
from raksha.backup.documents import machine_document, vm_summary
from raksha.errors import CloudRefused, CloudUnavailable, GroupFailed, HostFailed
from raksha.journal import HostRunState
from raksha.server import Server
from raksha.states import Source
from raksha.tasks import BackupOrder, Stored
from raksha.vault.catalog import Catalog
from raksha.virt.capture import Capture
from raksha.virt.group import freeze_together
from raksha.virt.libvirt.engines import LibvirtEngines

_log = logging.getLogger(__name__)


class BackupTask:
    """One use."""

    def __init__(self, host: Host, work: Work, order: BackupOrder) -> None:
        self._host = host
        self._work = work
        self._order = order
        self._warnings: list[str] = []

    def __call__(self) -> Stored:
        """Raises everything in `raksha.errors`; then the capture is abandoned."""
        order, journal = self._order, self._host.journal
        self._make_way()
        if order.source is not Source.HYPERVISOR:
            return self._from_storage()
        access = self._work.claimed.vault
        journal.run_begin(
            order.backupjobrun, access.vault_uuid if access else "", order.backupjob, self._work.claimed.claim
        )
        try:
            engine = self._host.engines(order.engine)
            try:
                return self._backup(engine)
            except BaseException:
                engine.close()
                raise
        except BaseException:
            cancelled = self._work.why is End.CANCELLED
            journal.run_ended(order.backupjobrun, HostRunState.CANCELLED if cancelled else HostRunState.FAILED)
            raise

    def _from_storage(self) -> Stored:
        try:
            # only where there is a cloud: it takes a second to import
            from raksha.agent.storage_backup import StorageBackup
        except ImportError as error:
            raise HostFailed(detail=f"the package {error.name} is not installed") from error
        return StorageBackup(self._host, self._work, self._order)()

    def _make_way(self) -> None:
        """A capture of an earlier run that nobody has settled: it is over, or there would be no other one."""
        while (older := self._host.captures.take_of_vm(self._order.vm)) is not None:
            _log.warning("nobody has said what became of run %s; its capture is given up", older.backupjobrun)
            older.let_go()

    def _backup(self, engine: LibvirtEngines) -> Stored:
        order, work = self._order, self._work
        server = self._server()
        with self._host.catalog(work) as catalog:
            capture = self._capture(engine, catalog)
            try:
                stored = Storing(self._host, work, order, catalog, capture)()
                work.progress.step("checking")
                capture.check()
                work.check()
            except BaseException:
                capture.abandon()
                raise
        result = Stored(
            vm=vm_summary(capture, stored),
            disks=stored,
            machine=machine_document(capture, server),
            warnings=tuple(self._warnings),
        )
        kept = OpenCapture(work.task_id, order.backupjobrun, order.vm, capture, engine)
        self._host.captures.keep(kept)
        return result

    def _server(self) -> Server | None:
        """What its cloud says of the VM. A cloud that does not answer is no reason to have no backup."""
        if self._work.cloud is None:
            return None
        from raksha.openstack.describe import describe

        self._work.progress.step("asking the cloud")
        try:
            return describe(self._work.cloud, self._order.vm)
        except (CloudRefused, CloudUnavailable) as error:
            self._warnings.append(f"flavor, networks and the like are not part of the backup: {error}")
            return None

    # -- the instant --------------------------------------------------------------------------------

    def _capture(self, engine: LibvirtEngines, catalog: Catalog) -> Capture:
        try:
            capture = self._in_group(engine, catalog) if self._order.group else self._by_itself(engine, catalog)
        except GroupFailed as error:
            if not self._order.alone:
                raise
            _log.warning("%s It is captured by itself.", error)
            capture = self._by_itself(engine, catalog)
        if capture.frozen_seconds is not None:
            self._host.metrics.frozen.observe(capture.frozen_seconds)
        self._work.progress.step(f"captured, {capture.consistency}")
        return capture

    def _by_itself(self, engine: LibvirtEngines, catalog: Catalog) -> Capture:
        self._work.progress.step("preparing")
        prepared = engine.prepare(copies.request(catalog, self._order))
        try:
            self._work.wait_for_lease()
        except BaseException:
            prepared.cancel()
            raise
        return freeze_together([prepared], self._host.settings.freeze_deadline).captures[0]

    def _in_group(self, engine: LibvirtEngines, catalog: Catalog) -> Capture:
        member = Member(self._host, self._work, self._order)
        with member.telling():
            self._work.progress.step("preparing")
            prepared = engine.prepare(copies.request(catalog, self._order))
            return member.capture(prepared)
