"""Taking over a VM that another host has protected: its change trackers become known to this host's journal.

::

    the chain holds an overlay that has a name of ours, and the journal does not know it
        the vault has the copy that this overlay counts from     which file, which inode, on which file of the VM
        name, inode, mark and header of the file agree with it   for every such layer of the disk
        a note on it says how the VM's own file was left         else it is ours, but counts from nothing
    then                                                         it goes into the journal

Nothing but the journal is changed. Where anything does not agree, no layer of that disk is taken over, and whoever met
it refuses the VM. A layer of a run that failed is in no vault, so it is refused as well.

A dirty bitmap bears the name of the run that it counts from, and lies in the image whose changes it records. The vault
says that this run is a restore point, and what lay below the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from msgspec import Struct

from raksha.journal import Base, BitmapState, FileId, Journal, LayerState, OwnBitmap, OwnLayer
from raksha.virt.capture import CaptureRequest, StoredCopy
from raksha.virt.libvirt.chain import backing_of, file_id, follow, same_file
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Disk, Layer, parse_domain
from raksha.virt.libvirt.overlay_file import belongs_to, is_our_name, mark_of, run_in_name
from raksha.virt.libvirt.pull_xml import bitmap_name
from raksha.virt.libvirt.trace import BaseNote, BitmapTrace, OverlayTrace, base_note, read

#: the operation, as the journal calls it
ADOPT = "adopt"


class _Proven(Struct, frozen=True):
    """A layer that the vault knows."""

    trace: OverlayTrace
    #: runs since whose snapshots it and the layers above hold every write
    counts_from: frozenset[str]


def adopt_layers(guest: Guest, journal: Journal, request: CaptureRequest) -> list[str]:
    """Take over what is proven to be ours. Returns a line for each disk; nothing: there is nothing new to know.

    The caller holds the VM's lock. Raises `LibvirtFailed`, and what the vault raises when it cannot be asked.
    """
    active = guest.is_active()
    domain = parse_domain(guest.live_xml() if active else guest.inactive_xml())
    told = []
    for disk in domain.disks:
        known = [layer.file.path for layer in journal.layers(guest.uuid)]
        try:
            layers = list(_adoptable(guest.uuid, disk, known, request, active=active))
        except (ValueError, OSError):  # the survey says what is wrong with it
            continue
        if layers:
            paths = [layer.file.path for layer in layers]
            detail = {"overlays": paths, "base": layers[0].base.file.path}
            intent = journal.begin(ADOPT, run=request.backupjobrun, vm=guest.uuid, target=disk.target, detail=detail)
            for layer in layers:
                journal.add_layer(layer)
            journal.done(intent, "adopted")
            told.append(f"disk {disk.target}: {', '.join(paths)} was made by another host, and is taken over from it")
    return told


def _adoptable(
    vm: str, disk: Disk, known: Sequence[str], request: CaptureRequest, *, active: bool
) -> Iterator[OwnLayer]:
    """The layers to be taken over, oldest first; none unless all are proven. Raises `ChainBroken`, `OSError`."""
    if not disk.layers or disk.top.kind not in ("file", "block"):
        return
    chain = disk.layers if active else follow(disk.layers)
    ours = [_knows(known, layer) or is_our_name(layer.path) for layer in chain[:-1]]
    count = ours.index(False) if False in ours else len(ours)
    base = chain[count]
    proven: list[tuple[Layer, _Proven]] = []
    for layer, below in pairwise(chain[: count + 1]):
        if _knows(known, layer):
            continue
        proof = _proof(vm, disk.target, layer, below, base, request)
        if proof is None:
            return
        proven.append((layer, proof))
    note = next((note for layer, _ in proven if (note := base_note(layer.path)) is not None), None)
    for layer, proof in reversed(proven):
        yield _layer(vm, disk.target, layer, proof, base, note)


def _knows(known: Sequence[str], layer: Layer) -> bool:
    return any(same_file(path, layer.path) for path in known)


def _proof(vm: str, target: str, layer: Layer, below: Layer, base: Layer, request: CaptureRequest) -> _Proven | None:
    """What the vault says of a layer, if all marks agree with it."""
    beginning = run_in_name(layer.path)
    parent = request.since.get(target)
    copies = [*request.history(target, beginning), *(request.history(target, parent.backupjobrun) if parent else ())]
    for copy in copies:
        trace = read(copy.tracker, OverlayTrace)
        if trace is not None and _agrees(vm, target, layer, below, base, trace):
            return _Proven(trace, _counts_from(copies, trace))
    return None


def _agrees(vm: str, target: str, layer: Layer, below: Layer, base: Layer, trace: OverlayTrace) -> bool:
    """Name, file, mark and header are what the trace says. Raises `ChainBroken`, `OSError`."""
    status, own_file = Path(layer.path).lstat(), Path(base.path).stat()
    named = backing_of(Layer(layer.path, "file", "qcow2"))
    return (
        (layer.kind, layer.format) == ("file", "qcow2")
        and belongs_to(layer.path, run=trace.run, vm=vm, target=target)
        and same_file(trace.path, layer.path)
        and status.st_ino == trace.inode
        and mark_of(layer.path) in (trace.run, None)
        and named is not None
        and same_file(named.path, below.path)
        and named.format == below.format
        and same_file(trace.base_path, base.path)
        and (trace.base_kind, trace.base_format) == (base.kind, base.format)
        and (base.kind == "block" or own_file.st_ino == trace.base_inode)
    )


def _counts_from(copies: Sequence[StoredCopy], trace: OverlayTrace) -> frozenset[str]:
    """The run that made the layer, and a later one of the VM at rest on it. Both must be restore points."""
    made = next((copy.number for copy in copies if copy.backupjobrun == trace.run), None)
    if made is None:
        return frozenset()
    later = (each for each in copies if each.number >= made and read(each.tracker, OverlayTrace) == trace)
    return frozenset({trace.run, *(each.backupjobrun for each in later)})


def _layer(vm: str, target: str, layer: Layer, proof: _Proven, base: Layer, note: BaseNote | None) -> OwnLayer:
    trace = proof.trace
    own_file = file_id(base.path)
    noted = note is not None and base.kind == "file" and note.inode == own_file.inode
    return OwnLayer(
        vm=vm,
        target=target,
        file=FileId(layer.path, Path(layer.path).lstat().st_dev, trace.inode),
        base=Base(own_file, base.kind, base.format, note.modified if note is not None and noted else None),
        run=trace.run,
        job=trace.job,
        state=LayerState.CHAINED,
        # Without the note somebody may have written below the layer, and nothing would show it.
        counts_from=proof.counts_from if noted else frozenset(),
    )


def adopt_bitmaps(vm: str, journal: Journal, request: CaptureRequest) -> None:
    """Note the bitmaps that count from this job's parents, where another host has begun them.

    The caller holds the VM's lock. Whether they are there and whole is to be seen.
    """
    found = []
    for target, parent in request.since.items():
        if parent is None or journal.run_state(parent.backupjobrun) is not None:
            continue  # what this host has made it knows
        for copy in request.history(target, parent.backupjobrun):
            trace = read(copy.tracker, BitmapTrace)
            if trace is not None and trace.name == bitmap_name(copy.backupjobrun):
                found.append(_bitmap(vm, target, copy, trace))
    if found:
        intent = journal.begin(
            ADOPT, run=request.backupjobrun, vm=vm, detail={"bitmaps": sorted({each.name for each in found})}
        )
        journal.add_bitmaps(found)
        journal.done(intent, "adopted")


def _bitmap(vm: str, target: str, copy: StoredCopy, trace: BitmapTrace) -> OwnBitmap:
    return OwnBitmap(
        vm=vm,
        target=target,
        name=trace.name,
        run=copy.backupjobrun,
        job=copy.backupjob,
        below=trace.below,
        state=BitmapState.COUNTING,
        counts_from=frozenset([copy.backupjobrun]),
    )
