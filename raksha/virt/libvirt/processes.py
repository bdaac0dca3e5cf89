"""What /proc tells: the QEMU of a VM, and who has a file open. As far as this user may see."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from msgspec import Struct

_PROC = Path("/proc")


class Process(Struct, frozen=True):
    """A process that runs a VM."""

    pid: int
    #: it and no other, ever: its id and when it started
    identity: str
    #: regular files and block devices it has open; None: this user may not look
    files: frozenset[str] | None


def qemu_of(uuid: str) -> tuple[Process, ...]:
    """The processes that were started as QEMU of this VM, whatever libvirt thinks of them."""
    found = []
    for place in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # processes end while we look
            words = place.joinpath("cmdline").read_bytes().split(b"\0")
            if any(one == b"-uuid" and two == uuid.encode() for one, two in pairwise(words)):
                found.append(Process(int(place.name), _identity(place), _open_files(place)))
    return tuple(found)


def _identity(place: Path) -> str:
    """Raises `OSError`."""
    fields = place.joinpath("stat").read_text().rsplit(") ", 1)[1].split()
    return f"{place.name}@{fields[19]}"


def _open_files(place: Path) -> frozenset[str] | None:
    try:
        descriptors = list(place.joinpath("fd").iterdir())
    except PermissionError:
        return None
    found = set()
    for each in descriptors:
        with suppress(OSError):
            mode = each.stat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                found.add(os.fsdecode(each.readlink()))
    return frozenset(found)


def users_of(device: int, inode: int) -> tuple[int, ...]:
    """Processes that have the file open."""
    return users_of_files({(device, inode)}).get((device, inode), ())


def users_of_files(files: Collection[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, ...]]:
    """Processes that have each of the files (device, inode) open; a file that nobody has open is not among them."""
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for place in _PROC.glob("[0-9]*") if files else ():
        # Processes end while we look, and those of other users do not let us look.
        with suppress(OSError):
            for file in _identities(place).intersection(files):
                found[file] = (*found.get(file, ()), int(place.name))
    return found


def _identities(place: Path) -> set[tuple[int, int]]:
    """Device and inode of all that a process has open. Raises `OSError`."""
    found = set()
    for each in place.joinpath("fd").iterdir():
        with suppress(OSError):
            status = each.stat()
            found.add((status.st_dev, status.st_ino))
    return found
