"""Freezing a guest's file systems through its agent, and thawing them whatever happens.

A watchdog process (`thaw_watchdog`) is there before anything is frozen; it thaws at the deadline, or at once when this
process dies. A freeze that fails is followed by a thaw as well: it may have been half done.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from contextlib import suppress

from raksha.config import Settings
from raksha.errors import LibvirtFailed, QuiesceFailed
from raksha.journal import Journal
from raksha.states import Quiesce
from raksha.virt.libvirt.connection import Guest

#: seconds for the watchdog to be ready
_START = 20.0
#: seconds for it to end when told so
_STOP = 5.0


class Watchdog:
    """The parent's end of `thaw_watchdog`."""

    def __init__(self, uri: str, uuid: str, deadline: float) -> None:
        command = [sys.executable, "-m", "raksha.virt.libvirt.thaw_watchdog", uri, uuid, str(deadline)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def ready(self) -> bool:
        """Wait until it is connected."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _START)
        return bool(readable) and self._process.stdout.readline() == b"ready\n"

    def arm(self) -> bool:
        """Start the clock. False: it is not there."""
        return self._tell(b"armed\n")

    def watching(self) -> bool:
        """It has not thawed yet."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Nothing is frozen any more."""
        self._tell(b"done\n")
        self._close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP)

    def let_go(self) -> None:
        """Leave the thawing to it."""
        self._close()

    def _tell(self, word: bytes) -> bool:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


class Freezer:
    """One freeze of one guest. `prepare` first, then `freeze`, the snapshot, `thaw`; `close` at the end of all ways."""

    def __init__(self, guest: Guest, uri: str, quiesce: Quiesce, settings: Settings, journal: Journal) -> None:
        self._guest = guest
        self._uri = uri
        self._quiesce = quiesce
        self._settings = settings
        self._journal = journal
        self._watchdog: Watchdog | None = None
        self._intent: int | None = None
        self._since: float | None = None
        #: the guest stood still from the freeze to the end of the snapshot
        self.held = False
        #: seconds; None: it was not frozen
        self.seconds: float | None = None
        #: what a person should know
        self.warnings: list[str] = []

    def prepare(self, power: str, agent: str | None) -> None:
        """Decide whether to freeze. Raises `QuiesceFailed` only where freezing is required."""
        if self._quiesce is Quiesce.NEVER or power == "shut off":
            return
        if power == "paused":
            self._give_up("it is paused")
        elif agent != "connected":
            self._give_up("its guest agent is not connected" if agent else "it has no channel for a guest agent")
        else:
            self._watchdog = Watchdog(self._uri, self._guest.uuid, self._settings.freeze_deadline)
            if not self._watchdog.ready():
                self.close()
                self._give_up("the watchdog that would thaw it could not be started")

    def _give_up(self, detail: str) -> None:
        if self._quiesce is Quiesce.REQUIRE:
            raise QuiesceFailed(vm=self._guest.name, detail=detail)

    def freeze(self) -> None:
        if self._watchdog is None:
            return
        self._intent = self._journal.begin("freeze", vm=self._guest.uuid)
        if not self._watchdog.arm():
            self._give_up("the watchdog that would thaw it is gone")
            return
        self._since = time.monotonic()
        try:
            self._guest.agent_timeout(self._settings.agent_timeout)
            frozen = self._guest.fs_freeze()
            problem = "it has no file system that can be frozen" if frozen == 0 else None
        except LibvirtFailed as error:
            problem = str(error.fields["detail"])
        if problem is not None:
            self.thaw()
            self.seconds = None
            self._give_up(problem)
            return
        self.held = True

    def holds(self) -> bool:
        """It is frozen, and nobody of ours has thawed it."""
        return self.held and self._watchdog is not None and self._watchdog.watching()

    def check(self) -> None:
        """Called right before the snapshot. Raises `QuiesceFailed` where a freeze is required and did not last."""
        if self.held and not self.holds():
            self.held = False
            self._give_up("the freeze did not last until the snapshot")

    def snapshot_taken(self) -> None:
        """Called right after the snapshot: was it still our freeze?"""
        self.held = self.holds()

    def thaw(self) -> None:
        """Never raises. What fails here is left to the watchdog, which goes on trying."""
        if self._since is None or self._watchdog is None:
            return
        since, self._since = self._since, None
        try:
            thawed = self._guest.fs_thaw()
            self._guest.agent_timeout(None)
        except LibvirtFailed as error:
            self.warnings.append(f"thawing {self._guest.name} failed ({error.fields['detail']}); it is tried again")
            self.held = False
            self._watchdog.let_go()
        else:
            # Nothing left to thaw means that somebody, perhaps the guest itself, did it before us.
            self.held = self.held and thawed > 0
            self._watchdog.stop()
        self._watchdog = None
        self.seconds = time.monotonic() - since
        if self._intent is not None:
            self._journal.done(self._intent, "thawed" if self.held else "thawed; the freeze did not hold")
            self._intent = None

    def close(self) -> None:
        self.thaw()
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None
