"""Whether a QEMU has an image open, on whatever host: by the locks that it takes on bytes of the file.

/proc tells of this host alone. A file system that hosts share tells of the others' locks as well (NFSv4, CephFS, GFS2
and OCFS2 do). QEMU locks one byte for each permission that it has, and one for each that it denies to others.

Not promised: anything where locks stay on their host (a local file system, NFS mounted with `local_lock`), or about
images that were opened with `locking=off`.
"""

from __future__ import annotations

import fcntl
import os
import struct

#: not in Python's fcntl module
_F_OFD_GETLK = 36
#: struct flock of Linux: type, whence, start, length, pid
_FLOCK = struct.Struct("@hhqqi4x")
#: block/file-posix.c: RAW_LOCK_PERM_BASE + the bit of BLK_PERM_WRITE
_WRITES = 101


def is_written(path: str) -> bool:
    """Whether anybody has the right to write to it. Raises `OSError`."""
    return _locked(path, _WRITES, 1)


def is_open(path: str) -> bool:
    """Whether anybody has it open. Raises `OSError`."""
    return _locked(path, 0, 0)


def _locked(path: str, start: int, length: int) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        found = _FLOCK.unpack(fcntl.fcntl(descriptor, _F_OFD_GETLK, wanted))
    finally:
        os.close(descriptor)
    return bool(found[0] != fcntl.F_UNLCK)
