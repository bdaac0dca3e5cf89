"""A block device as the target of a restore.

A device is written only if nobody else uses it: not mounted, not below another device, no other exclusive opener
(`O_EXCL`), and no QEMU on it (the locks that QEMU holds on its images). Everything that the disk does not hold is
made to read as zeroes, to the very end of the device: what stood there before must not show in the restored VM.

Nothing brings the old content back: after an error the device is `spoiled`, and whoever restores must say so.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from raksha import direct
from raksha.errors import TargetUnusable
from raksha.restore.context import Context
from raksha.restore.files import write_at, write_directly, writing
from raksha.restore.plan import zero_runs
from raksha.restore.source import Pages
from raksha.restore.targets import cut
from raksha.types import Geometry

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
#: bytes zeroed between two looks at whether to end
_STEP = 256 * 1024 * 1024
_ZEROES = bytes(1024 * 1024)
#: QEMU locks single bytes from 100 on for what it does with an image, from 200 on for what others may not do
_QEMU_LOCKS = (100, 200)
#: struct flock
_FLOCK = struct.Struct("hhqqi4x")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)


class BlockDevice:
    """Fulfils `Target`. The device may be larger than the disk, not smaller."""

    overhead: int | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spoiled = False
        self._geometry = Geometry(0)
        self._fd = self._direct = -1
        self._size = 0

    def claim(self) -> None:
        try:
            if not stat.S_ISBLK(self.path.stat().st_mode):
                raise TargetUnusable(target=self.path, detail="it is no block device")
            self._fd = os.open(self.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *_QEMU_LOCKS, 0))
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
            self._direct = direct.reopened(self._fd)
        except OSError as error:
            busy = error.errno in (errno.EBUSY, errno.EAGAIN)
            detail = "it is in use (mounted, part of another device, or open in QEMU)" if busy else error.strerror
            raise TargetUnusable(target=self.path, detail=detail) from error

    def prepare(self, pages: Pages, context: Context) -> None:
        self._geometry = pages.geometry
        if self._size < self._geometry.size:
            detail = f"it has {self._size} bytes, the disk has {self._geometry.size}"
            raise TargetUnusable(target=self.path, detail=detail)
        for start, length in self._blank(pages):
            context.check()
            self.spoiled = True
            with writing(self.path):
                _zero(self._fd, start, length)

    def _blank(self, pages: Pages) -> Iterator[tuple[int, int]]:
        """(start, length) in bytes of everything that is to read as zeroes, in steps."""
        size = self._geometry.cluster_size
        end = self._geometry.clusters * size
        runs = ((first * size, count * size) for first, count in zero_runs(pages))
        for start, length in chain(runs, [(end, self._size - end)]):
            stop = min(start + length, self._size)
            for at in range(start, stop, _STEP):
                yield at, min(_STEP, stop - at)

    def write(self, cluster: int, data: Sequence[bytes | memoryview]) -> None:
        self.spoiled = True
        size = self._geometry.cluster_size
        with writing(self.path):
            some = cut(data, cluster, size, self._size)
            if not write_directly(self._direct, some, cluster * size):
                write_at(self._fd, some, cluster * size)

    def finish(self) -> None:
        with writing(self.path):
            os.fsync(self._fd)
        self.spoiled = False
        self.discard()

    def settle(self) -> None:
        """A device has no name that it could have too early."""

    def discard(self) -> None:
        """Let the device go, as it is."""
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1


def _zero(fd: int, start: int, length: int) -> None:
    """Make a range read as zeroes: given back to a thin device if it can, else zeroed by it, else written."""
    for mode in (_PUNCH_HOLE, _ZERO_RANGE):
        if _libc.fallocate(fd, mode | _KEEP_SIZE, start, length) == 0:
            return
        if (code := ctypes.get_errno()) not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
    for at in range(start, start + length, len(_ZEROES)):
        write_at(fd, [memoryview(_ZEROES)[: min(len(_ZEROES), start + length - at)]], at)
