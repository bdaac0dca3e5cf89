"""What the guest feels: the time of its synchronous writes during a backup, and how long it was frozen."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from threading import Event, Thread

from benchmarks.contenders import Raksha, fresh, vm_of
from benchmarks.goals import Goal, over
from benchmarks.image import MIB, make_noise
from benchmarks.machine import a_bed
from benchmarks.measuring import Figures, Place, settle
from tests.bed.disks import Disk
from tests.bed.machine import Machine

TITLE = "The guest"
ABOUT = """\
The oracle of the test bed writes records to two disks, synchronously, and tells each one on its console; the time is
that between two of them, its pause of 2 ms included, and the guest is emulated (TCG). First beside processes that
burn as many cores at idle priority, then during fulls at idle CPU and I/O priority, in turns.
"""
GOALS = (
    Goal("p99 of the guest's writes: during a backup / beside the burner", over("p99 backup", "p99 burner"), -1.5),
    Goal("time that file systems were frozen", lambda all_: all_["frozen"], -1, " s"),
)
_SECONDS = 12
_POLL = 0.001
_IDLE = ("chrt", "-i", "0", "ionice", "-c", "3")


def measure(place: Place, figures: Figures) -> None:
    noise = place.directory / "noise.raw"
    try:
        # the oracle's own part of it, the first 8 MiB, is empty
        make_noise(noise, 4 << 30, (64 if place.quick else 512) * MIB)
        subprocess.run(["fallocate", "-p", "-o", "0", "-l", str(8 * MIB), noise], check=True)
        with a_bed() as bed:
            disks = [bed.qcow2("records", 32 * MIB), Disk(bed.host.give(noise), "raw")]
            machine = bed.machine(disks, mode="oracle", span=8 * MIB, pause=2000)
            machine.boot()
            raksha = Raksha(place.directory, bed.uri, before=_IDLE)
            raksha.full(machine.name)
            for _ in range(place.rounds):
                settle(noise)
                figures.note("p99 burner", _p99(machine, lambda: _burn(_SECONDS)))
                settle(noise)
                figures.note("p99 backup", _p99(machine, lambda: _back_up(raksha, machine, figures)))
            raksha("release", machine.name)
            fresh(raksha.vault)
    finally:
        noise.unlink(missing_ok=True)


def _back_up(raksha: Raksha, machine: Machine, figures: Figures) -> None:
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        vm = vm_of(raksha.full(machine.name))
        if vm["frozen_seconds"] is not None:
            figures.note("frozen", vm["frozen_seconds"])


def _burn(seconds: float) -> None:
    loop = ["timeout", str(seconds), "sh", "-c", "while :; do :; done"]
    processes = [subprocess.Popen([*_IDLE, *loop]) for _ in range(os.cpu_count() or 1)]
    for process in processes:
        process.wait()


def _p99(machine: Machine, work: Callable[[], None]) -> float:
    """Seconds between two records that the guest told, while the work is done."""
    with _watching(machine.serial) as moments:
        work()
    gaps = [after - before for before, after in pairwise(moments)]
    if len(gaps) < 100:
        raise RuntimeError(f"the guest wrote {len(gaps)} records only")
    return quantiles(gaps, n=100)[98]


@contextmanager
def _watching(serial: Path) -> Iterator[list[float]]:
    """The moments at which lines of the console came."""
    moments: list[float] = []
    ended = Event()

    def watch() -> None:
        with serial.open("rb") as file:
            file.seek(0, os.SEEK_END)
            while not ended.wait(_POLL):
                lines = file.read().count(b"ACK ")
                moments.extend([time.perf_counter()] * lines)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield moments
    finally:
        ended.set()
        thread.join()
