"""What /proc tells: the QEMU of a VM, and who has a file open. As far as this user may see."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from itertools import pairwise

from msgspec import Struct


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
    wanted = uuid.encode()
    for pid in _processes():
        with suppress(OSError):  # processes end while we look
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read()
            if wanted in words and (b"-uuid", wanted) in pairwise(words.split(b"\0")):
                found.append(Process(int(pid), _identity(pid), _open_files(pid)))
    return tuple(found)


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _identity(pid: str) -> str:
    """Raises `OSError`."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(") ", 1)[1].split()
    return f"{pid}@{fields[19]}"


def _open_files(pid: str) -> frozenset[str] | None:
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)
    except PermissionError:
        return None
    found = set()
    for each in descriptors:
        with suppress(OSError):
            mode = os.stat(f"{folder}/{each}").st_mode
            if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                found.add(os.readlink(f"{folder}/{each}"))
    return frozenset(found)


def users_of(device: int, inode: int) -> tuple[int, ...]:
    """Processes that have the file open."""
    return users_of_files({(device, inode)}).get((device, inode), ())


def users_of_files(files: Collection[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, ...]]:
    """Processes that have each of the files (device, inode) open; a file that nobody has open is not among them."""
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for pid in _processes() if files else ():
        # Processes end while we look, and those of other users do not let us look.
        with suppress(OSError):
            for file in _identities(f"/proc/{pid}/fd").intersection(files):
                found[file] = (*found.get(file, ()), int(pid))
    return found


def _identities(folder: str) -> set[tuple[int, int]]:
    """Device and inode of all that a process has open. Raises `OSError`."""
    found = set()
    for each in os.listdir(folder):
        with suppress(OSError):
            status = os.stat(f"{folder}/{each}")
            found.add((status.st_dev, status.st_ino))
    return found
