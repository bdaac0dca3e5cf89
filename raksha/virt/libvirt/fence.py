"""The fence: a VM's own file is immutable while an overlay of ours stands on it, so that nothing can start below.

Only a regular file directly below our oldest overlay, never an image that others share; only where the file system has
the flag and we may set it, otherwise there is no fence. The journal knows of it before it is set. A flag that was there
before is the owner's and stays. We lift ours around our own merges, at release, and wherever it no longer belongs.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raksha import crash
from raksha.config import Settings
from raksha.journal import Fenced, Journal, LayerState
from raksha.virt.libvirt.observe import Seen, key_of

_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_IMMUTABLE = 0x10


class Fence:
    """Fences of this host's VMs."""

    def __init__(self, journal: Journal, settings: Settings) -> None:
        self._journal = journal
        self._wanted = settings.fence

    def settle(self, seen: Seen) -> list[str]:
        """Fences where they belong and nowhere else. Returns what could not be lifted."""
        belongs = {}
        for disk in seen.disks:
            chain = disk.live or disk.headers or ()
            own = {key_of(each.layer.file.path): each for each in seen.overlays if each.file}
            below = [n for n in range(1, len(chain)) if chain[n - 1].key in own and chain[n].key not in own]
            if below and own[chain[below[0] - 1].key].layer.state is not LayerState.ORPHAN:
                belongs[chain[below[0]].key] = (disk.target, chain[below[0]].path)
        wanted = belongs if self._wanted else {}
        stale = [each for each in self._journal.fences(seen.uuid) if key_of(each.path) not in wanted]
        left = [why for each in stale if (why := self._lift(each)) is not None]
        for target, path in wanted.values():
            self.put_up(seen.uuid, target, path)
        return left

    def put_up(self, vm: str, target: str, path: str) -> bool:
        """Whether the file has our flag now."""
        if not self._wanted:
            return False
        known = any(key_of(each.path) == key_of(path) for each in self._journal.fences(vm))
        flags = _flags(path)
        if flags is None or (flags & _IMMUTABLE and not known):
            return False
        if not known:
            self._journal.add_fence(Fenced(path, vm, target, Path(path).stat().st_ino))
        if not flags & _IMMUTABLE and not _set(path, flags | _IMMUTABLE):
            self._journal.forget_fence(path)
            return False
        return True

    def lift_all(self, vm: str) -> list[str]:
        """For a VM that is given back. Returns what could not be lifted."""
        return [why for each in self._journal.fences(vm) if (why := self._lift(each)) is not None]

    @contextmanager
    def lifted(self, vm: str, target: str) -> Iterator[None]:
        """While we merge into it ourselves. It is up again afterwards if an overlay of ours still stands on it."""
        down = [each for each in self._journal.fences(vm) if each.target == target]
        for each in down:
            self._lift(each)
        try:
            yield
        finally:
            standing = [layer for layer in self._journal.layers(vm) if layer.target == target]
            if any(layer.state is LayerState.CHAINED for layer in standing):
                for each in down:
                    self.put_up(vm, target, each.path)

    def _lift(self, fence: Fenced) -> str | None:
        """Returns why it is still there, or None."""
        try:
            same = Path(fence.path).stat().st_ino == fence.inode
        except FileNotFoundError:
            same = False
        flags = _flags(fence.path) if same else None
        if flags is not None and flags & _IMMUTABLE and not _set(fence.path, flags & ~_IMMUTABLE):
            return f"{fence.path} still has the immutable flag that Raksha gave it: chattr -i takes it away"
        self._journal.forget_fence(fence.path)
        return None


def _flags(path: str) -> int | None:
    """None where the file system has none, or the file is no regular one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        value = array.array("l", [0])
        fcntl.ioctl(descriptor, _GET_FLAGS, value)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return None
        raise
    finally:
        os.close(descriptor)
    return value[0] & 0xFFFFFFFF


def _set(path: str, flags: int) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with crash.around("fence.set"):
            fcntl.ioctl(descriptor, _SET_FLAGS, array.array("l", [flags]))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOTTY, errno.EOPNOTSUPP):
            return False
        raise
    finally:
        os.close(descriptor)
    return True
