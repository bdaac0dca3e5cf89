"""What a restore that was killed leaves behind, and how the next one tells it from everything else.

Hidden files and directories (`.raksha-XXXXXXXX.part`) are locked by the process that fills them: one that is not locked
has no owner any more. A file that already has its name carries an extended attribute until the whole restore is done,
with the time of its last change: one that is not locked, still carries it and was not written to since, is no more
than what the vault has. If it was to be the disk of a new VM, that VM must not be there either.

Not promised: that a file which has its name is recognised on a file system without extended attributes. It is never
overwritten there; the restore says that the name is taken.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raksha import crash

_PREFIX, _SUFFIX = ".raksha-", ".part"
_MARK = "user.raksha.restore"
_NO_MARKS = (errno.ENOTSUP, errno.EPERM)


def own(descriptor: int) -> bool:
    """Lock an open file or directory until it is closed. False: somebody took it for a leftover and removed it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0


def mark(descriptor: int, vm: str) -> None:
    """The file is about to get its name, and belongs to a restore that is not done. `vm`: UUID of the new VM, or ""."""
    with _ignoring(*_NO_MARKS):
        os.setxattr(descriptor, _MARK, f"{os.fstat(descriptor).st_mtime_ns} {vm}".encode())


def unmark(descriptor: int) -> None:
    """The restore is done."""
    with _ignoring(*_NO_MARKS, errno.ENODATA):
        os.removexattr(descriptor, _MARK)


@contextmanager
def _ignoring(*codes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise


def clear(path: Path, is_defined: Callable[[str], bool]) -> None:
    """Remove leftovers in the way of a new file at `path`, and hidden ones beside it.

    `is_defined` tells of a VM, by UUID, whether it is there.
    """
    with suppress(OSError):
        for each in path.parent.glob(f"{_PREFIX}*{_SUFFIX}"):
            _remove(each, lambda _descriptor: True)
    _remove(path, lambda descriptor: _is_unfinished(descriptor, is_defined))


def _remove(path: Path, doomed: Callable[[int], bool]) -> None:
    """Nothing that is locked, and nothing that took the name meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if doomed(descriptor) and os.path.samestat(status, path.lstat()):
            with crash.around("restore.clear"):
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(path, ignore_errors=True)
                elif stat.S_ISREG(status.st_mode):
                    path.unlink()
    except OSError:  # in use, gone, or not ours to remove: then it is in the way, and its owner is told
        return
    finally:
        os.close(descriptor)


def _is_unfinished(descriptor: int, is_defined: Callable[[str], bool]) -> bool:
    changed, _, vm = os.getxattr(descriptor, _MARK).decode().partition(" ")
    return os.fstat(descriptor).st_mtime_ns == int(changed) and not (vm and is_defined(vm))
