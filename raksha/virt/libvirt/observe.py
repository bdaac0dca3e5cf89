"""Looks at one VM and writes down what is so: definitions, headers, processes, jobs, and our files. Changes nothing.

Headers are read as they lie, without opening an image: what is being written is not opened by anybody but its writer.
Paths are told apart by file (device and inode), not by spelling.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from raksha.journal import Intent, Journal, LayerState, OwnLayer
from raksha.virt.libvirt import overlay_file
from raksha.virt.libvirt.chain import ChainBroken, backing_of, follow
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Disk, Domain, Layer, parse_domain
from raksha.virt.libvirt.layer_header import NotQcow2, read_header
from raksha.virt.libvirt.merged import is_merged
from raksha.virt.libvirt.processes import Process, qemu_of, users_of_files

#: seconds in which a QEMU that is just starting or ending comes to agree with libvirt
_SETTLE = 5.0

#: of a first-level table that QEMU takes
_MOST_ENTRIES = 4 * 1024 * 1024


class SeenFile(Struct, frozen=True):
    """A file as somebody spells it. Equal keys are one file."""

    path: str
    key: str
    #: raw, qcow2, ...; empty: not stated
    format: str = ""
    #: libvirt's type: file, block, ...
    kind: str = "file"


class SeenDisk(Struct, frozen=True):
    """The chain of a disk, by each of those who have an opinion, from the top downwards."""

    target: str
    #: what the running VM has; empty: it is shut off, or does not have the disk
    live: tuple[SeenFile, ...]
    #: what the next start takes; may end early
    inactive: tuple[SeenFile, ...]
    #: what the headers say, from the top that counts now; None: they cannot be followed
    headers: tuple[SeenFile, ...] | None
    job: bool
    #: a <mirror> in the running VM's definition
    mirrored: bool
    #: the guest stands still because a write to this disk found no space
    full: bool


class SeenOverlay(Struct, frozen=True):
    """A file that the journal calls ours."""

    layer: OwnLayer
    #: None: it is gone
    file: SeenFile | None
    #: what it stands on, as its header says
    below: SeenFile | None
    #: marks that do not agree: why it may not be ours after all
    doubts: tuple[str, ...]
    #: the guest has written to it; an overlay that cannot be read counts as written
    written: bool
    #: the VM's own file was not written to since this overlay was; None: it cannot be told
    base_untouched: bool | None
    #: processes that have it open; not asked of what a chain has
    users: tuple[int, ...]
    #: what it holds lies in what it was merged into; None: it cannot be told, or the headers are proof enough
    merged: bool | None = None


class SeenStray(Struct, frozen=True):
    """A file named by a snapshot that was begun, but by no layer in the journal."""

    path: str
    run: str
    doubts: tuple[str, ...]
    users: tuple[int, ...]


class Seen(Struct, frozen=True):
    """One VM, at one moment."""

    uuid: str
    name: str
    #: running, paused or shut off
    power: str
    #: QEMU stopped the guest because it could not write
    stopped_by_disk: bool
    processes: tuple[Process, ...]
    disks: tuple[SeenDisk, ...]
    overlays: tuple[SeenOverlay, ...]
    strays: tuple[SeenStray, ...]

    @property
    def active(self) -> bool:
        return self.power != "shut off"


def observe(guest: Guest, journal: Journal) -> Seen:
    """Raises `LibvirtFailed`."""
    deadline = time.monotonic() + _SETTLE
    while True:
        power, processes = guest.power(), qemu_of(guest.uuid)
        if power != "shut off" or not processes or time.monotonic() > deadline:
            break
        time.sleep(0.2)  # it may be on its way out, or in
    inactive = parse_domain(guest.inactive_xml())
    live = parse_domain(guest.live_xml()) if power != "shut off" else None
    stopped = live is not None and guest.stopped_by_disk()
    full = guest.disks_without_space() if stopped else frozenset()
    layers, intents = journal.layers(guest.uuid), journal.open_intents(guest.uuid)
    strays = list(_strays(journal, intents, layers))
    disks = tuple(_disks(guest, live, inactive, full))
    chained = {file.key for disk in disks for file in (*disk.live, *disk.inactive, *(disk.headers or ()))}
    loose = [layer.file.path for layer in layers if key_of(layer.file.path) not in chained]
    users = _users([*loose, *(stray.path for stray in strays)])
    merged = _merged(guest, intents, processes, {layer.file.path: layer for layer in layers}, set(loose))
    return Seen(
        uuid=guest.uuid,
        name=guest.name,
        power=power,
        stopped_by_disk=stopped,
        processes=processes,
        disks=disks,
        overlays=tuple(_overlay(layer, layers, users, merged.get(layer.file.path)) for layer in layers),
        strays=tuple(replace(stray, users=users.get(stray.path, ())) for stray in strays),
    )


def key_of(path: str) -> str:
    """What equals for two spellings of one file."""
    try:
        status = Path(path).stat()
    except OSError:
        return path
    return f"{status.st_dev}:{status.st_ino}"


def _seen(layers: Iterable[Layer]) -> tuple[SeenFile, ...]:
    return tuple(SeenFile(layer.path, key_of(layer.path), layer.format, layer.kind) for layer in layers)


def _disks(guest: Guest, live: Domain | None, inactive: Domain, full: frozenset[str]) -> Iterable[SeenDisk]:
    targets = dict.fromkeys(disk.target for domain in (live, inactive) if domain for disk in domain.disks)
    for target in targets:
        now, then = (live.disk(target) if live else None), inactive.disk(target)
        shown = now if now is not None and now.layers else then
        if shown is None or not shown.layers or shown.top.kind not in ("file", "block"):
            continue
        yield SeenDisk(
            target=target,
            live=_seen(now.layers) if now else (),
            inactive=_seen(then.layers) if then else (),
            headers=_headers(shown),
            job=now is not None and guest.block_job(target) is not None,
            mirrored=now is not None and now.mirrored,
            full=target in full,
        )


def _headers(disk: Disk) -> tuple[SeenFile, ...] | None:
    try:
        return _seen(follow(disk.layers[:1]) if disk.top.format == "qcow2" else disk.layers[:1])
    except ChainBroken:
        return None


def _merged(
    guest: Guest,
    intents: Iterable[Intent],
    processes: Iterable[Process],
    known: Mapping[str, OwnLayer],
    loose: Collection[str],
) -> dict[str, bool | None]:
    """Of overlays that left their chain by a merge, and QEMU died with it: all of one merge are alike."""
    running = {process.identity for process in processes}
    found: dict[str, bool | None] = {}
    for intent in intents:
        if intent.operation not in ("commit", "pivot") or intent.detail.get("process") in running:
            continue
        paths = intent.detail["layers"]
        ours = [known[path] for path in paths if path in known and path in loose and os.path.lexists(path)]
        if len(ours) == len(paths) and not any(doubts(layer, list(known.values())) for layer in ours):
            found |= dict.fromkeys(paths, is_merged(guest.name, intent.target or "", paths[0], len(paths)))
    return found


def _overlay(
    layer: OwnLayer, known: Sequence[OwnLayer], users: Mapping[str, tuple[int, ...]], merged: bool | None
) -> SeenOverlay:
    path = layer.file.path
    if not os.path.lexists(path):
        return SeenOverlay(layer, None, None, (), written=False, base_untouched=None, users=())
    try:
        below = backing_of(Layer(path, "file", "qcow2"))
    except ChainBroken:
        below = None
    return SeenOverlay(
        layer=layer,
        file=SeenFile(path, key_of(path), "qcow2"),
        below=_seen([below])[0] if below else None,
        doubts=tuple(doubts(layer, known)),
        written=holds_data(path),
        base_untouched=_base_untouched(layer),
        users=users.get(path, ()),
        merged=merged,
    )


def doubts(layer: OwnLayer, known: Sequence[OwnLayer]) -> list[str]:
    """Which marks of an overlay of ours do not agree with the journal. None of it: the file is ours."""
    path = layer.file.path
    found = [] if overlay_file.is_our_name(path) else ["its name is none that Raksha gives"]
    if not overlay_file.is_the_one(layer.file, layer.run):
        return [*found, "it is not the file that Raksha made"]
    if (mark := overlay_file.mark_of(path)) is not None and mark != layer.run:
        found.append(f"it is marked {mark or 'nothing'}, not as of run {layer.run}")
    if overlay_file.is_blank(path):
        return found
    try:
        below = backing_of(Layer(path, "file", "qcow2"))
    except ChainBroken as error:
        # A snapshot that never came about leaves an empty one, and what that stood on may have been merged since.
        return [*found, str(error)] if holds_data(path) else found
    own = {key_of(each.file.path) for each in known}
    if below is None or key_of(below.path) not in {key_of(layer.base.file.path), *own}:
        found.append(f"it stands on {below.path if below else 'nothing'}, not on {layer.base.file.path}")
    return found


def holds_data(path: str) -> bool:
    """Whether anything was ever written to a qcow2 overlay: its first table has an entry. True if it cannot be told."""
    try:
        if overlay_file.is_blank(path):
            return False
        read_header(path)
        with Path(path).open("rb") as file:
            head = file.read(48)
            entries, place = struct.unpack_from(">IQ", head, 36)
            file.seek(place)
            return entries > _MOST_ENTRIES or any(file.read(8 * entries))
    except (OSError, NotQcow2, struct.error):
        return True


def _base_untouched(layer: OwnLayer) -> bool | None:
    if layer.base.kind != "file" or layer.base.modified is None:
        return None
    try:
        status, ours = Path(layer.base.file.path).stat(), Path(layer.file.path).stat().st_mtime_ns
    except OSError:
        return None
    if status.st_ino != layer.base.file.inode:
        return False
    if layer.state is LayerState.PLANNED:
        # Noted when the overlay was made: the guest wrote on until the snapshot.
        return layer.base.modified <= status.st_mtime_ns <= ours
    return status.st_mtime_ns == layer.base.modified


def _users(paths: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Processes that have each of the files open; one look at /proc for all."""
    there = {path: identity for path in paths if (identity := _identity(path)) is not None}
    users = users_of_files(set(there.values()))
    return {path: users.get(identity, ()) for path, identity in there.items()}


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _strays(journal: Journal, intents: Iterable[Intent], layers: Sequence[OwnLayer]) -> Iterable[SeenStray]:
    known = {layer.file.path for layer in layers}
    for intent in intents:
        if intent.operation != "snapshot" or intent.run is None:
            continue
        for path in intent.detail["overlays"]:
            if path not in known and not journal.knows(path) and os.path.lexists(path):
                yield SeenStray(path, intent.run, tuple(_stray_doubts(path, intent.run)), ())


def _stray_doubts(path: str, run: str) -> list[str]:
    """The journal knows it by the intent alone, so the other marks must be there, and nothing in it."""
    found = [] if overlay_file.is_our_name(path) else ["its name is none that Raksha gives"]
    if overlay_file.mark_of(path) != run:
        found.append("it does not carry the mark of its run")
    if holds_data(path):
        found.append("it holds data")
    return found
