"""Deleting an overlay: first the proof that nothing needs it, then a move to the trash beside it, then a delay.

Proof: its marks agree with the journal; no definition of any VM of this libvirt, running or stored, names it; no header
below those disks does; no process has it open, nor a QEMU of another host, as far as the file system
tells. What cannot be proven stays where it lies, and is named.

The trash is a directory `.raksha-trash` (mode 0700) on the same file system. Later runs and recoveries empty it; so do
a shortage of space there and the release of the VM.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from raksha import crash
from raksha.config import Settings
from raksha.errors import LibvirtFailed
from raksha.journal import Journal, OwnLayer, Trashed
from raksha.virt.libvirt.chain import MAX_DEPTH, ChainBroken, backing_of
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Disk, parse_domain
from raksha.virt.libvirt.locks import is_open
from raksha.virt.libvirt.observe import doubts, key_of
from raksha.virt.libvirt.processes import users_of

DIRECTORY = ".raksha-trash"


class Trash:
    """Overlays of one VM that nothing needs any more."""

    def __init__(self, vm: str, guests: Callable[[], Iterable[Guest]], journal: Journal, settings: Settings) -> None:
        """`vm`: its UUID. `guests`: all VMs of the libvirt that may know the files."""
        self._vm = vm
        self._guests = guests
        self._journal = journal
        self._delay = settings.trash_hours * 3600

    def put(self, layer: OwnLayer) -> str | None:
        """Put the file of a merged layer away and forget the layer. Returns why it was left alone, or None."""
        path = Path(layer.file.path)
        if path.exists():
            why = next(iter(doubts(layer, self._journal.layers(layer.vm))), None) or self._use_of(path)
            if why is not None:
                return f"{path} was left alone: {why}"
            try:
                self._remove(path)
            except OSError as error:
                return f"{path} was left alone: {error.strerror}"
        self._journal.forget_layers([layer.file.path])
        return None

    def _remove(self, path: Path) -> None:
        if self._delay == 0:
            with crash.around("overlay.remove"):
                path.unlink()
            return
        now = time.time()
        place = path.parent / DIRECTORY / f"{int(now)}-{path.name}"
        place.parent.mkdir(mode=0o700, exist_ok=True)
        self._journal.add_trash(Trashed(str(place), str(path), self._vm, now))
        with crash.around("trash.move"):
            path.rename(place)

    def empty(self, *, everything: bool = False) -> list[str]:
        """Delete what has lain here long enough, or `everything` of this VM. Returns what is still in use."""
        due = time.time() - self._delay
        listed = self._journal.trash(self._vm)
        # Who was killed while deleting leaves an entry without a file.
        entries = [each for each in listed if everything or each.since <= due or not os.path.lexists(each.path)]
        return [why for each in entries if (why := self._delete(each)) is not None]

    def make_room(self, device: int, enough: Callable[[], bool]) -> None:
        """Delete the oldest on a file system, of any VM, until there is room enough."""
        for entry in self._journal.trash():
            if enough():
                return
            with suppress(OSError):
                if Path(entry.path).stat().st_dev == device:
                    self._delete(entry)

    def _delete(self, entry: Trashed) -> str | None:
        path = Path(entry.path)
        if path.exists():
            if (why := self._use_of(path)) is not None:
                return f"{path} was left alone: {why}"
            with crash.around("trash.delete"):
                path.unlink()
        self._journal.forget_trash(entry.path)
        with suppress(OSError):
            path.parent.rmdir()  # when it was the last one
        return None

    def _use_of(self, path: Path) -> str | None:
        """Who needs the file, or None."""
        status = path.stat()
        if pids := users_of(status.st_dev, status.st_ino):
            return f"process {pids[0]} has it open"
        if is_open(str(path)):
            return "a QEMU of another host has it open"
        key = key_of(str(path))
        for guest in self._guests():
            try:
                found = any(key_of(named) == key for named in named_by(guest))
            except LibvirtFailed:
                if guest.uuid == self._vm:
                    raise
                continue  # it has just gone
            if found:
                return f"VM {guest.name} refers to it"
        return None


def named_by(guest: Guest) -> Iterator[str]:
    """Every file that definitions and headers of a VM name."""
    for xml in (guest.inactive_xml(), *([guest.live_xml()] if guest.is_active() else [])):
        for disk in parse_domain(xml).disks:
            yield from (layer.path for layer in disk.layers)
            yield from _below(disk)


def _below(disk: Disk) -> Iterator[str]:
    """What the headers name, as far as they can be followed."""
    if not disk.layers or disk.top.format != "qcow2" or disk.top.kind not in ("file", "block"):
        return
    layer = disk.top
    for _ in range(MAX_DEPTH):
        try:
            below = backing_of(layer)
        except ChainBroken:
            return
        if below is None:
            return
        yield below.path
        layer = below
