"""From figures to docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.image import INCOMPRESSIBLE, MIB, SAMPLES, SIZE
from benchmarks.machine import BLOCK, BLOCKS

PATH = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
CHANGED = BLOCK * BLOCKS

Medians = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise, as a ratio."""

    text: str
    ratio: Callable[[Medians], float]
    #: the ratio must be at least (or, negative, at most) this
    limit: float

    def met(self, medians: Medians) -> bool:
        value = self.ratio(medians)
        return value >= self.limit if self.limit > 0 else value <= -self.limit

    def row(self, medians: Medians) -> tuple[str, str, str, str]:
        goal = f"{'≥' if self.limit > 0 else '≤'} {abs(self.limit):g}"
        return self.text, goal, f"{self.ratio(medians):.2f}", "yes" if self.met(medians) else "no"


def _over(upper: str, lower: str) -> Callable[[Medians], float]:
    return lambda medians: medians[upper] / medians[lower]


GOALS = (
    Goal("full: time of `qemu-img convert -c` / time of Raksha", _over("qemu-img full", "raksha full"), 1.5),
    Goal("full: time of borg / time of Raksha", _over("borg full", "raksha full"), 1),
    Goal("full: time of restic / time of Raksha", _over("restic full", "raksha full"), 1),
    Goal("full: bytes stored by Raksha / by qemu-img", _over("raksha stored", "qemu-img stored"), -1.1),
    Goal("incremental: bytes sent / bytes changed", lambda all_: all_["raksha incremental sent"] / CHANGED, -1.2),
    Goal("incremental: time / time of a full of that VM", _over("raksha incremental", "raksha full, running"), -0.1),
    Goal("restore to raw: time of `qemu-img convert` / time of Raksha", _over("qemu-img restore", "raksha restore"), 1),
)

_INTRODUCTION = """\
# Benchmarks

Written by `make bench` (`python -m benchmarks.run`); don't edit. The commands are those that a person types
(`benchmarks/contenders.py`): for Raksha `raksha local backup` and `raksha local restore` on VMs of a libvirt, start of
the program included. All contenders take turns within each round; figures are medians of {rounds} rounds, and only the
ratios mean something on another machine. Rows "CPU" are processor time.

**The disk**: {size} GiB raw, with an ext4 of some {data} MiB of files: a sample of the host's own programs,
libraries and documents, and {noise} MiB that do not compress. Before each command it is in the page cache, and nothing
of the command before waits to be written.

**Durability** is not the same for all. Raksha has synced every object and its directory when it says so; borg and
restic sync their files; `qemu-img convert` leaves its file in the page cache. The goals compare with that; the
rows "synced" have the same followed by `sync FILE`.

"""

_NOTES = """
A full of Raksha is not encrypted, neither is borg's here (`-e none`); restic always encrypts.

The incremental follows {changed} MiB of writes, in blocks of 64 KiB that lie anywhere and do not compress, into the
disk of a running VM. It consists of the start of the program, the snapshot, the transfer, the commit of the restore
point, and of merging the layer of the run before into the VM's own file, which is QEMU's work. Most of that does not
depend on the amount of data: the larger the disk, the smaller the ratio.
"""


def page(medians: Medians, spreads: Mapping[str, tuple[float, float]], rounds: int) -> str:
    """The whole of docs/benchmarks.md."""
    data = (sum(SAMPLES.values()) + INCOMPRESSIBLE) // MIB
    parts = [
        _INTRODUCTION.format(rounds=rounds, size=SIZE >> 30, data=data, noise=INCOMPRESSIBLE // MIB),
        _table(("ratio", "goal", "measured", "met"), [goal.row(medians) for goal in GOALS]),
        "\n## Figures behind them\n\n",
        _table(("", "median", "least", "most"), [_row(name, medians[name], *spreads[name]) for name in medians]),
        _NOTES.format(changed=CHANGED // MIB),
        "\n## Where\n\n",
        _table(("", ""), list(_environment().items())),
    ]
    return "".join(parts)


def verdict(medians: Medians) -> str:
    """The ratios, for a terminal."""
    rows = [goal.row(medians) for goal in GOALS]
    return "\n".join(f"{met:>3}  {ratio:>6}  {goal:>6}  {text}" for text, goal, ratio, met in rows)


def _row(name: str, *values: float) -> tuple[str, ...]:
    if name.endswith(("stored", "sent")):
        return name, *(f"{value / MIB:.1f} MiB" for value in values)
    return name, *(f"{value:.2f} s" for value in values)


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _environment() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{os.cpu_count()} × {processor()}",
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": f"{os_name()}, Linux {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
        "QEMU": _version("qemu-img", "--version"),
        "libvirt": _version("/usr/sbin/libvirtd", "--version"),
        "borg": _version("borg", "--version"),
        "restic": _version("restic", "version"),
    }


def processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def os_name() -> str:
    return platform.freedesktop_os_release()["PRETTY_NAME"]


def _version(*command: str) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else said.strip()
