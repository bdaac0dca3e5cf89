"""A process of its own that ends a backup job when its parent cannot: `python -m … URI UUID DIRECTORY WATERMARK`.

It says `ready` once it is connected. `armed` on its input starts the watch; `done` ends it. When less than WATERMARK
bytes are free in DIRECTORY, the job is given up (it says `full`) and a guest that QEMU has stopped for want of space
goes on. The end of the input (the parent died) ends the job and removes the directory, again and again until libvirt
agrees or patience ends. Exit status: 0 nothing left to do, 3 cleaned up after the parent, 4 could not.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from raksha.errors import RakshaError, VmNotFound
from raksha.virt.libvirt.connection import Connection, Guest
from raksha.virt.libvirt.pull_job import end_job
from raksha.virt.libvirt.pull_place import Place, free_bytes, remove

#: seconds between two looks at the space
_PACE = 0.1
#: seconds after the end of a job in which QEMU may still find that there was no space
_AFTERMATH = 2.0
#: seconds between two attempts to clean up, and over which attempts are made
_PAUSE = 0.5
_PATIENCE = 120.0

IDLE, CLEANED, FAILED = 0, 3, 4


def main(uri: str, uuid: str, place: Place, watermark: int) -> int:
    # An interrupt from the keyboard goes to the whole group: the parent tells us when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(uri) as connection:
        connection.guest(uuid)
        os.write(1, b"ready\n")
        if _next_word(None) != b"armed":
            return IDLE
        if _watch(connection, uuid, place, watermark):
            return IDLE
    return _clean_up(uri, uuid, place)


def _next_word(timeout: float | None) -> bytes | None:
    """A line of the input; empty at its end, None after `timeout` seconds."""
    readable, _, _ = select.select([0], [], [], timeout)
    return os.read(0, 64).strip() if readable else None


def _watch(connection: Connection, uuid: str, place: Place, watermark: int) -> bool:
    """Until the parent is done (True) or gone (False)."""
    gave_up: float | None = None
    while (word := _next_word(_PACE)) is None:
        # The directory may be gone already, and with it all that there was to watch.
        with suppress(OSError, RakshaError):
            if gave_up is None and free_bytes(place.directory) < watermark:
                with suppress(BrokenPipeError):
                    os.write(1, b"full\n")
                end_job(connection.guest(uuid), place)
                gave_up = time.monotonic()
            if gave_up is not None and time.monotonic() < gave_up + _AFTERMATH:
                _let_go_on(connection.guest(uuid))
    return word == b"done"


def _let_go_on(guest: Guest) -> None:
    """QEMU stops a guest whose write found no space; now it can be tried again."""
    if guest.stopped_by_disk():
        guest.resume()


def _clean_up(uri: str, uuid: str, place: Place) -> int:
    patience = time.monotonic() + _PATIENCE
    while time.monotonic() < patience:
        try:
            with Connection(uri) as connection:
                end_job(connection.guest(uuid), place)
        except VmNotFound:
            break
        except RakshaError:
            time.sleep(_PAUSE)
        else:
            break
    else:
        return FAILED
    remove(place)
    return CLEANED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Place(Path(sys.argv[3])), int(sys.argv[4])))
