"""One run of a backup job, from the first look at the VMs to the restore point.

::

    parents of every disk                     vault, read only
    engine.prepare(vm)          for all       checks, overlays; chains untouched
    freeze_together             for all       one barrier
    store_disk                  per disk      inert objects
    capture.check               for all       what was read is one instant
    commit_run                                the restore point exists
    journal.run_durable                       from here on layers may be merged
    capture.finish              for all       failures are warnings: the next run goes on from there

Any error before `commit_run` returns: captures are abandoned (their layers stay, the next run stores the union),
the journal says `failed`, and nothing of the run is visible.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

from msgspec import Struct, field

import raksha
from raksha.backup.disk import destination, store_disk
from raksha.backup.documents import machine_document, vm_summary
from raksha.backup.parents import Parents, find_parents, history_of, pin_for_full
from raksha.config import Settings
from raksha.errors import Interrupted
from raksha.journal import HostRunState, Journal
from raksha.progress import Progress, human
from raksha.states import Quiesce, ReadMode, Reason
from raksha.types import ResourceKey
from raksha.vault.catalog import Catalog
from raksha.vault.commit import StoredDisk, commit_run, establish
from raksha.vault.dedupe import DedupeIndex
from raksha.vault.metadata import FORMAT, BackupMetadata, RunDocument
from raksha.virt.capture import Capture, CaptureEngine, CaptureRequest, Prepared, VmIdentity
from raksha.virt.group import Group, freeze_together


class BackupOrder(Struct, frozen=True):
    """What a person asked for."""

    #: names or UUIDs
    vms: tuple[str, ...]
    #: None: made of the VMs' names
    job_name: str | None = None
    #: read everything, whatever is in the vault
    full: bool = False
    #: disk targets per VM as named in `vms`
    exclude: Mapping[str, frozenset[str]] = field(default_factory=dict)
    quiesce: Quiesce = Quiesce.AUTO


class BackupResult(Struct, frozen=True):
    run: RunDocument
    #: what a person should know although the restore point is good
    warnings: tuple[str, ...]


class BackupRun(Struct):
    """The parts that a run is made with. One use."""

    engine: CaptureEngine
    catalog: Catalog
    journal: Journal
    settings: Settings
    progress: Progress
    cancel: threading.Event
    _id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __call__(self, order: BackupOrder) -> BackupResult:
        """Raises everything in `raksha.errors`; then nothing of the run is visible."""
        started = time.time()
        vms = self._identify(order)
        job_name = order.job_name or "+".join(sorted(vm.name for vm in vms))
        backupjob = str(uuid.uuid5(uuid.UUID(self.catalog.vault.id), f"backupjob:{job_name}"))
        listing = self.catalog.listing()
        runs = listing.runs
        parents = {vm.uuid: self._parents(order, runs, backupjob, vm.uuid) for vm in vms}
        self.journal.settle_runs(self.catalog.vault.id, {run.backupjobrun: run.number for run in runs})
        self.journal.run_begin(self._id, self.catalog.vault.id, backupjob, self._claim)
        try:
            requests = [self._request(order, vm, backupjob, parents[vm.uuid], runs) for vm in vms]
            group = self._capture(requests)
        except BaseException as error:
            self._failed(error)
            raise
        run = self._durable(group, runs, parents, backupjob, job_name, started)
        broken = [f"an older restore point cannot be read: {error}" for error in listing.damaged.values()]
        return BackupResult(run, (*broken, *self._finish(group)))

    @property
    def _claim(self) -> str:
        return f"{self._id}.1"

    # -- before the barrier -----------------------------------------------------------------------

    def _identify(self, order: BackupOrder) -> list[VmIdentity]:
        found: dict[str, VmIdentity] = {}
        for name in order.vms:
            vm = self.engine.identify(name)
            found[vm.uuid] = vm
        return list(found.values())

    def _parents(self, order: BackupOrder, runs: Sequence[RunDocument], backupjob: str, vm: str) -> Parents:
        parents = find_parents(self.catalog, runs, backupjob, vm)
        if order.full:
            return Parents(dict.fromkeys(parents.since), dict.fromkeys(parents.since, Reason.ASKED))
        return parents

    def _request(
        self, order: BackupOrder, vm: VmIdentity, backupjob: str, parents: Parents, runs: Sequence[RunDocument]
    ) -> CaptureRequest:
        return CaptureRequest(
            vm=vm.uuid,
            backupjobrun=self._id,
            backupjob=backupjob,
            since=parents.since,
            full_reason=Reason.ASKED if order.full else Reason.FIRST_RUN,
            exclude=order.exclude.get(vm.name, frozenset()) | order.exclude.get(vm.uuid, frozenset()),
            quiesce=order.quiesce,
            history=history_of(self.catalog, runs, vm.uuid),
        )

    def _capture(self, requests: Sequence[CaptureRequest]) -> Group:
        prepared: list[Prepared] = []
        try:
            for request in requests:
                self._check()
                prepared.append(self.engine.prepare(request))
            establish(self.catalog)  # not before it is known that there will be something to store
        except BaseException:
            for each in prepared:
                each.cancel()
            raise
        group = freeze_together(prepared, self.settings.freeze_deadline)
        for capture in group.captures:
            self.progress.step(f"{capture.machine.name}: {len(capture.disks)} disk(s) captured, {capture.consistency}")
        return group

    # -- behind the barrier -----------------------------------------------------------------------

    def _durable(
        self,
        group: Group,
        runs: Sequence[RunDocument],
        parents: Mapping[str, Parents],
        backupjob: str,
        job_name: str,
        started: float,
    ) -> RunDocument:
        """Store, check, commit, note; or abandon everything."""
        try:
            disks = self._store(group, runs, parents, backupjob)
            for capture in group.captures:
                capture.check()
            self._check()
            draft = self._document(group, disks, backupjob, job_name, started)
            machines = {capture.machine.uuid: machine_document(capture) for capture in group.captures}
            run = commit_run(self.catalog, draft, [*disks.values()], machines)
        except BaseException as error:
            _each(capture.abandon for capture in group.captures)
            self._failed(error)
            raise
        self.journal.run_durable(self._id, run.number)
        return run

    def _store(
        self, group: Group, runs: Sequence[RunDocument], parents: Mapping[str, Parents], backupjob: str
    ) -> dict[ResourceKey, StoredDisk]:
        stored: dict[ResourceKey, StoredDisk] = {}
        with DedupeIndex() as dedupe:
            to = destination(
                self.catalog, self.settings, self._claim, dedupe, progress=self.progress, cancel=self.cancel
            )
            for capture in group.captures:
                vm = capture.machine.uuid
                for disk in capture.disks:
                    self._check()
                    if disk.mode is ReadMode.FULL:
                        pin_for_full(self.catalog, runs, vm, disk.target, disk.base_image, dedupe)
                    key = ResourceKey(backupjob, self._id, vm, disk.target)
                    reason = parents[vm].reasons.get(disk.target)
                    stored[key] = store_disk(self.catalog, capture, disk, key, to, reason)
                    self.progress.step(_told(capture, stored[key]))
        return stored

    def _finish(self, group: Group) -> list[str]:
        warnings: list[str] = []
        for capture in group.captures:
            warnings += capture.finish()
        return warnings

    def _failed(self, error: BaseException) -> None:
        cancelled = isinstance(error, Interrupted)
        self.journal.run_ended(self._id, HostRunState.CANCELLED if cancelled else HostRunState.FAILED)

    def _document(
        self,
        group: Group,
        disks: Mapping[ResourceKey, StoredDisk],
        backupjob: str,
        job_name: str,
        started: float,
    ) -> RunDocument:
        return RunDocument(
            format=FORMAT,
            number=0,
            backupjob=backupjob,
            job_name=job_name,
            backupjobrun=self._id,
            started_at=started,
            taken_at=min(capture.taken_at for capture in group.captures),
            finished_at=started,
            skew_seconds=group.skew_seconds,
            vms=[vm_summary(capture, _of(disks, capture)) for capture in group.captures],
            host=socket.gethostname(),
            raksha=raksha.__version__,
        )

    def _check(self) -> None:
        if self.cancel.is_set():
            raise Interrupted()


def _of(disks: Mapping[ResourceKey, StoredDisk], capture: Capture) -> list[BackupMetadata]:
    return [disk.metadata for key, disk in disks.items() if key.vm == capture.machine.uuid]


def _told(capture: Capture, disk: StoredDisk) -> str:
    metadata = disk.metadata
    why = f" ({metadata.reason})" if metadata.reason else ""
    return f"{capture.machine.name}:{metadata.resource}: {metadata.kind}{why}, {human(metadata.volume.sent)} sent"


def _each(calls: Iterable[Callable[[], None]]) -> None:
    """All of them, even if one fails; the first error is raised at the end."""
    with ExitStack() as stack:
        for call in calls:
            stack.callback(call)
