"""A process of its own that thaws a guest when its parent cannot: `python -m … URI UUID DEADLINE`.

It says `ready` once it is connected. `armed` on its input starts the clock; `done` ends it. The end of the input
(the parent died) or the deadline (seconds) thaws, again and again until the guest agent agrees or patience ends.
Exit status: 0 nothing to do, 3 thawed, 4 could not.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

import libvirt

#: seconds between two attempts, and over which attempts are made
_PAUSE = 0.5
_PATIENCE = 120.0

IDLE, THAWED, FAILED = 0, 3, 4


def main(uri: str, uuid: str, deadline: float) -> int:
    # An interrupt from the keyboard goes to the whole group: the parent tells us when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open(uri)
    domain = connection.lookupByUUIDString(uuid)
    os.write(1, b"ready\n")
    if _next_word(None) != b"armed":
        return IDLE
    if _next_word(deadline) == b"done":
        return IDLE
    return THAWED if _thaw(uri, uuid, domain) else FAILED


def _next_word(timeout: float | None) -> bytes:
    """A line of the input, or nothing at its end or after `timeout` seconds."""
    readable, _, _ = select.select([0], [], [], timeout)
    return os.read(0, 64).strip() if readable else b""


def _thaw(uri: str, uuid: str, domain: libvirt.virDomain) -> bool:
    patience = time.monotonic() + _PATIENCE
    while time.monotonic() < patience:
        try:
            domain.fsThaw()
        except libvirt.libvirtError:
            time.sleep(_PAUSE)
        else:
            return True
        try:
            domain = libvirt.open(uri).lookupByUUIDString(uuid)
            if not domain.isActive():
                return True
        except libvirt.libvirtError:
            continue
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
