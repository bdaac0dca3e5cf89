"""What every section measures with: one command, its figures, and the same start for everybody."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_READ = 1 << 20
#: bytes; more than any of the commands writes
_MEMORY = 2 << 30
_POLL = 0.02
#: seconds; a contender that takes longer has failed
LIMIT = 300


@dataclass(frozen=True, slots=True)
class Place:
    """Where a section works, and how thoroughly."""

    directory: Path
    rounds: int
    #: small disks: to see that everything works, not to compare
    quick: bool


@dataclass(frozen=True, slots=True)
class Ran:
    """One command."""

    #: wall clock
    seconds: float
    #: seconds of processor time, of the command and of what it started and waited for
    cpu: float
    #: most memory that the command itself had at a time, MiB
    peak: float
    output: str

    def __add__(self, other: Ran) -> Ran:
        return Ran(
            self.seconds + other.seconds, self.cpu + other.cpu, max(self.peak, other.peak), self.output + other.output
        )


def run(command: Sequence[str | Path], **environment: str) -> Ran:
    """Raises `CalledProcessError` with what the command said, `TimeoutExpired` if that takes too long."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        before, start = _cpu(), time.perf_counter()
        process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=out, stderr=said,
            start_new_session=True,
        )  # fmt: skip
        peak = 0.0
        try:
            while process.poll() is None:
                peak = max(peak, _peak(process.pid))
                if time.perf_counter() - start > LIMIT:
                    raise subprocess.TimeoutExpired(list(map(str, command)), LIMIT)
                try:
                    process.wait(_POLL)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            # also where somebody interrupts: nothing goes on behind the next contender's back
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.perf_counter() - start
        out.seek(0)
        said.seek(0)
        output, errors = out.read().decode(errors="replace"), said.read().decode(errors="replace")
    if process.returncode:
        sys.stderr.write((output + errors)[-3000:])
        raise subprocess.CalledProcessError(process.returncode, list(map(str, command)), output, errors)
    return Ran(seconds, _cpu() - before, peak, output)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _peak(pid: int) -> float:
    """Not by getrusage: there a process begins with what its parent had."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


class Figures:
    """Seconds, bytes and MiB by name, one or more of each; and what failed, with the reason."""

    def __init__(self) -> None:
        self.taken: defaultdict[str, list[float]] = defaultdict(list)
        self.failed: dict[str, str] = {}

    def note(self, name: str, value: float) -> None:
        self.taken[name].append(value)
        print(f"  {name:44} {value:14.2f}", file=sys.stderr, flush=True)

    def ran(self, name: str, ran: Ran) -> Ran:
        """Both times of a command."""
        self.note(name, ran.seconds)
        self.note(f"{name}, CPU", ran.cpu)
        return ran

    def attempt(self, name: str, work: Callable[[], object]) -> bool:
        """A contender that fails is told so, and the others go on."""
        if name in self.failed:
            return False
        try:
            work()
        except (subprocess.SubprocessError, OSError, RuntimeError, LookupError, ValueError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.failed[name] = text[:160]
            print(f"  {name}: failed: {text}", file=sys.stderr, flush=True)
            return False
        return True

    def median(self, name: str) -> float:
        return median(self.taken[name])


def settle(*paths: Path) -> None:
    """Same start for everybody: nothing waits to be written, these files are in the page cache, and memory is at hand.

    The last is for a machine that is itself a VM: it gets memory from its host when it is touched, so that whoever
    comes first pays for those who come after.
    """
    os.sync()
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                for start, end in data_parts(file):
                    _read(file, start, end)
    mmap.mmap(-1, _MEMORY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def data_parts(path: Path) -> list[tuple[int, int]]:
    """All of a file but its holes: start and end of each part."""
    found = []
    with path.open("rb") as file:
        at, size = 0, path.stat().st_size
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole follows
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, at))
    return found


def _read(path: Path, start: int, end: int) -> None:
    with path.open("rb") as file:
        for offset in range(start, end, _READ):
            os.pread(file.fileno(), min(_READ, end - offset), offset)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files)


def count_of(path: Path) -> int:
    """Files below a directory."""
    return sum(each.is_file() for each in path.rglob("*"))
