"""Writing past the page cache.

What a backup or restore writes is not read soon. In the page cache it would push out what the VMs of the host work
with, and getting there takes most of the processor time of writing: large writes that go directly to the disk take a
third of the wall clock, and a twentieth of the processor's (ext4 on a virtual disk; `docs/architecture.md`).

Promises: what `write_blocks` says it wrote is at its place, and needs an `fsync` like any other write; where the file
system, the disk or the place in memory does not allow direct writing, it says so by a smaller number, not by an error.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence

from raksha.types import Buffer

#: bytes; the largest block that disks have: direct writes begin and end at multiples
BLOCK = 4096
#: bytes; less than this is left to the page cache, which gathers small writes
WORTH = 1 << 18
#: bytes by which memory grows
_STEP = 1 << 20


def reopened(fd: int) -> int:
    """A second descriptor of an open file, for direct writing; -1 where its file system has no such thing."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def write_blocks(fd: int, data: memoryview, offset: int) -> int:
    """Write whole blocks from a multiple of `BLOCK` on; the number of bytes written, at most `len(data)`.

    `fd` comes from `reopened`. Raises `OSError`, but for EINVAL: that is how Linux says that it is not to be.
    """
    if fd < 0 or offset % BLOCK or len(data) < WORTH:
        return 0
    end = len(data) // BLOCK * BLOCK
    done = 0
    try:
        while done < end:
            done += os.pwrite(fd, data[done:end], offset + done)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return done


class Pages:
    """Memory that begins at a page, for one thread; used again and again, as the first use of a page costs most."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _STEP)

    def gather(self, data: Sequence[Buffer], length: int) -> memoryview:
        """All of `data`, one behind the other, padded with zeroes to `length`. The next call overwrites it."""
        if len(self._memory) < length:
            self._memory = mmap.mmap(-1, -(-length // _STEP) * _STEP)
        view = memoryview(self._memory)[:length]
        at = 0
        for part in data:
            view[at : at + len(part)] = part
            at += len(part)
        view[at:] = bytes(length - at)
        return view


class _Own(threading.local):
    def __init__(self) -> None:
        self.pages = Pages()


_own = _Own()


def gathered(data: Sequence[Buffer]) -> memoryview:
    """All of `data`, one behind the other, in memory of this thread that its next call overwrites."""
    return _own.pages.gather(data, sum(map(len, data)))
