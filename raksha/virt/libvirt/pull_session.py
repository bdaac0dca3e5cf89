"""What a backup of one running VM has under way with libvirt, from the intent in the journal to its outcome.

Whoever ends it (a finished, abandoned or cancelled capture) leaves no job, no checkpoint, no scratch file and no
socket; what cannot be reached now is still in the journal, and the next run clears it away (`pull_recover`). A libvirtd
that was restarted meanwhile is connected to anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack

from raksha.errors import CaptureFailed, LibvirtFailed, RakshaError, ScratchFull, VmNotFound
from raksha.journal import BitmapState, Journal, OwnBitmap
from raksha.virt.libvirt.checkpoint import Checkpoints
from raksha.virt.libvirt.connection import Connection, Guest
from raksha.virt.libvirt.domain_xml import parse_domain
from raksha.virt.libvirt.pull_job import Guard, end_job, under_way
from raksha.virt.libvirt.pull_place import Place, remove

#: seconds that libvirt may take to notice that a VM has ended, and between two looks
_NOTICE = 2.0
_POLL = 0.05


class Session:
    """One VM's part in a run."""

    def __init__(self, connection: Connection, guest: Guest, journal: Journal, intent: int, place: Place) -> None:
        self.place = place
        self.connection = connection
        self._guest = guest
        self._journal = journal
        self._intent = intent
        self._stack = ExitStack()
        self._guard: Guard | None = None
        self._reaching = threading.Lock()
        #: checkpoints that libvirt may know of
        self.checkpoints: set[str] = set()
        #: those that were to begin with this run
        self.bitmaps: list[OwnBitmap] = []

    def start_guard(self, watermark: int) -> None:
        """Raises `CaptureFailed`."""
        self._guard = Guard(self.connection.uri, self._guest.uuid, self.place, watermark)
        if not self._guard.ready():
            raise CaptureFailed(vm=self._guest.name, detail="the guard of its scratch files could not be started")

    def arm(self) -> None:
        """Called right before the job begins."""
        if self._guard is None or not self._guard.arm():
            raise CaptureFailed(vm=self._guest.name, detail="the guard of its scratch files is gone")

    def reach(self) -> Guest:
        """The VM, through a new connection if the old one broke. Raises `RakshaError`."""
        with self._reaching:  # every thread that reads may come here when something fails
            try:
                self._guest.is_active()
            except LibvirtFailed:
                self.connection = self._stack.enter_context(Connection(self.connection.uri))
                self._guest = self.connection.guest(self._guest.uuid)
            return self._guest

    def forget_checkpoints(self) -> None:
        """The backup has begun, or will not."""
        Checkpoints(self.reach(), self._journal).forget(self.checkpoints)

    def check(self) -> None:
        """Raises `ScratchFull` or `CaptureFailed` if the frozen view is gone."""
        if self._guard is not None and self._guard.gave_up():
            raise ScratchFull(vm=self._guest.name, path=self.place.directory.parent)
        if not under_way(self.reach(), self.place):
            detail = "its backup ended before everything was read: it was shut off, crashed or was told to"
            raise CaptureFailed(vm=self._guest.name, detail=detail)

    def explain(self) -> None:
        """A read has failed: `check`, with time for libvirt to notice why."""
        deadline = time.monotonic() + _NOTICE
        while time.monotonic() < deadline:
            self.check()
            time.sleep(_POLL)

    def end(self, outcome: str) -> None:
        """No job, no checkpoint, no files. Raises `RakshaError`: then the guard and the next run try as well."""
        try:
            guest = self.reach()
            end_job(guest, self.place)
            Checkpoints(guest, self._journal).forget(self.checkpoints)
        except VmNotFound:  # with the VM, all of that has gone
            pass
        remove(self.place)
        if self._guard is not None:
            self._guard.stop()
        self._journal.done(self._intent, outcome)

    def give_up(self) -> None:
        """The run is not durable: end it, and its bitmaps with it. Those of earlier runs count on. Never raises."""
        self._journal.set_bitmaps(self.bitmaps, BitmapState.UNWANTED)
        try:
            self.end("given up")
            drop_bitmaps(self.reach(), self._journal, self.bitmaps)
        except RakshaError:
            # The journal still tells the next run what to clear away.
            return
        finally:
            self.close()

    def close(self) -> None:
        """Let go. A guard that was not told that all is over takes it that we died, and ends the job."""
        if self._guard is not None:
            self._guard.let_go()
        self._stack.close()


def drop_bitmaps(guest: Guest, journal: Journal, bitmaps: Iterable[OwnBitmap]) -> list[str]:
    """Remove bitmaps of disks that the VM has, if it runs. Returns what could not be removed, a line each."""
    if not guest.is_active():
        return []
    targets = {disk.target for disk in parse_domain(guest.live_xml()).disks}
    left = []
    for bitmap in bitmaps:
        if bitmap.target not in targets:
            continue
        try:
            Checkpoints(guest, journal).remove(bitmap)
        except RakshaError as error:
            left.append(f"the bitmap {bitmap.name} of disk {bitmap.target} stays for now: {error}")
    return left
