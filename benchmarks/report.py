"""From figures to docs/benchmarks.json, docs/benchmarks.md and its pictures."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import cost, pictures
from benchmarks.goals import Medians
from benchmarks.sections import ALL

DOCS = Path(__file__).resolve().parents[1] / "docs"
PATH = DOCS / "benchmarks.md"
FIGURES = DOCS / "benchmarks.json"

#: of one section: "figures" by name, "failed" with reasons, "rounds", "at", "took"
Found = dict[str, Any]

_INTRODUCTION = """\
# Benchmarks

Written by `make bench` (`python -m benchmarks.run`); don't edit. The commands are those that a person types
(`benchmarks/contenders.py`): for Raksha `raksha local backup` and `raksha local restore` on VMs of a libvirt, start of
the program included. All contenders of a table take turns; the ratios are of medians of one run, and only they mean
something on another machine. Rows "CPU" are processor time.

The disk "file-system data": 6 GiB raw, with an ext4 of 1 GiB of files: a sample of the host's own programs, libraries
and documents, and 124 MiB that do not compress. Before each command that is compared, the disk is in the page cache,
and nothing of the command before waits to be written.

Not here: Cinder's own backup service, as the test cloud has none.
"""


def read() -> dict[str, Found]:
    """The sections measured so far."""
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def write(found: dict[str, Found]) -> None:
    FIGURES.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    pictures.draw({name: medians(each) for name, each in found.items()}, DOCS / "images")
    PATH.write_text(page(found))


def medians(found: Found) -> Medians:
    return {name: median(values) for name, values in found["figures"].items()}


def page(found: dict[str, Found]) -> str:
    """The whole of docs/benchmarks.md."""
    parts = [_INTRODUCTION]
    for name in (name for name in ALL if name in found):
        parts += ["\n", _section(name, found[name])]
    if "directory" in found:
        parts += ["\n", cost.table(medians(found["directory"]), medians(found.get("increments", {"figures": {}})))]
    parts += ["\n## Where\n\n", table(("", ""), list(_environment().items()))]
    return "".join(parts)


def verdict(found: dict[str, Found]) -> str:
    """What was promised, for a terminal."""
    rows = [goal.row(medians(found[name])) for name in ALL if name in found for goal in ALL[name].GOALS]
    return "\n".join(f"{met:>3}  {value:>12}  {goal:>10}  {text}" for text, goal, value, met in rows)


def _section(name: str, found: Found) -> str:
    module, middle = ALL[name], medians(found)
    parts = [f"## {module.TITLE}\n\n", module.ABOUT, "\n"]
    parts.append(table(("what", "goal", "measured", "met"), [goal.row(middle) for goal in module.GOALS]))
    if name in pictures.PICTURES:
        parts.append(f"\n![{module.TITLE}](images/bench-{name}.svg)\n")
    for what, reason in found["failed"].items():
        parts.append(f"\nFailed: {what}: `{reason.replace('`', '')}`\n")
    took = f"{found['rounds']} rounds, {found['at']} UTC, {found['took']} s"
    parts.append(f"\n### Figures behind them ({took})\n\n")
    rows = [_row(key, values) for key, values in sorted(found["figures"].items())]
    parts.append(table(("", "median", "least", "most"), rows))
    return "".join(parts)


_BYTES = ("stored", "sent", "changed", "data", "metadata")


def _row(name: str, values: list[float]) -> tuple[str, ...]:
    three = (median(values), min(values), max(values))
    if any(word in name for word in _BYTES):
        return name, *(f"{value / 2**20:.2f} MiB" for value in three)
    if name.endswith("objects"):
        return name, *(f"{value:.0f}" for value in three)
    if name.startswith("memory"):
        return name, *(f"{value:.0f} MiB" for value in three)
    if max(three) < 0.1:
        return name, *(f"{value * 1000:.1f} ms" for value in three)
    return name, *(f"{value:.2f} s" for value in three)


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
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
        "virtnbdbackup": _version("virtnbdbackup", "-V"),
        "nbdcopy": _version("nbdcopy", "--version"),
    }


def processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def os_name() -> str:
    return platform.freedesktop_os_release()["PRETTY_NAME"]


def _version(*command: str) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "not there"
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else said.strip()
