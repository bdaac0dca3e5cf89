"""A disk as one stream: QEMU's own tools take it for what the disk held."""

from __future__ import annotations

from pathlib import Path

import pytest

from raksha.errors import DiskLost, Interrupted
from raksha.restore.export import export
from raksha.restore.stream import flattened
from tests.unit.restore.test_export import content, disk, made
from tests.unit.restore.vault import CountingStore, context, flip


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


@pytest.mark.parametrize("count", [1, 3])
def test_it_is_the_disk_and_says_its_size_before(spool: Path, tmp_path: Path, count: int) -> None:
    vault = made(spool)
    image = tmp_path / "image.qcow2"
    with flattened(vault.source(count), context(spool)) as stream:
        data = b"".join(stream.content)
    assert len(data) == stream.size
    image.write_bytes(data)
    assert content(image, tmp_path) == vault.models[count - 1]
    # the very image that an export makes
    [exported] = export([disk(vault, count)], tmp_path / "there", context(spool), flatten=True)
    assert exported.path.read_bytes() == data
    assert list(spool.iterdir()) == []


def test_it_is_fetched_as_it_is_read(spool: Path) -> None:
    vault = made(spool)
    store = CountingStore(vault.store)
    with flattened(vault.source(store=store), context(spool)) as stream:
        next(stream.content)
        first = sum(name.startswith("backupjobs_segments/") for name in store.gets)
        for _ in stream.content:
            pass
    every = [count for name, count in store.gets.items() if name.startswith("backupjobs_segments/")]
    assert set(every) == {1} and first < len(every) / 2


@pytest.mark.parametrize("fault", ["missing", "flipped", "shorter"])
def test_damage_names_what_is_lost(spool: Path, fault: str) -> None:
    vault = made(spool)
    name = vault.made[0].rows[20].name
    whole = vault.store.get(name)
    vault.store.delete(name)
    if fault != "missing":
        vault.store.put(name, whole if fault == "flipped" else whole[:-1])
    if fault == "flipped":
        flip(vault.store, name, len(whole) // 2)
    with flattened(vault.source(), context(spool)) as stream, pytest.raises(DiskLost, match=name.rpartition("/")[2]):
        for _ in stream.content:
            pass


def test_whoever_stops_reading_leaves_nothing(spool: Path) -> None:
    vault = made(spool)
    store = CountingStore(vault.store)
    at_work = context(spool)
    store.before_get = lambda _: at_work.cancel.set() if sum(store.gets.values()) == 20 else None
    with flattened(vault.source(store=store), at_work) as stream, pytest.raises(Interrupted):
        for _ in stream.content:
            pass
    assert list(spool.iterdir()) == []
