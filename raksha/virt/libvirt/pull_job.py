"""The backup job of a VM: ending it, and the process that watches over it.

A guest write waits until QEMU has put what it overwrites into the scratch file; with no space there QEMU stops the
guest. So `pull_guard`, a process of its own, gives the job up before that happens, and also when this process dies.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress

from raksha.errors import LibvirtFailed, VmBusy
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.pull_place import Place
from raksha.virt.libvirt.pull_xml import socket_of

#: seconds for libvirt to end a job that was told to, and between two looks
_END = 30.0
_POLL = 0.01

#: seconds for the guard to be ready, and to end when told so
_START = 20.0
_STOP = 5.0


def under_way(guest: Guest, place: Place) -> bool:
    """Whether the VM has a backup job, and it is the one that serves at `place`. Raises `LibvirtFailed`."""
    backup = guest.backup_xml()
    return backup is not None and socket_of(backup) == str(place.socket)


def end_job(guest: Guest, place: Place) -> bool:
    """End the backup job that serves at `place`; no other. Returns whether there was one, when it is gone.

    Raises `LibvirtFailed`, `VmBusy`.
    """
    if not under_way(guest, place):
        return False
    try:
        guest.abort_domain_job()
    except LibvirtFailed:
        if under_way(guest, place):  # it has not ended by itself meanwhile
            raise
    deadline = time.monotonic() + _END
    while under_way(guest, place):
        if time.monotonic() > deadline:
            raise VmBusy(vm=guest.name, detail="an earlier backup of it does not end")
        time.sleep(_POLL)
    return True


class Guard:
    """The parent's end of `pull_guard`."""

    def __init__(self, uri: str, uuid: str, place: Place, watermark: int) -> None:
        command = [sys.executable, "-m", "raksha.virt.libvirt.pull_guard", uri, uuid, str(place.directory)]
        self._process = subprocess.Popen(
            [*command, str(watermark)],
            # it has to outlive us, wherever a test lets us die
            env={name: value for name, value in os.environ.items() if not name.startswith("RAKSHA_CRASH")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._heard = b""
        self._hearing = threading.Lock()

    def ready(self) -> bool:
        """Wait until it is connected."""
        return self._hear(b"ready\n", _START)

    def arm(self) -> bool:
        """From now on it watches. False: it is not there."""
        return self._tell(b"armed\n")

    def gave_up(self) -> bool:
        """It has ended the job for want of space."""
        return self._hear(b"full\n", 0)

    def stop(self) -> None:
        """The job is over."""
        self._tell(b"done\n")
        self.let_go()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP)

    def let_go(self) -> None:
        """Leave the job to it, if it was not stopped. May be called twice."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()

    def _hear(self, word: bytes, timeout: float) -> bool:
        stdout = self._process.stdout
        assert stdout is not None
        with self._hearing:
            if not stdout.closed and select.select([stdout], [], [], timeout)[0]:
                self._heard += stdout.read1()  # type: ignore[attr-defined]
            return word in self._heard

    def _tell(self, word: bytes) -> bool:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True
