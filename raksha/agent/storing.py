"""All disks of a capture into the vault, one after the other or some side by side, at no more than the wanted speed."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event

from msgspec.structs import replace

from raksha.agent import copies
from raksha.agent.host import Host
from raksha.agent.notes import StoredNotes
from raksha.agent.work import Work
from raksha.backup.disk import destination, store_disk
from raksha.backup.pipeline import Destination
from raksha.backup.throttle import Bucket, ThrottledStore
from raksha.errors import Interrupted
from raksha.states import ReadMode
from raksha.tasks import BackupOrder
from raksha.types import ResourceKey
from raksha.vault.catalog import Catalog
from raksha.vault.dedupe import DedupeIndex
from raksha.vault.metadata import BackupMetadata
from raksha.virt.capture import Capture, DiskCapture


class Storing:
    """One capture. One use."""

    def __init__(self, host: Host, work: Work, order: BackupOrder, catalog: Catalog, capture: Capture) -> None:
        self._host = host
        self._work = work
        self._order = order
        self._catalog = catalog
        self._capture = capture

    def __call__(self) -> tuple[BackupMetadata, ...]:
        """What is in the vault now, inert. Raises what the pipeline raises: the first error of any disk."""
        for disk in self._capture.disks:
            self._work.progress.expect(disk.target, disk.size)
        work = self._work
        with (
            StoredNotes(self._host.settings.state_dir, self._order.vm, work.task_id) as notes,
            DedupeIndex(notes.add) as dedupe,
        ):
            dedupe.remember(notes.rows())
            to = self._destination(dedupe)
            at_once = min(self._order.max_parallel_disks or 1, len(self._capture.disks))
            if at_once == 1:
                stored = tuple(self._store(disk, to) for disk in self._capture.disks)
            else:
                stored = self._side_by_side(to, at_once)
        for each in stored:
            self._host.metrics.read.inc(each.volume.read)
            self._host.metrics.sent.inc(each.volume.sent)
        return stored

    def _destination(self, dedupe: DedupeIndex) -> Destination:
        work = self._work
        to = destination(
            self._catalog,
            self._host.settings,
            work.claimed.claim,
            dedupe,
            progress=work.progress,
            cancel=work.over,
        )
        if self._order.bandwidth_limit is None:
            return to
        return replace(to, store=ThrottledStore(to.store, Bucket(self._order.bandwidth_limit, work.over)))

    def _side_by_side(self, to: Destination, at_once: int) -> tuple[BackupMetadata, ...]:
        """The threads of the host are shared out; one disk that fails ends the others."""
        broken = _Either(self._work.over)
        to = replace(to, workers=-(-to.workers // at_once), cancel=broken)
        with ThreadPoolExecutor(at_once, thread_name_prefix="raksha-disk") as pool:
            futures = [pool.submit(self._store, disk, to) for disk in self._capture.disks]
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
            broken.set()
        failed = [error for each in ended if (error := each.exception()) is not None]
        for error in failed:
            # those that were ended because of it say `Interrupted`
            if not isinstance(error, Interrupted):
                raise error
        return tuple(each.result() for each in futures)

    def _store(self, disk: DiskCapture, to: Destination) -> BackupMetadata:
        if to.cancel.is_set():
            raise Interrupted()
        order, work = self._order, self._work
        work.progress.step(f"storing {disk.target}")
        if disk.mode is ReadMode.FULL:
            copies.pin(self._catalog, order, disk, to.dedupe)
        key = ResourceKey(order.backupjob, order.backupjobrun, self._capture.machine.uuid, disk.target)
        reason = copies.parents_of(order).reasons.get(disk.target)
        to = replace(to, progress=work.progress.disk(disk.target))
        return store_disk(self._catalog, self._capture, disk, key, to, reason).metadata


class _Either(Event):
    """Set by itself, or together with another event."""

    def __init__(self, other: Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()
