"""Guests that write records all the time, and what of them must be on a copy taken at a given moment."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path

from tests.bed.deployment import HostOfDeployment
from tests.bed.disks import Disk
from tests.bed.machine import Machine
from tests.bed.records import check_records

MIB = 1024 * 1024
#: microseconds between two records
_PACE = 100_000
#: bytes of a disk that records go to
_SPAN = MIB
#: seconds by which the moment that a restore point names may differ from when a guest's line could be read
_MARGIN = 1.5
_EVERY = 0.1
_TAIL = 512


class Guest:
    """A VM with one or two disks of records."""

    def __init__(self, host: HostOfDeployment, name: str, disks: Sequence[Disk], mode: str) -> None:
        self.host = host
        self.name = name
        self.mode = mode
        self.targets = [f"vd{letter}" for letter in "ab"[: len(disks)]]
        span = _SPAN if mode == "oracle" else 0
        self.machine: Machine = host.bed.machine(disks, name=name, mode=mode, span=span, pause=_PACE)
        self.uuid = self.machine.uuid
        self._times: list[float] = []
        self._acks: list[int] = []

    def sample(self) -> None:
        """Note the last record that the guest has acknowledged by now."""
        at = time.time()
        with self.machine.serial.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            found = re.findall(rb"ACK (\d+)\r?\n", file.read())
        if found:
            self._times.append(at)
            self._acks.append(int(found[-1]))

    def bounds(self, taken_at: float) -> tuple[int, int]:
        """What is on a copy taken then: at least the first record, at most the second."""
        before = bisect_right(self._times, taken_at - _MARGIN) - 1
        after = bisect_left(self._times, taken_at + _MARGIN)
        least = self._acks[before] if before >= 0 else 0
        return least, self._acks[min(after, len(self._acks) - 1)] + 2

    def check(self, images: Sequence[tuple[Path, str]], taken_at: float, *, clean: bool) -> None:
        """Raises `RecordsWrong`, `AssertionError`. `clean`: its file systems were frozen."""
        least, most = self.bounds(taken_at)
        newest = self.newest(images, least, clean=clean)
        assert max(newest) <= most, f"{self.name}: records {newest} are newer than the copy, which ends at {most}"

    def newest(self, images: Sequence[tuple[Path, str]], acknowledged: int, *, clean: bool) -> list[int]:
        if self.mode == "oracle":
            return check_records(images, acknowledged)
        return check_records([_records_of(path, form, clean) for path, form in images], acknowledged)

    def assert_goes_on(self) -> None:
        self.machine.wait_for_agent()
        assert self.machine.agent("guest-fsfreeze-status") == "thawed", self.name
        self.machine.wait_for_records(3)


class Sampler:
    """A thread that notes what guests have acknowledged."""

    def __init__(self, guests: Sequence[Guest]) -> None:
        self._guests = guests
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_EVERY):
            for guest in self._guests:
                guest.sample()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


def _records_of(disk: Path, form: str, clean: bool) -> Path:
    """The file with the records, out of an ext4 that was frozen, or else whose journal is replayed now."""
    raw = disk.with_suffix(".fs")
    subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", disk, raw], check=True, capture_output=True)
    state = subprocess.run(["dumpe2fs", "-h", raw], capture_output=True, text=True, check=True).stdout
    if clean:
        assert "needs_recovery" not in state, "a frozen file system needs no recovery"
    else:
        assert subprocess.run(["e2fsck", "-p", raw], check=False, capture_output=True).returncode in (0, 1)
    subprocess.run(["e2fsck", "-fn", raw], check=True, capture_output=True)
    records = disk.with_suffix(".records")
    subprocess.run(["debugfs", "-R", f"dump /records {records}", raw], check=True, capture_output=True)
    raw.unlink()
    return records


def make_guests(hosts: dict[str, HostOfDeployment]) -> tuple[dict[str, Guest], list[Guest]]:
    """One by itself on each host, by host; and one on each for the group. All run."""
    alone, group = {}, []
    for name, host in hosts.items():
        bed = host.bed
        bed.qcow2("base", 8 * MIB)
        disks = [bed.qcow2("alone-a", None, backing="base.qcow2"), bed.qcow2("alone-b", 16 * MIB)]
        alone[name] = Guest(host, "alone", disks, "oracle")
        group.append(Guest(host, "member", [bed.raw("member-a", 24 * MIB)], "fs"))
    for guest in (*alone.values(), *group):
        guest.machine.start()
    for guest in (*alone.values(), *group):
        guest.machine.wait_for(r"READY \w+", timeout=180)
        guest.machine.wait_for_agent()
        guest.machine.wait_for_records(3, timeout=120)
    return alone, group
