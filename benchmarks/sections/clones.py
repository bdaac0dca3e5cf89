"""Twenty VMs that were made of one image, backed up one after the other into one vault."""

from __future__ import annotations

import random

from benchmarks.contenders import Raksha, fresh
from benchmarks.goals import Goal, over
from benchmarks.image import MIB, copy, make_image
from benchmarks.machine import a_bed, idle
from benchmarks.measuring import Figures, Place, settle, size_of

TITLE = "Twenty clones of one image"
ABOUT = """\
The disk of the first table, copied; in each copy 4 MiB of other bytes that do not compress, in blocks of 64 KiB.
"""
GOALS = (
    Goal("bytes stored for all / (for one + what was changed)",
         lambda all_: all_["stored, all"] / (all_["stored, first"] + all_["changed"]), -1.1),
    Goal("time of the first full / of the last", over("first", "last"), 4),
)  # fmt: skip
_CLONES = 20
_BLOCK = 64 * 1024
_CHANGED = 4 * MIB


def measure(place: Place, figures: Figures) -> None:
    disk, clone = place.directory / "disk.raw", place.directory / "clone.raw"
    make_image(disk, place.quick)
    source = random.Random(place.rounds)
    with a_bed() as bed:
        raksha = Raksha(place.directory, bed.uri)
        fresh(raksha.vault)
        try:
            for number in range(_CLONES):
                copy(disk, clone)
                with clone.open("r+b") as file:
                    for at in source.sample(range(disk.stat().st_size // _BLOCK), _CHANGED // _BLOCK):
                        file.seek(at * _BLOCK)
                        file.write(source.randbytes(_BLOCK))
                machine = idle(bed, f"clone{number}", clone)
                settle(clone)
                ran = raksha("backup", machine.name, "--full")
                # the last few are medians of what the last one takes
                if number == 0 or number >= _CLONES - 3:
                    figures.ran("first" if number == 0 else "last", ran)
                if number == 0:
                    figures.note("stored, first", size_of(raksha.vault))
                machine.remove()
                clone.unlink()
            figures.note("stored, all", size_of(raksha.vault))
            figures.note("changed", _CHANGED * (_CLONES - 1))
        finally:
            clone.unlink(missing_ok=True)
            fresh(raksha.vault)
