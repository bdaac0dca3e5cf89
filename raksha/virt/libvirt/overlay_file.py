"""Our overlay files: where they are made, how they are marked, and when one may be deleted.

An overlay is created with O_EXCL and mode 0600, owned like the layer it grows on, and carries the run's id in the
extended attribute `user.raksha` where the file system has those. `trash` deletes it after nothing names it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from raksha import crash
from raksha.config import Settings
from raksha.errors import NoSpaceForOverlay, OverlayExists
from raksha.journal import FileId
from raksha.qcow2.header import Backing
from raksha.qcow2.plain import PlainImage
from raksha.types import Geometry
from raksha.virt.libvirt.chain import relative_name
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.processes import users_of

XATTR = "user.raksha"

_OUR_NAME = re.compile(r"\.raksha-[0-9a-z]{1,8}-[0-9a-z]{1,8}-[^/]+\.qcow2$")

#: bytes of a file's name that are kept, so that ours stays below the usual limit of 255
_STEM = 150


class OverlayPlan(Struct, frozen=True):
    """An overlay that is to be made for one disk."""

    target: str
    path: str
    #: the layer that it will stand on
    backing: Layer
    #: bytes, as the guest sees the disk
    size: int


def overlay_path(base: Layer, *, run: str, vm: str, target: str, settings: Settings, attempt: int = 1) -> str:
    """Beside the VM's own file, or in the configured directory; block devices have no beside.

    `attempt`: at this very run; the layer of an earlier one may still be in the chain.
    """
    if settings.overlay_dir is not None:
        directory = settings.overlay_dir
    elif base.kind == "block":
        directory = settings.state_dir / "overlays"
    else:
        directory = Path(base.path).parent
    stem = os.fsdecode(os.fsencode(Path(base.path).stem)[:_STEM])
    again = "" if attempt == 1 else f"-{attempt}"
    return str(directory / f"{stem}.raksha-{_short(run)}-{_short(vm)}-{_plain(target)}{again}.qcow2")


def is_our_name(path: str) -> bool:
    """Whether only `overlay_path` gives such names."""
    return _OUR_NAME.search(path) is not None


def belongs_to(path: str, *, run: str, vm: str, target: str) -> bool:
    """Whether `overlay_path` gives this name to an overlay of that run and disk."""
    name = rf"\.raksha-{_short(run)}-{_short(vm)}-{_plain(target)}(-[0-9]+)?\.qcow2$"
    return re.search(name, path) is not None


def run_in_name(path: str) -> str:
    """How the id of the run begins that an overlay of ours was made by. Empty: it is none."""
    return path.rpartition(".raksha-")[2].partition("-")[0] if is_our_name(path) else ""


def _short(identifier: str) -> str:
    return _plain(identifier.lower())[:8] or "0"


def _plain(text: str) -> str:
    return re.sub(r"[^0-9a-z]", "", text)


def check_space(vm: str, plans: Iterable[OverlayPlan], settings: Settings) -> None:
    """Whether each file system has room for all overlays that are to grow there.

    Makes the directory of overlays of block devices, if that is where they go. Raises `NoSpaceForOverlay`, `OSError`.
    """
    wanted: dict[int, int] = {}
    for plan in plans:
        directory = Path(plan.path).parent
        if directory == settings.state_dir / "overlays":
            # QEMU, another user than we are, must get to its overlays; nobody need see the others.
            directory.mkdir(mode=0o711, exist_ok=True)
        device = directory.stat().st_dev
        share = min(int(plan.size * settings.overlay_reserve), settings.overlay_reserve_max)
        wanted[device] = wanted.get(device, 0) + max(settings.overlay_reserve_min, share)
        room = os.statvfs(directory)
        free = room.f_bavail * room.f_frsize
        if free < wanted[device]:
            raise NoSpaceForOverlay(vm=vm, disk=plan.target, path=directory, free=free, wanted=wanted[device])


def has_room(vm: str, plans: Iterable[OverlayPlan], settings: Settings) -> bool:
    """Raises `OSError`."""
    try:
        check_space(vm, plans, settings)
    except NoSpaceForOverlay:
        return False
    return True


def make(plan: OverlayPlan, run: str) -> FileId:
    """Create the overlay, durable: ours alone, marked and whole from the moment it has a name.

    Only where a file cannot be made before it has a name (NFS), a crash can leave one that is blank: see `is_blank`.
    Raises `OverlayExists`, `BadName` for a backing file that qcow2 cannot name, `OSError`.
    """
    name = relative_name(plan.path, plan.backing.path) or plan.backing.path
    empty = PlainImage(Geometry(plan.size), (), Backing(name, plan.backing.format))
    # the header last: what has one is whole
    pieces = [*empty.fixed()][::-1]
    try:
        descriptor = _filled(plan, run, pieces)
    except FileExistsError as error:
        raise OverlayExists(path=plan.path) from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return FileId(plan.path, status.st_dev, status.st_ino)


def is_blank(path: str) -> bool:
    """Whether the file was made for an overlay that it did not become. Raises `OSError`."""
    with Path(path).open("rb") as file:
        return not file.read(4).strip(b"\0")


def _filled(plan: OverlayPlan, run: str, pieces: Sequence[tuple[int, bytes]]) -> int:
    """Raises `OSError`, `FileExistsError` among them."""
    path = Path(plan.path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            descriptor = os.open(path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                raise
            descriptor = _named(plan, run, pieces)
        else:
            try:
                _mark(descriptor, plan, run)
                _fill(descriptor, pieces)
                with crash.around("overlay.create"):
                    # Naming the directory makes Python follow the link in /proc.
                    os.link(f"/proc/self/fd/{descriptor}", path.name, dst_dir_fd=directory, follow_symlinks=True)
            except BaseException:
                os.close(descriptor)
                raise
        os.fsync(directory)
    finally:
        os.close(directory)
    return descriptor


def _named(plan: OverlayPlan, run: str, pieces: Sequence[tuple[int, bytes]]) -> int:
    with crash.around("overlay.create"):
        descriptor = os.open(plan.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _mark(descriptor, plan, run)
        _fill(descriptor, pieces)
    except BaseException:
        os.close(descriptor)
        Path(plan.path).unlink()
        raise
    return descriptor


def _fill(descriptor: int, pieces: Sequence[tuple[int, bytes]]) -> None:
    with crash.around("overlay.fill"):
        for offset, data in pieces:
            os.pwrite(descriptor, data, offset)
        os.fsync(descriptor)


def _mark(descriptor: int, plan: OverlayPlan, run: str) -> None:
    try:
        with crash.around("overlay.mark"):
            os.setxattr(descriptor, XATTR, run.encode())
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise
    # QEMU may run as another user than we do; whoever can write the layer below must be able to write this one.
    below = Path(plan.backing.path).stat()
    if os.geteuid() == 0 and stat.S_ISREG(below.st_mode):
        os.fchown(descriptor, below.st_uid, below.st_gid)


def mark_of(path: str) -> str | None:
    """The run that the file is marked with, empty if with none; None: the file system has no such marks."""
    try:
        return os.getxattr(path, XATTR, follow_symlinks=False).decode("utf-8", "replace")
    except OSError as error:
        return None if error.errno == errno.ENOTSUP else ""


def is_the_one(file: FileId, run: str) -> bool:
    """Whether what lies at the path is the file that we made: the same inode, or marked with the run."""
    try:
        status = Path(file.path).lstat()
        if not stat.S_ISREG(status.st_mode):
            return False
        return status.st_ino == file.inode or os.getxattr(file.path, XATTR) == run.encode()
    except OSError:
        return False


def remove(file: FileId, run: str) -> str | None:
    """Delete a file that was made for an overlay and never used. Returns why it was left alone, or None."""
    try:
        status = Path(file.path).lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{file.path} was left alone: {error.strerror}"
    if not is_the_one(file, run):
        return f"{file.path} was left alone: it is not the file that Raksha made"
    if pids := users_of(status.st_dev, status.st_ino):
        return f"{file.path} was left alone: process {pids[0]} has it open"
    with crash.around("overlay.remove"):
        Path(file.path).unlink()
    return None
