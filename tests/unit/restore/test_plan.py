"""The plan: each segment once, each cluster once, whatever the chain looks like."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raksha.restore import plan as plan_module
from raksha.restore.disk import restore_disk
from raksha.restore.plan import Plan, zero_runs
from raksha.restore.targets import RawFile
from raksha.types import Geometry
from tests.unit.restore.vault import CLUSTER, CountingStore, Vault, context, pattern


def made(tmp_path: Path, clusters: int = 2000, per_segment: int = 8) -> Vault:
    return Vault(tmp_path, Geometry(clusters * CLUSTER, CLUSTER, per_segment))


def test_each_segment_is_fetched_once(tmp_path: Path) -> None:
    vault = made(tmp_path)
    chosen = random.Random(5)
    vault.add({number: pattern(number) for number in range(0, 1500)})
    scattered = chosen.sample(range(2000), 300)
    vault.add({number: pattern(10_000 + number) for number in scattered}, order=chosen.sample(scattered, 300))
    vault.add({number: pattern(20_000 + number) if number % 3 else None for number in range(7, 2000, 11)})
    store = CountingStore(vault.store)

    restore_disk(vault.source(store=store), RawFile(tmp_path / "disk"), context(tmp_path))

    segments = {name: count for name, count in store.gets.items() if name.startswith("backupjobs_segments/")}
    assert (tmp_path / "disk").read_bytes() == vault.models[-1]
    assert segments and set(segments.values()) == {1}


def test_a_segment_named_by_several_maps_and_places_is_fetched_once(tmp_path: Path) -> None:
    vault = made(tmp_path)
    same = {number: pattern(number % 8) for number in range(0, 80)}
    vault.add(same)
    vault.add({number + 800: data for number, data in same.items()})
    assert len({row.name for copy in vault.made for row in copy.rows}) == 1
    store = CountingStore(vault.store)

    restore_disk(vault.source(store=store), RawFile(tmp_path / "disk"), context(tmp_path))

    assert (tmp_path / "disk").read_bytes() == vault.models[-1]
    assert store.gets[vault.made[0].rows[0].name] == 1


def test_only_the_live_part_of_a_segment_is_fetched(tmp_path: Path) -> None:
    vault = made(tmp_path, clusters=64, per_segment=64)
    vault.add({number: random.Random(number).randbytes(CLUSTER) for number in range(64)})
    vault.add({number: None for number in range(64) if number not in (30, 31)})
    store = CountingStore(vault.store)
    source = vault.source(store=store)
    store.bytes = 0

    restore_disk(source, RawFile(tmp_path / "disk"), context(tmp_path))

    row = vault.made[0].rows[0]
    assert (tmp_path / "disk").read_bytes() == vault.models[-1]
    assert store.gets[row.name] == 1
    # the maps themselves are some kilobytes
    assert store.bytes < row.stored // 4


def test_what_newer_maps_hide_is_not_fetched(tmp_path: Path) -> None:
    vault = made(tmp_path, clusters=16)
    hidden = vault.add({number: pattern(number) for number in range(16)})
    vault.add({number: pattern(100 + number) for number in range(8)} | dict.fromkeys(range(8, 16)))
    store = CountingStore(vault.store)

    restore_disk(vault.source(store=store), RawFile(tmp_path / "disk"), context(tmp_path))

    assert not any(store.gets[row.name] for row in hidden.rows)


def test_a_segment_that_serves_very_many_clusters_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "MAX_ENTRIES", 100)
    vault = made(tmp_path)
    vault.add({number: pattern(number % 8) for number in range(1000)})
    source = vault.source()

    with Plan(source.pages(), source.readers, tmp_path) as plan:
        pieces = list(plan.work())
        assert (plan.clusters, plan.segments, plan.data_bytes) == (1000, 1, 1000 * CLUSTER)

    assert [len(piece.entries) for piece in pieces] == [100] * 10
    assert [entry.cluster for piece in pieces for entry in piece.entries] == list(range(1000))


entries = st.dictionaries(st.integers(0, 1299), st.one_of(st.none(), st.integers(0, 40)), max_size=60)


@settings(deadline=None, max_examples=60)
@given(layers=st.lists(entries, min_size=1, max_size=4), seed=st.integers(0, 99), per_segment=st.integers(1, 9))
def test_every_data_cluster_has_exactly_one_source(
    tmp_path_factory: pytest.TempPathFactory, layers: list[dict[int, int | None]], seed: int, per_segment: int
) -> None:
    spool = tmp_path_factory.mktemp("spool")
    vault = made(spool, 1300, per_segment)
    for layer in layers:
        order = random.Random(seed).sample(sorted(layer), len(layer))
        vault.add({at: None if value is None else pattern(value) for at, value in layer.items()}, order=order)
    merged: dict[int, int | None] = {}
    for layer in layers:
        merged |= layer
    source = vault.source()

    with Plan(source.pages(), source.readers, spool) as plan:
        pieces = list(plan.work())
    written = Counter(entry.cluster for piece in pieces for entry in piece.entries)
    zeroes = Counter(at for start, count in zero_runs(source.pages()) for at in range(start, start + count))

    data = {at for at, value in merged.items() if value is not None}
    assert written == Counter(data)
    assert zeroes == Counter(set(range(1300)) - data)
    assert len({piece.segment.name for piece in pieces}) == len(pieces)
