"""The readable side of the engine `pull`: frozen disks as QEMU serves them, and what happens afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import nbd as libnbd
from msgspec import Struct

from raksha.config import Settings
from raksha.errors import CaptureFailed, QuiesceFailed, RakshaError
from raksha.journal import BitmapState, Journal, Lock, OwnBitmap
from raksha.states import Quiesce, ReadMode
from raksha.types import Extent
from raksha.virt.capture import CaptureReader, CaptureRequest, Tracker
from raksha.virt.libvirt import nbd
from raksha.virt.libvirt.capture import OfflineWatch, base_image_of, consistency_of, facts_of
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.extents import extents
from raksha.virt.libvirt.freeze import Freezer
from raksha.virt.libvirt.machine import read_machine
from raksha.virt.libvirt.pull_session import Session, drop_bitmaps
from raksha.virt.libvirt.pull_survey import lying
from raksha.virt.libvirt.pull_tracker import Decision
from raksha.virt.libvirt.pull_xml import export_bitmap
from raksha.virt.libvirt.release import Release
from raksha.virt.libvirt.survey import Survey, SurveyedDisk
from raksha.virt.libvirt.trace import of_bitmap

#: stretches of a bitmap that are worth noting; with more, the next run compares
_MOST_STRETCHES = 100_000


class Export:
    """One disk of a backup job, served by the VM's own QEMU. Raises `CaptureFailed` when it is not."""

    moving = True

    def __init__(self, vm: str, target: str, socket: str, *, delta: bool, explain: Callable[[], None]) -> None:
        self.vm = vm
        self.target = target
        self.explain: Callable[[], None] | None = explain
        self.changes: str | None = nbd.DIRTY + export_bitmap(target) if delta else None
        self._socket = socket
        handle = self.connect()
        #: bytes, as the guest saw the disk
        self.size = int(handle.get_size())
        nbd.hang_up(handle)

    def connect(self, contexts: Sequence[str] = ()) -> libnbd.NBD:
        handle = libnbd.NBD()
        try:
            handle.set_export_name(self.target)
            for context in contexts:
                handle.add_meta_context(context)
            handle.connect_unix(self._socket)
        except libnbd.Error as error:
            if self.explain is not None:
                self.explain()
            raise CaptureFailed(vm=self.vm, detail=f"disk {self.target} is not served: {error.string}") from error
        return handle


class PullDisk:
    """One frozen disk."""

    def __init__(
        self,
        disk: SurveyedDisk,
        source: nbd.Source,
        decision: Decision,
        parent: str | None,
        held: Sequence[tuple[int, int]],
        tracker: Tracker | None,
    ) -> None:
        self.target = disk.target
        self.size = source.size
        self.mode = decision.mode
        self.reason = decision.reason
        self.parent = parent if decision.mode is not ReadMode.FULL else None
        bottom = disk.lineage.below[-1]
        self.base_image = base_image_of(disk.lineage) if bottom.kind in ("file", "block") else None
        self.facts = facts_of(disk)
        self.tracker = tracker
        self._source = source
        self._held = held

    def open(self) -> CaptureReader:
        return nbd.Reader(self._source)

    def extents(self) -> Iterator[Extent]:
        return extents(self._source, 1 if self.mode is ReadMode.DELTA else None, self._held)


class Taken(Struct, frozen=True):
    """What the frozen view is made of, as it was prepared."""

    survey: Survey
    #: per disk target
    decisions: dict[str, Decision]
    #: bytes per disk target, as the decisions took them
    sizes: dict[str, int]
    #: per disk target, the bitmap of a delta
    bitmaps: dict[str, OwnBitmap]
    #: as its owner knows it
    definition: str
    #: seconds since the epoch
    at: float


class PullCapture:
    """All disks of one VM at one instant."""

    engine = "pull"

    def __init__(
        self,
        guest: Guest,
        request: CaptureRequest,
        taken: Taken,
        freezer: Freezer,
        journal: Journal,
        settings: Settings,
        *,
        session: Session | None,
        offline: OfflineWatch | None,
        warnings: list[str],
    ) -> None:
        self._guest = guest
        self._request = request
        self._taken = taken
        self._journal = journal
        self._settings = settings
        self._session = session
        self._offline = offline
        self._warnings = [*warnings, *freezer.warnings]
        self._lock: Lock | None = None
        self._sources = ExitStack()
        found = taken.survey
        self.taken_at = taken.at
        self.frozen_seconds = freezer.seconds
        self.consistency = consistency_of(found.power, guest, held=freezer.held)
        if request.quiesce is Quiesce.REQUIRE and found.active and not freezer.held:
            raise QuiesceFailed(vm=guest.name, detail="the freeze did not hold until the backup had begun")
        self.machine = read_machine(guest, taken.definition, found.inactive, found.power)
        #: per disk target, what the bitmap of a VM that is shut off holds
        self._stretches: dict[str, list[tuple[int, int]]] = {}
        try:
            self.disks = [self._open(disk) for disk in found.disks]
            if session is None:
                for disk in self.disks:
                    if disk.target in taken.bitmaps:
                        self._stretches[disk.target] = [(each.start, each.end) for each in disk.extents()]
        except BaseException:
            self._sources.close()
            raise

    def take_over(self, lock: Lock) -> None:
        """From now on the capture holds the VM."""
        self._lock = lock

    def _open(self, disk: SurveyedDisk) -> PullDisk:
        decision = self._taken.decisions[disk.target]
        source = self._online(disk, decision) if self._session else self._lying(disk, decision)
        expected = self._taken.sizes[disk.target]
        if source.size != expected:
            detail = f"disk {disk.target} was resized from {expected} to {source.size} bytes while it was prepared"
            raise CaptureFailed(vm=self._guest.name, detail=detail)
        parent = self._request.since.get(disk.target)
        bitmap = self._taken.bitmaps.get(disk.target)
        held = self._journal.held(bitmap, parent.backupjobrun) if bitmap and parent else []
        begun = self._session.bitmaps if self._session else []
        tracker = next((of_bitmap(each) for each in begun if each.target == disk.target), None)
        return PullDisk(disk, source, decision, parent.backupjobrun if parent else None, held, tracker)

    def _online(self, disk: SurveyedDisk, decision: Decision) -> Export:
        assert self._session is not None
        delta = decision.mode is ReadMode.DELTA
        socket = str(self._session.place.socket)
        return Export(self._guest.name, disk.target, socket, delta=delta, explain=self._session.explain)

    def _lying(self, disk: SurveyedDisk, decision: Decision) -> nbd.Server:
        server = nbd.Server(
            self._guest.name,
            disk.target,
            lying(self._guest, disk),
            share=True,
            connections=2 * self._settings.workers + 4,
            bitmap=decision.bitmap,
            explain=self._offline.check if self._offline else None,
        )
        self._sources.callback(server.close)
        return server

    def check(self) -> None:
        if self._session is not None:
            self._session.check()
        if self._offline is not None:
            self._offline.check()
            # Noted before the run is a restore point: if we die in between, the bitmaps must count from it.
            self._count_on()

    def finish(self) -> list[str]:
        try:
            if self._session is not None:
                self._journal.set_bitmaps(self._session.bitmaps, BitmapState.COUNTING)
                self._session.end("ended")
                self._tidy(self._session)
        except RakshaError as error:
            self._warnings.append(str(error))
        finally:
            self._close()
        return self._warnings

    def _older(self) -> list[OwnBitmap]:
        """Bitmaps that earlier runs of this job have left on these disks."""
        targets = {disk.target for disk in self.disks}
        return [
            each
            for each in self._journal.bitmaps(self._guest.uuid)
            if each.target in targets and each.job == self._request.backupjob and each.run != self._request.backupjobrun
        ]

    def _count_on(self) -> None:
        """A bitmap that held everything since an earlier run counts from this one, too.

        Not by itself: somebody may put back a copy of the image that is older than this run, with the bitmap as it
        was then. Together with what it holds now it tells every difference even so.
        """
        for target, held in self._stretches.items():
            if len(held) <= _MOST_STRETCHES:
                self._journal.bitmap_counts_from(self._taken.bitmaps[target], self._request.backupjobrun, held)

    def _tidy(self, session: Session) -> None:
        """Leave one bitmap of this job on every disk, and none of the other engine's layers."""
        guest = session.reach()
        if not guest.is_active():
            return  # the next run finds the VM running, and what is left
        self._warnings += drop_bitmaps(guest, self._journal, self._older())
        if any(disk.lineage.own for disk in self._taken.survey.disks):
            Release(session.connection, guest, self._journal, self._settings)()

    def abandon(self) -> None:
        if self._session is not None:
            self._session.give_up()
        self._close()

    def let_go(self) -> None:
        self._close()  # the guard ends the job, as it does when we die; bitmaps record on

    def _close(self) -> None:
        self._sources.close()
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._offline is not None:
            self._offline.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
