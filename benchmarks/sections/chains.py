"""Restores of one disk from chains of different length."""

from __future__ import annotations

from benchmarks.contenders import Raksha, fresh, point_of
from benchmarks.goals import Goal, over
from benchmarks.image import copy, make_image
from benchmarks.machine import a_bed, change, idle
from benchmarks.measuring import Figures, Place, settle

TITLE = "Restores from long chains"
ABOUT = "A full and 49 incrementals of 1 MiB each; the disk is restored to raw at chain length 1, 10 and 50.\n"
GOALS = (
    Goal("time at chain length 10 / at 1", over("restore, length 10", "restore, length 1"), -1.3),
    Goal("time at chain length 50 / at 1", over("restore, length 50", "restore, length 1"), -1.3),
)
_LENGTHS = (1, 10, 50)
_BLOCK = 64 * 1024


def measure(place: Place, figures: Figures) -> None:
    disk, own, out = (place.directory / name for name in ("disk.raw", "own.raw", "restored.raw"))
    make_image(disk, place.quick)
    try:
        copy(disk, own)
        with a_bed() as bed:
            machine, size = idle(bed, "running", own, boot=True), disk.stat().st_size
            raksha = Raksha(place.directory, bed.uri)
            points = {1: point_of(raksha.full(machine.name))}
            for number in range(2, max(_LENGTHS) + 1):
                change(bed, machine, size, number, _BLOCK, 16)
                points[number] = point_of(raksha.incremental(machine.name)[0])
            for _ in range(place.rounds):
                for length in _LENGTHS:
                    settle(raksha.vault)
                    figures.ran(f"restore, length {length}", raksha.restore(out, points[length]))
                    out.unlink()
            raksha("release", machine.name)
            fresh(raksha.vault)
    finally:
        own.unlink(missing_ok=True)
        out.unlink(missing_ok=True)
