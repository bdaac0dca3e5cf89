"""Disks go into a vault and come back, whatever the way they were read."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raksha.errors import DiskReadFailed, Interrupted, VaultFull
from raksha.states import BackupKind, ReadMode, Reason
from raksha.types import CLUSTER_SIZE, Extent, ExtentKind
from raksha.vault.memory import MemoryStore
from raksha.vault.store import BACKUPS, SEGMENTS
from tests.unit.backup.disks import Bench, MemoryDisk, whole

#: contents of a cluster: zeroes, and three that differ; the last one does not compress
KINDS = [bytes(CLUSTER_SIZE), b"a" * CLUSTER_SIZE, b"b" * CLUSTER_SIZE, random.Random(1).randbytes(CLUSTER_SIZE)]


def disk_of(kinds: list[int], tail: int = 0) -> bytes:
    return b"".join(KINDS[kind] for kind in kinds) + b"t" * tail


def changes(old: list[int], new: list[int], tail: int) -> list[Extent]:
    """The extents of a change tracker: what differs, zeroes as such; the tail counts as written."""
    found = [
        Extent(at * CLUSTER_SIZE, CLUSTER_SIZE, ExtentKind.DATA if kind else ExtentKind.ZERO)
        for at, kind in enumerate(new)
        if kind != old[at]
    ]
    return [*found, Extent(len(new) * CLUSTER_SIZE, tail, ExtentKind.DATA)] if tail else found


patterns = st.lists(st.sampled_from([0, 0, 1, 2, 3]), min_size=1, max_size=150)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=patterns, data=st.data(), tail=st.sampled_from([0, 512, 60000]))
def test_every_point_of_a_chain_restores_bit_for_bit(
    tmp_path: Path, first: list[int], data: st.DataObject, tail: int
) -> None:
    bench = Bench(tmp_path)
    disk = disk_of(first, tail)
    bench.backup("r0", MemoryDisk(disk, whole(disk)))
    points, last = {"r0": disk}, first
    for number in range(1, data.draw(st.integers(1, 4)) + 1):
        now = [data.draw(st.sampled_from([kind, kind, 0, 1, 2])) for kind in last]
        disk, run = disk_of(now, tail), f"r{number}"
        parent = f"r{number - 1}"
        match data.draw(st.sampled_from(["delta", "union", "compare", "full"])):
            case "delta":
                bench.backup(run, MemoryDisk(disk, changes(last, now, tail), ReadMode.DELTA, None, parent))
            case "union":
                bench.backup(run, MemoryDisk(disk, whole(disk), ReadMode.DELTA, Reason.UNION_OF_LAYERS, parent))
            case "compare":
                # a reader lists only what is not known to be zero
                listed = [
                    Extent(at * CLUSTER_SIZE, CLUSTER_SIZE, ExtentKind.DATA) for at, kind in enumerate(now) if kind
                ]
                listed += [Extent(len(now) * CLUSTER_SIZE, tail, ExtentKind.DATA)] if tail else []
                bench.backup(run, MemoryDisk(disk, listed, ReadMode.COMPARE, Reason.NO_TRACKER, parent))
            case "full":
                bench.backup(run, MemoryDisk(disk, whole(disk)))
        points[run], last = disk, now
    for run, expected in points.items():
        assert bench.restored(run) == expected, run


def test_an_unchanged_disk_sends_nothing_but_its_tables(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    disk = random.Random(2).randbytes(200 * CLUSTER_SIZE)
    first = bench.backup("r0", MemoryDisk(disk, whole(disk)))
    before = set(bench.store.names(SEGMENTS))
    second = bench.backup("r1", MemoryDisk(disk, whole(disk)), pins=[first.metadata])
    new = sum(bench.store.head(name).size for name in set(bench.store.names(SEGMENTS)) - before)
    assert first.metadata.volume.sent > len(disk)
    assert new < 1024 * 1024
    assert second.metadata.volume.sent == new + second.metadata.map.size
    assert second.metadata.volume.stored == first.metadata.volume.stored >= len(disk)
    assert bench.restored("r1") == disk


def test_comparing_with_the_parent_sends_only_what_differs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    disk = bytearray(random.Random(3).randbytes(300 * CLUSTER_SIZE))
    bench.backup("r0", MemoryDisk(bytes(disk), whole(disk)))
    for cluster in (0, 7, 131, 299):
        disk[cluster * CLUSTER_SIZE] ^= 1
    disk[50 * CLUSTER_SIZE : 52 * CLUSTER_SIZE] = bytes(2 * CLUSTER_SIZE)
    changed = bytes(disk)
    stored = bench.backup("r1", MemoryDisk(changed, whole(changed), ReadMode.COMPARE, Reason.NO_TRACKER, "r0"))
    assert stored.metadata.kind is BackupKind.INCREMENTAL
    assert stored.metadata.volume.data == 4 * CLUSTER_SIZE
    assert stored.metadata.volume.read == len(changed)
    assert bench.restored("r1") == changed


def test_a_discarded_stretch_does_not_come_back_from_the_parent(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    disk = b"x" * (20 * CLUSTER_SIZE)
    bench.backup("r0", MemoryDisk(disk, whole(disk)))
    now = bytes(15 * CLUSTER_SIZE) + b"x" * (5 * CLUSTER_SIZE)
    zero = [Extent(0, 15 * CLUSTER_SIZE, ExtentKind.ZERO)]
    stored = bench.backup("r1", MemoryDisk(now, zero, ReadMode.DELTA, None, "r0"))
    assert stored.metadata.volume.read == 0
    assert bench.restored("r1") == now


def test_increments_pack_scattered_changes_into_few_segments(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    disk = bytearray(1000 * CLUSTER_SIZE)
    bench.backup("r0", MemoryDisk(bytes(disk), []))
    extents = []
    for cluster in range(0, 1000, 10):
        disk[cluster * CLUSTER_SIZE] = 1 + cluster % 255
        extents.append(Extent(cluster * CLUSTER_SIZE, 4096, ExtentKind.DATA))
    stored = bench.backup("r1", MemoryDisk(bytes(disk), extents, ReadMode.DELTA, None, "r0"))
    assert bench.catalog.reader(stored.metadata).segment_count == 2
    assert bench.restored("r1") == bytes(disk)


class OncePerName(MemoryStore):
    """Fails the test if a segment is put twice."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        if name.startswith(SEGMENTS):
            assert name not in self.seen
            self.seen.add(name)
        super().put(name, data, create_only=create_only)


def test_equal_segments_met_by_several_threads_at_once_are_put_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, OncePerName())
    bench.workers = 8
    disk = random.Random(4).randbytes(64 * CLUSTER_SIZE) * 40
    stored = bench.backup("r0", MemoryDisk(disk, whole(disk)))
    assert bench.catalog.reader(stored.metadata).segment_count == 1
    assert bench.restored("r0") == disk


def test_the_first_error_wins_and_nothing_is_visible(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    disk = MemoryDisk(bytes(500 * CLUSTER_SIZE), [Extent(0, 500 * CLUSTER_SIZE, ExtentKind.DATA)])
    disk.fails.append(DiskReadFailed(vm="vm", disk="vda", offset=0, detail="input/output error"))
    with pytest.raises(DiskReadFailed, match="offset 0"):
        bench.store_disk("r0", disk)
    assert all(reader.closed for reader in disk.readers)
    assert bench.catalog.runs() == []
    assert not [name for name in bench.store.names(BACKUPS) if "r0" in name]


def test_a_full_vault_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    class Full(MemoryStore):
        def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
            if name.startswith(SEGMENTS) and self.room <= 0:
                raise VaultFull(url=self.url, detail="no space")
            self.room -= 1
            super().put(name, data, create_only=create_only)

        room = 5

    bench = Bench(tmp_path, Full())
    data = random.Random(5).randbytes(64 * CLUSTER_SIZE)
    disk = b"".join(bytes([number]) + data[1:] for number in range(30))
    with pytest.raises(VaultFull):
        bench.store_disk("r0", MemoryDisk(disk, whole(disk)))
    assert not [each for each in threading.enumerate() if each.name.startswith("raksha-data")]


def test_cancelling_stops_soon_and_leaves_nothing_visible(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    data = random.Random(6).randbytes(64 * CLUSTER_SIZE)
    disk = b"".join(bytes([number]) + data[1:] for number in range(60))

    class CancelledAfterThree(MemoryStore):
        def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
            super().put(name, data, create_only=create_only)
            if len(list(self.names(SEGMENTS))) == 3:
                bench.cancel.set()

    bench = Bench(tmp_path, CancelledAfterThree())
    captured = MemoryDisk(disk, whole(disk))
    with pytest.raises(Interrupted):
        bench.store_disk("r0", captured)
    assert len(captured.reads) < 30
    assert all(reader.closed for reader in captured.readers)
    assert bench.catalog.runs() == []


@pytest.mark.parametrize("size", [0, 1, 511, CLUSTER_SIZE - 1, CLUSTER_SIZE, 64 * CLUSTER_SIZE + 1])
def test_odd_sizes(tmp_path: Path, size: int) -> None:
    bench = Bench(tmp_path)
    disk = random.Random(size).randbytes(size)
    bench.backup("r0", MemoryDisk(disk, whole(disk)))
    assert bench.restored("r0") == disk
