"""Where QEMU keeps scratch files and listens while a VM is backed up: one directory per VM and run.

A scratch file takes what the guest overwrites during the backup, as it was before. QEMU makes those files and the
socket itself, so the directory belongs to the user it runs as; nobody else gets in.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from raksha import crash
from raksha.config import Settings
from raksha.errors import CaptureFailed, NoSpaceForScratch
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.pull_xml import qemu_owner

#: bytes that the name of a unix socket may have
_SOCKET_NAME = 107


class Place(Struct, frozen=True):
    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / "nbd"

    def scratch(self, target: str) -> Path:
        return self.directory / f"{target}.qcow2"


def place_of(settings: Settings, run: str, vm: str) -> Place:
    return Place(_parent(settings) / f"raksha-{_short(run)}-{_short(vm)}")


def _parent(settings: Settings) -> Path:
    return settings.scratch_dir or settings.state_dir / "scratch"


def _short(identifier: str) -> str:
    return re.sub(r"[^0-9a-z]", "", identifier.lower())[:8] or "0"


def watermark(settings: Settings) -> int:
    """Bytes that stay free: a backup for which less is left is given up before QEMU finds no space."""
    return settings.overlay_reserve_min // 2


def check_space(vm: str, place: Place, sizes: Iterable[int], settings: Settings) -> None:
    """Whether there is room for the scratch files of disks of these sizes. Raises `NoSpaceForScratch`, `OSError`."""
    parent = place.directory.parent
    # QEMU, another user than we are, must get to what is its own; nobody need see the others.
    parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    shares = (min(int(size * settings.overlay_reserve), settings.overlay_reserve_max) for size in sizes)
    wanted = sum(max(settings.overlay_reserve_min, share) for share in shares)
    free = free_bytes(parent)
    if free < wanted:
        raise NoSpaceForScratch(vm=vm, path=parent, free=free, wanted=wanted)


def free_bytes(directory: Path) -> int:
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize


def make(vm: str, place: Place, live_xml: str, own_files: Sequence[Layer]) -> None:
    """Make the directory for the QEMU of a running VM, whose active layers are `own_files`.

    Raises `CaptureFailed`, `OSError`.
    """
    if len(os.fsencode(place.socket)) > _SOCKET_NAME:
        detail = f"{place.socket} is too long for the name of a socket; set scratch_dir in /etc/raksha/raksha.conf"
        raise CaptureFailed(vm=vm, detail=detail)
    with crash.around("scratch.make"):
        place.directory.mkdir(mode=0o700)
    owner = qemu_owner(live_xml) or _owner_of(own_files)
    if owner is not None and os.geteuid() == 0:
        os.chown(place.directory, *owner)


def _owner_of(layers: Sequence[Layer]) -> tuple[int, int] | None:
    """Whoever owns the VM's files, where libvirt does not say as whom it starts QEMU."""
    for layer in layers:
        if layer.kind == "file":
            status = Path(layer.path).stat()
            if stat.S_ISREG(status.st_mode):
                return status.st_uid, status.st_gid
    return None


def out_of_reach(place: Place) -> bool:
    """Whether the user whose the directory is cannot get there: one above it may be closed to him."""
    status = place.directory.stat()
    if os.geteuid() != 0 or status.st_uid == 0:
        return False
    who = ["setpriv", f"--reuid={status.st_uid}", f"--regid={status.st_gid}", "--clear-groups"]
    return subprocess.run([*who, "test", "-w", place.directory], check=False).returncode != 0


def remove(place: Place) -> None:
    """Never raises: what is left is only space, and the next run tries again."""
    with crash.around("scratch.remove"):
        shutil.rmtree(place.directory, ignore_errors=True)
