"""Writing files that appear whole or not at all, and the space for them.

A file is written under a hidden name beside its place (`.raksha-XXXXXXXX.part`, mode 0600, owned like its directory
where that is ours to do) and gets its own name at the end, without ever replacing anything. What a process that is
killed leaves, the next one can tell (`leftovers`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from raksha import crash, direct
from raksha.errors import NoSpaceForRestore, TargetExists, TargetFailed, TargetUnusable
from raksha.restore import leftovers

#: buffers in one call; Linux takes 1024
_VECTOR = 512
#: bytes in one call, unless one buffer has more. For larger writes Linux takes larger pieces of memory, which a host
#: that is itself a VM has often not been given yet: that makes writing four times as slow.
_WRITE = 256 * 1024


class PartFile:
    """An open file that is not there yet."""

    def __init__(self, path: Path, vm: str = "") -> None:
        """`vm`: UUID of the VM that it is for, if there is one. Raises `TargetExists`, `TargetUnusable`."""
        if os.path.lexists(path):
            raise TargetExists(target=path)
        self.path = path
        self._vm = vm
        self._create()
        self._open = True
        self._published = False

    def _create(self) -> None:
        self.part = self.path.parent / f".raksha-{secrets.token_hex(4)}.part"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with crash.around("restore.create"):
                self.fd = os.open(self.part, flags, 0o600)
            self._direct = direct.reopened(self.fd)
        except OSError as error:
            raise TargetUnusable(target=self.path, detail=_reason(error, self.path)) from error
        if not leftovers.own(self.fd):
            self._close()
            self._create()

    def publish(self) -> None:
        """Make it durable and give it its name. Raises `TargetExists` if something took the name meanwhile.

        Until `settle` it counts as part of a restore that is not done.
        """
        with writing(self.path):
            if os.geteuid() == 0:
                # a directory that somebody else owns is for a VM that somebody else runs
                owner = self.path.parent.stat()
                os.fchown(self.fd, owner.st_uid, owner.st_gid)
            leftovers.mark(self.fd, self._vm)
            os.fsync(self.fd)
        rename_new(self.part, self.path)
        self._published = True
        sync(self.path.parent)

    def settle(self) -> None:
        """The restore that it belongs to is done."""
        if self._open:
            with crash.around("restore.settle"), writing(self.path):
                leftovers.unmark(self.fd)
                os.fsync(self.fd)
        self.close()

    def truncate(self, size: int) -> None:
        """Make it `size` bytes long, with a hole where nothing was written."""
        with writing(self.path):
            os.ftruncate(self.fd, size)

    def write(self, data: Sequence[bytes | memoryview], offset: int) -> None:
        """From any thread. Raises `TargetFailed`."""
        with writing(self.path):
            if not write_directly(self._direct, data, offset):
                write_at(self.fd, data, offset)
                # Linux starts to write back what is dirty there, so that little is left for the sync at the end
                os.posix_fadvise(self.fd, offset, sum(map(len, data)), os.POSIX_FADV_DONTNEED)

    def discard(self) -> None:
        """Remove it, whatever name it has by now. May be called twice."""
        self.close()
        (self.path if self._published else self.part).unlink(missing_ok=True)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._close()

    def _close(self) -> None:
        os.close(self.fd)
        if self._direct >= 0:
            os.close(self._direct)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file without replacing anything. Raises `TargetExists`, `TargetFailed`."""
    try:
        with crash.around("restore.link"):
            os.link(source, target, follow_symlinks=False)
    except FileExistsError as error:
        raise TargetExists(target=target) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise TargetFailed(target=target, detail=error.strerror) from error
        # no hard links on this file system: as near to it as plain calls come
        if os.path.lexists(target):
            raise TargetExists(target=target) from error
        with writing(target), crash.around("restore.rename"):
            source.rename(target)
    else:
        with crash.around("restore.unlink"):
            source.unlink()


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable."""
    with writing(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns the system's errors into `TargetFailed`."""
    try:
        yield
    except OSError as error:
        raise TargetFailed(target=target, detail=error.strerror or str(error)) from error


def write_directly(fd: int, data: Sequence[bytes | memoryview], offset: int) -> bool:
    """Write whole blocks past the page cache; whether all of it was (if not, it is to be written again).

    `fd` comes from `direct.reopened`.
    """
    length = sum(map(len, data))
    if fd < 0 or length < direct.WORTH or (offset | length) % direct.BLOCK:
        return False
    return direct.write_blocks(fd, direct.gathered(data), offset) == length


def write_at(fd: int, data: Sequence[bytes | memoryview], offset: int) -> None:
    """All of `data`, one after the other, from `offset` on."""
    step = max(1, min(_VECTOR, _WRITE // max(map(len, data), default=1)))
    for first in range(0, len(data), step):
        some = data[first : first + step]
        wanted = sum(map(len, some))
        done = os.pwritev(fd, some, offset)
        if done < wanted:
            _write_rest(fd, memoryview(b"".join(some))[done:], offset + done)
        offset += wanted


def _write_rest(fd: int, rest: memoryview, offset: int) -> None:
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done


def require_space(wanted: Sequence[tuple[Path, int]]) -> None:
    """Check that directories have room for so many bytes each, those of one file system taken together.

    Raises `NoSpaceForRestore`, `TargetUnusable`.
    """
    by_device: dict[int, tuple[Path, int]] = {}
    for directory, amount in wanted:
        try:
            device = directory.stat().st_dev
        except OSError as error:
            raise TargetUnusable(target=directory, detail=error.strerror) from error
        by_device[device] = (directory, by_device.get(device, (directory, 0))[1] + amount)
    for directory, amount in by_device.values():
        there = os.statvfs(directory)
        if (free := there.f_bavail * there.f_frsize) < amount:
            raise NoSpaceForRestore(target=directory, free=free, wanted=amount)


def _reason(error: OSError, path: Path) -> str:
    if error.errno == errno.ENOENT:
        return f"there is no directory {path.parent}"
    return error.strerror or str(error)
