"""Maps of large disks: constant memory, and nothing to pay for what is empty.

Run as a program this file builds and reads one map and prints what that took: a process of its own has a peak of
resident memory of its own.
"""

import json
import os
import subprocess
import sys
import time
from array import array
from itertools import islice, pairwise
from pathlib import Path

import pytest

from raksha.types import Geometry
from raksha.vault.chain import Chain, consolidate
from raksha.vault.map import DATA, FileSource, MapBuilder, MapPage, MapReader
from raksha.vault.segment import SegmentRow, padded
from tests.bed.memory import peak_mib

ROOT = Path(__file__).resolve().parents[3]

TIB = 1 << 40
ENTRIES = 16 * 1024 * 1024
PER_SEGMENT = 64


def full_terabyte(spool: Path) -> dict[str, float]:
    """Every cluster of 1 TiB holds data that nothing else holds: the hashes do not compress. Seconds and MiB."""
    geometry = Geometry(TIB)
    took = {}
    # lengths as of data that compresses by half, every row another
    noise = [20000 + value % 25000 for value in array("H", os.urandom(16384))]
    with MapBuilder(geometry, "key-1", spool) as builder:
        start = time.monotonic()
        for number in range(geometry.pages):
            page = MapPage(number, geometry.page_clusters)
            for position in range(0, page.width, PER_SEGMENT):
                shift = (number * 131 + position) % (len(noise) - PER_SEGMENT)
                lengths = tuple(noise[shift : shift + PER_SEGMENT])
                row = SegmentRow(os.urandom(32), "run.1", padded(sum(lengths)), lengths)
                page.set_data(position, builder.add_segment(row), 0, os.urandom(16 * PER_SEGMENT))
            builder.add_page(page)
        built = builder.finish()
        took["build"] = time.monotonic() - start
        reader = MapReader.open(FileSource(built.file, "map", built.size), built.digest)
        start = time.monotonic()
        took["entries"] = sum(page.count(DATA) for page in reader.pages())
        took["read_pages"] = time.monotonic() - start
        start = time.monotonic()
        took["segments"] = sum(len(row.lengths) == PER_SEGMENT for row in reader.segments())
        took["read_segments"] = time.monotonic() - start
        start = time.monotonic()
        with MapBuilder(geometry, "key-1", spool) as again:
            consolidate(Chain([reader, reader]), again)
            took["consolidated"] = again.finish().size
        took["consolidate"] = time.monotonic() - start
        took["size"] = built.size
    took["peak_mib"] = peak_mib()
    return took


@pytest.mark.slow
def test_sixteen_million_entries_in_300_mib(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.vault.test_map_scale", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280, cwd=ROOT)
    took = json.loads(done.stdout)
    assert took["entries"] == ENTRIES and took["segments"] == ENTRIES // PER_SEGMENT
    assert took["peak_mib"] <= 300
    # generous: several such tests may share the machine
    for step in ("build", "read_pages", "read_segments", "consolidate"):
        assert took[step] < 60, took
    # 16 bytes of hash and less than 3 of everything else for a cluster
    assert took["size"] < ENTRIES * 19
    assert took["consolidated"] == took["size"]


@pytest.mark.parametrize("size", [2 * TIB, 64 * TIB, 1024 * TIB])
def test_a_mostly_empty_disk_costs_next_to_nothing(size: int) -> None:
    geometry = Geometry(size)
    lengths = (9000,) * PER_SEGMENT
    row = SegmentRow(bytes(32), "run.1", padded(sum(lengths)), lengths)
    start = time.monotonic()
    with MapBuilder(geometry, "key-1") as builder:
        builder.add_data(0, builder.add_segment(row), 0, os.urandom(16))
        builder.add_zeros(geometry.clusters // 2, 3)
        builder.add_data(geometry.clusters - 1, 0, 5, os.urandom(16))
        built = builder.finish()
        assert built.size < 4096
        reader = MapReader.open(FileSource(built.file, "map", built.size), built.digest)
        assert [entry.cluster for page in reader.pages() for entry in page] == [
            0,
            *(geometry.clusters // 2 + n for n in range(3)),
            geometry.clusters - 1,
        ]
        chain = Chain([reader, reader])
        assert len(chain.page_numbers()) == 3
    assert time.monotonic() - start < 1


def test_a_map_of_many_pages_opens_at_once() -> None:
    """Small clusters make small pages: here one entry in each."""
    geometry = Geometry(TIB // 8, 4096)
    with MapBuilder(geometry, "key-1") as builder:
        for number in range(geometry.pages):
            builder.add_zeros(number * geometry.page_clusters)
        built = builder.finish()
        start = time.monotonic()
        reader = MapReader.open(FileSource(built.file, "map", built.size), built.digest)
        assert reader.page_count == geometry.pages == 65536
        assert all(high - low == 1 for low, high in pairwise(reader.page_numbers()))
        assert sum(len(list(page)) for page in islice(reader.pages(), 100)) == 100
        assert time.monotonic() - start < 1


if __name__ == "__main__":
    print(json.dumps(full_terabyte(Path(sys.argv[1]))))
