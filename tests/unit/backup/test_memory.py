"""Memory of a whole backup and of planning its restore: the same for a disk of any size.

Run as a program this file stores one disk and prints what that took: a process of its own has a peak of resident
memory of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from raksha.backup.disk import store_disk
from raksha.backup.pipeline import Destination
from raksha.progress import Progress
from raksha.restore.plan import Plan
from raksha.states import ReadMode, Reason
from raksha.types import CLUSTER_SIZE, CLUSTERS_PER_SEGMENT, Extent, ExtentKind, ResourceKey
from raksha.vault.chain import Chain
from raksha.vault.dedupe import DedupeIndex
from raksha.virt.capture import BaseImage
from tests.bed.memory import peak_mib
from tests.unit.backup.disks import JOB, VM, Bench, MemoryCapture

TIB = 1 << 40
#: plain bytes of a segment
SPAN = CLUSTERS_PER_SEGMENT * CLUSTER_SIZE
#: one segment of so many is like no other; the rest are all the same
RARE = 4
ROOT = Path(__file__).resolve().parents[3]


class Terabyte:
    """A disk of 1 TiB with data in `spans` stretches, spread over all of it. Fulfils `DiskCapture` and `DiskReader`."""

    target = "vda"
    size = TIB
    mode = ReadMode.FULL
    reason = Reason.FIRST_RUN
    parent: str | None = None
    base_image: BaseImage | None = None
    facts: Mapping[str, str | int | None] = {}
    tracker: Mapping[str, str | int | None] | None = None

    def __init__(self, spans: int) -> None:
        self._step = TIB // spans
        self._spans = spans
        self._common = b"".join(bytes([number + 1]) * CLUSTER_SIZE for number in range(CLUSTERS_PER_SEGMENT))

    def extents(self) -> Iterator[Extent]:
        return (Extent(number * self._step, SPAN, ExtentKind.DATA) for number in range(self._spans))

    def open(self) -> Terabyte:
        return self

    def pread(self, offset: int, length: int) -> bytes:
        assert length == SPAN
        number = offset // self._step
        if number % RARE:
            return self._common
        return number.to_bytes(8, "big") + self._common[8:]

    def pread_into(self, buffer: bytearray, stretches: Sequence[tuple[int, int]]) -> None:
        ((offset, length),) = stretches
        buffer[:length] = self.pread(offset, length)

    def close(self) -> None: ...


def store_and_plan(entries: int, spool: Path) -> dict[str, float]:
    """Seconds, MiB and counts."""
    bench = Bench(spool)
    disk = Terabyte(entries // CLUSTERS_PER_SEGMENT)
    with DedupeIndex() as dedupe:
        to = Destination(
            store=bench.store,
            hasher=bench.catalog.hasher(bench.catalog.vault.key_id),
            dedupe=dedupe,
            claim="r0.1",
            workers=4,
            compression_level=1,
            spool_dir=spool,
            progress=Progress(),
            cancel=bench.cancel,
        )
        start = time.monotonic()
        stored = store_disk(bench.catalog, MemoryCapture([]), disk, ResourceKey(JOB, "r0", VM, "vda"), to)
        took = {"store": time.monotonic() - start, "store_peak": peak_mib()}
    reader = bench.catalog.reader(stored.metadata)
    start = time.monotonic()
    with Plan(Chain([reader]), [reader], spool) as plan:
        took["segments"] = plan.segments
        took["planned"] = sum(len(piece.entries) for piece in plan.work())
    took |= {"plan": time.monotonic() - start, "peak": peak_mib(), "read": stored.metadata.volume.read}
    return took


@pytest.mark.slow
def test_a_million_clusters_are_stored_and_planned_in_300_mib(tmp_path: Path) -> None:
    entries = 1024 * 1024
    command = [sys.executable, "-m", "tests.unit.backup.test_memory", str(entries), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout)
    assert took["read"] == entries * CLUSTER_SIZE and took["planned"] == entries
    assert took["segments"] == entries // CLUSTERS_PER_SEGMENT // RARE + 1
    assert took["peak"] <= 300, took


if __name__ == "__main__":
    print(json.dumps(store_and_plan(int(sys.argv[1]), Path(sys.argv[2]))))
