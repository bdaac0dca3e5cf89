"""Incrementals of a running VM: their time beside a full, on large disks, and the bytes of small writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.contenders import Raksha, fresh
from benchmarks.goals import Goal, over
from benchmarks.image import MIB, copy, make_image, make_noise
from benchmarks.machine import a_bed, change, idle, qemu_io
from benchmarks.measuring import Figures, Place, settle
from tests.bed.bed import Bed
from tests.bed.disks import Disk
from tests.bed.machine import Machine

TITLE = "Incrementals of a running VM"
ABOUT = """\
Writes lie anywhere on the disk and do not compress; 16 MiB in blocks of 64 KiB, if nothing else is said. An incremental
is the start of the program, the snapshot, the transfer, the commit, and the merge of the layer of the run before. The
merge is QEMU's work: its job looks at every 512 KiB of the disk, so on a disk of 1 TiB it takes seconds after the
restore point is there, whatever was written. Engine `pull` has no layers. Clusters are of 64 KiB: a write of 4 KiB that
lies alone costs a whole one, less what of it is zeroes. Finer layers were not made: the stateful proof of
consolidations and restores across mixed cluster sizes comes first.
"""
GOALS = (
    Goal("time of an incremental / time of a full of that VM", over("incremental", "full, running"), -0.1),
    Goal("bytes sent / bytes changed, blocks of 64 KiB", over("sent, 64 KiB", "changed, 64 KiB"), -1.2),
    Goal("time with 16 MiB changed, pull: disk of 1 TiB / disk of 10 GiB", over("pull, 1 TiB", "pull, 10 GiB"), -1.5),
    Goal("the same, overlay, with QEMU's merge", over("overlay, 1 TiB", "overlay, 10 GiB")),
    Goal("bytes sent / bytes changed, blocks of 4 KiB", over("sent, 4 KiB", "changed, 4 KiB"), -3),
    Goal("bytes sent / bytes changed, blocks of 16 KiB", over("sent, 16 KiB", "changed, 16 KiB")),
    Goal("bytes sent / bytes that the guest discarded", over("sent, discards", "changed, discards"), -0.01),
)  # fmt: skip
_EACH = 4
_BLOCK = 64 * 1024


def measure(place: Place, figures: Figures) -> None:
    disk, own = place.directory / "disk.raw", place.directory / "own.raw"
    make_image(disk, place.quick)
    try:
        copy(disk, own)
        with a_bed() as bed:
            _beside_fulls(bed, own, place, figures)
    finally:
        own.unlink(missing_ok=True)
    large = {"10 GiB": 10 << 30, "1 TiB": 1 << 40}
    disks = {name: place.directory / f"large-{size >> 30}" for name, size in large.items()}
    for name, path in disks.items():
        make_noise(path, large[name], 64 * MIB)
    try:
        for engine in ("overlay", "pull"):
            with a_bed() as bed:
                _large(bed, engine, disks, large, place, figures)
    finally:
        for path in disks.values():
            path.unlink(missing_ok=True)


def _beside_fulls(bed: Bed, disk: Path, place: Place, figures: Figures) -> None:
    machine, size = idle(bed, "running", disk, boot=True), disk.stat().st_size
    raksha = Raksha(place.directory, bed.uri)
    for number in range(place.rounds):
        settle(disk)
        figures.ran("full, running", raksha.full(machine.name))
        for each in range(_EACH):
            figures.note("changed, 64 KiB", change(bed, machine, size, number * _EACH + each, _BLOCK, 256))
            settle(disk)
            ran, sent = raksha.incremental(machine.name)
            figures.ran("incremental", ran)
            figures.note("sent, 64 KiB", sent)
    for name, block, count in (("4 KiB", 4096, 512), ("16 KiB", 16384, 256)):
        figures.note(f"changed, {name}", change(bed, machine, size, block, block, count))
        figures.note(f"sent, {name}", raksha.incremental(machine.name)[1])
    figures.attempt("discards", lambda: _discards(machine, raksha, figures))
    _end(raksha, machine)


def _discards(machine: Machine, raksha: Raksha, figures: Figures) -> None:
    """The first 256 MiB of what is there."""
    qemu_io(machine, f"discard -q {256 * MIB} {256 * MIB}")
    figures.note("changed, discards", 256 * MIB)
    figures.note("sent, discards", raksha.incremental(machine.name)[1])


def _large(
    bed: Bed, engine: str, disks: dict[str, Path], sizes: dict[str, int], place: Place, figures: Figures
) -> None:
    """Images that keep a bitmap, as `pull` wants them."""
    images = {name: disk.with_suffix(f".{engine}") for name, disk in disks.items()}
    vaults = {name: Raksha(place.directory / name.replace(" ", "-"), bed.uri) for name in disks}
    try:
        machines = {}
        for name, disk in disks.items():
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, images[name]], check=True)
            given = Disk(bed.host.give(images[name]), "qcow2")
            machines[name] = bed.machine([given], name=f"large{sizes[name] >> 30}", mode="idle", agent=False)
            machines[name].boot()
            vaults[name].vault.parent.mkdir()
            vaults[name].full(machines[name].name, "--engine", engine)
        for number in range(_EACH + place.rounds):
            for name, raksha in vaults.items():
                change(bed, machines[name], sizes[name], number, _BLOCK, 256)
                settle()
                figures.ran(f"{engine}, {name}", raksha.incremental(machines[name].name, "--engine", engine)[0])
        for name, raksha in vaults.items():
            _end(raksha, machines[name])
    finally:
        for name, raksha in vaults.items():
            fresh(raksha.vault.parent)
            images[name].unlink(missing_ok=True)


def _end(raksha: Raksha, machine: Machine) -> None:
    raksha("release", machine.name)
    fresh(raksha.vault)
