"""Measure Raksha against qemu-img, borg and restic on one disk, and write docs/benchmarks.md.

usage: python -m benchmarks.run [--rounds N] [--dir DIR] [--no-write]

All contenders take turns in each round, with what they read in the page cache and nothing left to be written from the
one before; full and incrementals of a running VM come before, in rounds of their own. The table has medians of all
rounds. Takes some two and a half minutes a round on two cores, and 12 GiB in DIR.
"""

from __future__ import annotations

import argparse
import filecmp
import mmap
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks import report
from benchmarks.contenders import Borg, QemuImg, Raksha, Ran, Restic, size_of, sync
from benchmarks.image import make_image
from benchmarks.machine import Vms, vms

_READ = 1 << 20
#: after each full; one alone takes half a second, and tells more of the machine than of the command
_INCREMENTALS = 5
#: bytes; more than any of the commands writes
_MEMORY = 2 << 30


class Figures:
    """Seconds and bytes by name, one or more of each a round."""

    def __init__(self) -> None:
        self._taken: defaultdict[str, list[float]] = defaultdict(list)

    def note(self, name: str, value: float) -> None:
        self._taken[name].append(value)
        print(f"  {name:24} {value:10.2f}" if value < 1e5 else f"  {name:24} {value / 2**20:8.1f} MiB", file=sys.stderr)

    def ran(self, name: str, ran: Ran) -> Ran:
        """Both times of a command; for the row `synced`, the wall clock says it all."""
        self.note(name, ran.seconds)
        if not name.endswith("synced"):
            self.note(f"{name}, CPU", ran.cpu)
        return ran

    def medians(self) -> Mapping[str, float]:
        return {name: median(values) for name, values in self._taken.items()}

    def spreads(self) -> Mapping[str, tuple[float, float]]:
        return {name: (min(values), max(values)) for name, values in self._taken.items()}


def settle(*paths: Path) -> None:
    """Same start for everybody: nothing waits to be written, these files are in the page cache, and memory is at hand.

    The last is for a machine that is itself a VM: it gets memory from its host when it is touched, so that whoever
    comes first pays for those who come after.
    """
    os.sync()
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                _read_data(file)
    mmap.mmap(-1, _MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def _read_data(path: Path) -> None:
    """All of a file but its holes."""
    with path.open("rb") as file:
        at, size = 0, path.stat().st_size
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole follows
                return
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            for offset in range(start, at, _READ):
                os.pread(file.fileno(), min(_READ, at - offset), offset)


class Round:
    """Everybody once."""

    def __init__(self, directory: Path, disk: Path, machines: Vms, figures: Figures) -> None:
        self._disk = disk
        self._vms = machines
        self._figures = figures
        self._raksha = Raksha(directory, machines.uri)
        self._qemu = QemuImg(directory)
        self._borg = Borg(directory)
        self._restic = Restic(directory)
        self._out = directory / "restored.raw"

    def fulls(self) -> None:
        note, ran, disk = self._figures.note, self._figures.ran, self._disk
        settle(disk)
        ran("raksha full", self._raksha.full(self._vms.off))
        note("raksha stored", size_of(self._raksha.vault))
        settle(disk)
        qemu = ran("qemu-img full", self._qemu.full(disk))
        ran("qemu-img full, synced", qemu + sync(self._qemu.image))
        note("qemu-img stored", size_of(self._qemu.image))
        settle(disk)
        ran("borg full", self._borg.full(disk))
        note("borg stored", size_of(self._borg.repository))
        settle(disk)
        ran("restic full", self._restic.full(disk))
        note("restic stored", size_of(self._restic.repository))

    def restores(self) -> None:
        ran, out = self._figures.ran, self._out
        settle(self._raksha.vault)
        ran("raksha restore", self._raksha.restore(out))
        if not filecmp.cmp(out, self._disk, shallow=False):
            raise RuntimeError("the restored disk is not the disk")
        out.unlink()
        settle(self._qemu.image)
        qemu = ran("qemu-img restore", self._qemu.restore(out))
        ran("qemu-img restore, synced", qemu + sync(out))
        out.unlink()

    def incrementals(self, number: int, copy: Path) -> None:
        ran, running = self._figures.ran, self._vms.running
        settle(copy)
        ran("raksha full, running", self._raksha.full(running))
        for each in range(_INCREMENTALS):
            self._vms.change(number * _INCREMENTALS + each)
            settle(copy)
            took, sent = self._raksha.incremental(running)
            ran("raksha incremental", took)
            self._figures.note("raksha incremental sent", sent)

    def end(self) -> None:
        self._raksha("release", self._vms.running)


def measure(directory: Path, rounds: int) -> Figures:
    """All rounds. The directory needs 12 GiB."""
    disk, figures = directory / "disk.raw", Figures()
    print("making the disk ...", file=sys.stderr)
    make_image(disk)
    copy = directory / "copy.raw"
    subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
    with vms(disk, copy) as machines:
        one = Round(directory, disk, machines, figures)
        # compared with each other alone: what the other contenders do to the machine's memory stays out of it
        for number in range(rounds):
            print(f"incrementals, round {number + 1} of {rounds}", file=sys.stderr)
            one.incrementals(number, copy)
        one.end()
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            one.fulls()
            one.restores()
    return figures


@contextmanager
def _directory(asked: Path | None) -> Iterator[Path]:
    if asked is not None:
        yield asked
        return
    with tempfile.TemporaryDirectory(prefix="raksha-bench-") as made:
        # a VM of another user is to reach its disk
        Path(made).chmod(0o755)
        yield Path(made)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="work here, and keep the disk for the next time")
    parser.add_argument("--no-write", action="store_true", help="print the page instead of writing it")
    options = parser.parse_args()
    with _directory(options.dir) as directory:
        figures = measure(directory, options.rounds)
    page = report.page(figures.medians(), figures.spreads(), options.rounds)
    if options.no_write:
        print(page)
    else:
        report.PATH.write_text(page)
    print(report.verdict(figures.medians()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
