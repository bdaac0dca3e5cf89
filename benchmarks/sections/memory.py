"""The most memory that a backup or a restore has at a time."""

from __future__ import annotations

from benchmarks.contenders import Raksha, fresh
from benchmarks.goals import Goal
from benchmarks.image import MIB, make_image, make_noise
from benchmarks.machine import a_bed, idle
from benchmarks.measuring import Figures, Place

TITLE = "Memory"
ABOUT = """\
The high-water mark of the process's resident memory, libraries included. The disk of 1 TiB has 2 GiB in pieces all over
it; the four disks have 1 GiB of files or 256 MiB of random bytes each, and are backed up in one process at once.
"""
GOALS = (
    Goal("full of file-system data, 6 GiB", lambda all_: all_["memory, full"], -300, " MiB"),
    Goal("restore of it", lambda all_: all_["memory, restore"], -300, " MiB"),
    Goal("full of 1 TiB", lambda all_: all_["memory, full, 1 TiB"], -300, " MiB"),
    Goal("full of four disks at once", lambda all_: all_["memory, full, four disks"], -600, " MiB"),
)


def measure(place: Place, figures: Figures) -> None:
    names = ("disk", "restored", "tera", "b", "c", "d")
    disk, out, tera, *others = (place.directory / f"{name}.raw" for name in names)
    make_image(disk, place.quick)
    try:
        make_noise(tera, 1 << 40, 128 * MIB if place.quick else 2048 * MIB)
        for each in others:
            make_noise(each, 6 << 30, 64 * MIB if place.quick else 256 * MIB)
        with a_bed() as bed:
            raksha = Raksha(place.directory, bed.uri)
            figures.note("memory, full", raksha.full(idle(bed, "one", disk).name).peak)
            figures.note("memory, restore", raksha.restore(out).peak)
            out.unlink()
            figures.note("memory, full, 1 TiB", raksha.full(idle(bed, "tera", tera).name).peak)
            figures.note("memory, full, four disks", raksha.full(idle(bed, "four", disk, *others).name).peak)
            fresh(raksha.vault)
    finally:
        for each in (out, tera, *others):
            each.unlink(missing_ok=True)
