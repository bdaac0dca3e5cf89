"""Full backups of disks of other kinds: what does not compress, and what is mostly not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.contenders import Borg, QemuImg, Raksha, fresh
from benchmarks.goals import Goal, over
from benchmarks.image import MIB, make_noise
from benchmarks.machine import a_bed, idle
from benchmarks.measuring import Figures, Place, Ran, settle

TITLE = "Incompressible, and mostly empty"
ABOUT = """\
1 GiB of random bytes all over a disk of 6 GiB; 2 GiB of them all over a disk of 1 TiB. borg and restic read every zero
of the latter, which takes them most of an hour, and are left out there; virtnbdbackup stores every zero of a raw disk.
"""
GOALS = tuple(
    Goal(f"{kind}: time of {name} / time of Raksha", over(f"{kind}, {name}", f"{kind}, raksha"), limit)
    for kind, names in {
        "incompressible": (("qemu-img", 1), ("borg lz4", 1)),
        "mostly empty": (("qemu-img", 1),),
    }.items()
    for name, limit in names
)


def measure(place: Place, figures: Figures) -> None:
    part = 16 if place.quick else 1
    for kind, size, amount in (("incompressible", 6 << 30, 1024 * MIB), ("mostly empty", 1 << 40, 2048 * MIB)):
        disk = place.directory / "kind.raw"
        make_noise(disk, size, amount // part)
        try:
            _measure(kind, disk, place, figures)
        finally:
            disk.unlink()


def _measure(kind: str, disk: Path, place: Place, figures: Figures) -> None:
    with a_bed() as bed:
        vm = idle(bed, "off", disk).name
        raksha, qemu, borg = Raksha(place.directory, bed.uri), QemuImg(place.directory), Borg(place.directory, "lz4")
        commands: dict[str, Callable[[], Ran]] = {
            "raksha": lambda: raksha.full(vm),
            "qemu-img": lambda: qemu.full(disk),
        }
        if kind == "incompressible":
            commands["borg lz4"] = lambda: borg.full(disk)
        for name, command in commands.items():
            settle(disk)
            figures.attempt(
                f"{kind}, {name}", lambda name=name, command=command: figures.ran(f"{kind}, {name}", command())
            )
        for stored in (raksha.vault, qemu.stored, borg.stored):
            fresh(stored)
