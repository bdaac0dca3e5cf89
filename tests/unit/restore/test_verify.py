"""Verification: every fault is found, blamed on the right object, and none is invented."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raksha.errors import Interrupted, VaultUnavailable
from raksha.restore.disk import restore_disk
from raksha.restore.targets import RawFile
from raksha.restore.verify import Finding, Share, verify
from raksha.types import Geometry
from raksha.vault import names
from raksha.vault.map import DATA, MapBuilder, MapReader, StoreSource
from raksha.vault.memory import MemoryStore
from raksha.vault.segment import SegmentRow, object_name
from raksha.vault.store import Part
from tests.unit.restore.vault import CLUSTER, HASHER, CountingStore, Made, Vault, context, flip, pattern, replace


def made(spool: Path, store: MemoryStore | None = None) -> Vault:
    vault = Vault(spool, Geometry(800 * CLUSTER, CLUSTER, 8), store=store or MemoryStore())
    vault.add({number: pattern(number) for number in (*range(3, 100), 799)}, image=True)
    vault.add({5: None, 50: pattern(1), 400: pattern(2), 799: None}, image=True)
    vault.add({6: pattern(3), 5: pattern(4), 798: pattern(5)}, image=True)
    return vault


def keys(vault: Vault, *numbers: int) -> tuple[object, ...]:
    return tuple(vault.made[number].key for number in numbers)


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("limit", [3, 1000])
def test_a_whole_vault_has_no_findings(tmp_path: Path, data: bool, limit: int) -> None:
    vault = made(tmp_path, MemoryStore(manifest_limit=limit))
    assert verify(vault.store, vault.copies(), context(tmp_path), data=data) == []


def test_data_is_fetched_once_over_all_points(tmp_path: Path) -> None:
    vault = made(tmp_path)
    store = CountingStore(vault.store)
    assert verify(store, vault.copies(), context(tmp_path), data=True) == []
    segments = {row.name for copy in vault.made for row in copy.rows}
    assert {name for name, count in store.gets.items() if count == 1} >= segments


def test_without_data_no_segment_is_fetched(tmp_path: Path) -> None:
    vault = made(tmp_path)
    store = CountingStore(vault.store)
    verify(store, vault.copies(), context(tmp_path))
    assert not any(store.gets[row.name] for copy in vault.made for row in copy.rows)


def test_all_faults_are_found_and_hit_what_builds_on_them(tmp_path: Path) -> None:
    vault = made(tmp_path)
    missing, flipped = vault.made[0].rows[2].name, vault.made[1].rows[0].name
    shorter, longer = vault.made[2].rows[0].name, vault.made[0].rows[5].name
    vault.store.delete(missing)
    flip(vault.store, flipped, 20)
    replace(vault.store, shorter, vault.store.get(shorter)[:-1])
    replace(vault.store, longer, vault.store.get(longer) + b"\0")

    found = verify(vault.store, vault.copies(), context(tmp_path), data=True)

    # Backup itself is not whole either, but its parts are what is blamed
    assert {each.object: (each.code, each.hits) for each in found if each.object.startswith("backupjobs_segments")} == {
        missing: ("object_missing", keys(vault, 0, 1, 2)),
        flipped: ("object_corrupt", keys(vault, 1, 2)),
        shorter: ("object_truncated", keys(vault, 2)),
        longer: ("object_corrupt", keys(vault, 0, 1, 2)),
    }


def test_presence_alone_finds_what_is_missing_or_of_another_size(tmp_path: Path) -> None:
    vault = made(tmp_path)
    missing, shorter, flipped = (row.name for row in vault.made[0].rows[2:5])
    vault.store.delete(missing)
    replace(vault.store, shorter, vault.store.get(shorter)[:-1])
    flip(vault.store, flipped, 20)
    found = {each.object: each.code for each in verify(vault.store, vault.copies(), context(tmp_path))}
    assert found[missing] == "object_missing"
    assert found[shorter] == "object_truncated"
    assert flipped not in found


@pytest.mark.parametrize("fault", ["missing", "flipped", "truncated"])
def test_a_damaged_map(tmp_path: Path, fault: str) -> None:
    vault = made(tmp_path)
    name = vault.made[1].map_name
    whole = vault.store.get(name)
    vault.store.delete(name)
    if fault != "missing":
        vault.store.put(name, whole[:-40] if fault == "truncated" else whole)
    if fault == "flipped":
        flip(vault.store, name, 5)
    [found] = verify(vault.store, vault.copies(), context(tmp_path), data=True)
    assert (found.object, found.hits) == (name, keys(vault, 1, 2))


def test_every_byte_of_a_map_counts(tmp_path: Path) -> None:
    vault = Vault(tmp_path, Geometry(800 * CLUSTER, CLUSTER, 8))
    copy = vault.add({number: pattern(number) for number in range(20)}, image=True)
    for at in range(copy.map_size):
        flip(vault.store, copy.map_name, at)
        found = verify(vault.store, vault.copies(), context(tmp_path))
        assert [each.object for each in found] == [copy.map_name], at
        flip(vault.store, copy.map_name, at)


@pytest.mark.parametrize("fault", ["missing", "flipped"])
def test_damaged_image_tables(tmp_path: Path, fault: str) -> None:
    vault = made(tmp_path)
    table = next(part.name for part in vault.made[1].reader.objects if not part.manifest)
    if fault == "missing":
        vault.store.delete(table)
    else:
        flip(vault.store, table, 30)
    found = verify(vault.store, vault.copies(), context(tmp_path), data=True)
    assert table in {each.object for each in found}
    assert {each.hits for each in found} == {keys(vault, 1, 2)}


def test_a_backup_that_is_made_of_something_else(tmp_path: Path) -> None:
    vault = made(tmp_path)
    name = names.image(vault.made[0].key)
    parts = vault.store.parts(name)
    vault.store.put_manifest(name, [*parts[:-2], parts[-1], parts[-2]])
    [found] = verify(vault.store, vault.copies(), context(tmp_path))
    assert (found.object, found.code) == (name, "object_corrupt")


def test_a_nested_manifest_that_is_made_of_something_else(tmp_path: Path) -> None:
    vault = made(tmp_path, MemoryStore(manifest_limit=3))
    nested: Part = next(part for part in vault.made[0].reader.objects if part.manifest)
    parts = vault.store.parts(nested.name)
    vault.store.put_manifest(nested.name, parts[::-1])
    found = verify(vault.store, vault.copies(), context(tmp_path))
    assert [each.object for each in found] == [names.image(vault.made[0].key)]


def test_a_missing_backup(tmp_path: Path) -> None:
    vault = made(tmp_path)
    vault.store.delete(names.image(vault.made[2].key))
    [found] = verify(vault.store, vault.copies(), context(tmp_path))
    assert (found.object, found.code, found.hits) == (
        names.image(vault.made[2].key),
        "object_missing",
        keys(vault, 2),
    )


def test_a_missing_parent(tmp_path: Path) -> None:
    vault = made(tmp_path)
    [found] = verify(vault.store, vault.copies()[1:], context(tmp_path))
    assert found.object == names.metadata(vault.made[0].key)
    assert (found.code, found.hits) == ("parent_missing", keys(vault, 1, 2))


def test_a_map_that_names_the_wrong_cluster(tmp_path: Path) -> None:
    """Such a map is whole, and so is each segment: only both together show that a restore would fail."""
    vault = Vault(tmp_path, Geometry(800 * CLUSTER, CLUSTER, 8))
    copy = vault.add({number: pattern(number) for number in range(8)}, image=True)
    with MapBuilder(vault.geometry, "key-1", tmp_path) as builder:
        segment = builder.add_segment(copy.rows[0])
        for number in range(8):
            builder.add(number, DATA, segment, number ^ (number > 5), HASHER.hash(pattern(number)))
        built = builder.finish(copy.reader.objects, list(copy.reader.parts())[:1])
        name = names.map_object(copy.key, built.digest)
        vault.store.put_file(name, built.file, built.size)
    reader = MapReader.open(StoreSource(vault.store, name))
    vault.made[0] = Made(copy.key, reader, copy.rows, name, built.size, copy.image_size)

    found = verify(vault.store, vault.copies(), context(tmp_path), data=True)

    assert [(each.object, each.detail.partition(": ")[2]) for each in found if each.object == name] == [
        (name, "cluster 6 is not in the segment that it names.")
    ]


def test_a_vault_that_does_not_answer_is_an_error_no_finding(tmp_path: Path) -> None:
    vault = made(tmp_path)
    store = CountingStore(vault.store)

    def gone(name: str) -> None:
        if name.startswith("backupjobs_segments"):
            raise VaultUnavailable(url="memory://", detail="it is gone")

    store.before_get = gone
    with pytest.raises(VaultUnavailable):
        verify(store, vault.copies(), context(tmp_path), data=True)


def test_a_cancel(tmp_path: Path) -> None:
    vault = made(tmp_path)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Interrupted):
        verify(vault.store, vault.copies(), context(tmp_path, cancel=cancel))


@settings(deadline=None, max_examples=40)
@given(victims=st.sets(st.integers(0, 10_000), min_size=1, max_size=6))
def test_any_set_of_flipped_objects_is_found_exactly(
    tmp_path_factory: pytest.TempPathFactory, victims: set[int]
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    vault = made(tmp_path)
    rows = [row for copy in vault.made for row in copy.rows]
    chosen = {rows[victim % len(rows)].name: victim for victim in victims}
    for row in rows:
        if row.name in chosen:
            # within the first frame's data; the last bytes are padding
            flip(vault.store, row.name, 20 + chosen[row.name] % (row.lengths[0] - 40))

    found: list[Finding] = verify(vault.store, vault.copies(), context(tmp_path), data=True)

    assert {each.object for each in found} <= set(chosen)
    if set(chosen) - {each.object for each in found}:
        # a few bits of a frame change nothing that comes out of it; then those disks are right all the same
        hit = {key for each in found for key in each.hits}
        for count, copy in enumerate(vault.made, 1):
            if copy.key not in hit:
                restore_disk(vault.source(count), RawFile(tmp_path / f"{count}"), context(tmp_path))
                assert (tmp_path / f"{count}").read_bytes() == vault.models[count - 1]


def test_whole_segments_that_changed_places_are_found(tmp_path: Path) -> None:
    vault = Vault(tmp_path, Geometry(17 * CLUSTER, CLUSTER, 8))
    vault.add({number: pattern(number) for number in range(1, 17)}, image=True)
    one, two = vault.made[0].rows
    assert one.lengths == two.lengths
    first, second = vault.store.get(one.name), vault.store.get(two.name)
    replace(vault.store, one.name, second)
    replace(vault.store, two.name, first)
    found = verify(vault.store, vault.copies(), context(tmp_path), data=True)
    assert {(each.object, each.code) for each in found} == {
        (one.name, "object_corrupt"),
        (two.name, "object_corrupt"),
    }


def again(vault: Vault, row: SegmentRow, body: bytes | None = None) -> str:
    """The same data, stored by somebody else later (or something else under its digest). Its name."""
    name = object_name(row.digest, "another-task.1")
    vault.store.put(name, vault.store.get(row.name) if body is None else body)
    return name


def test_what_is_damaged_and_stored_a_second_time_is_whole_again(tmp_path: Path) -> None:
    vault = made(tmp_path)
    missing, flipped, lost = (vault.made[0].rows[number] for number in (1, 2, 3))
    for row in (missing, flipped):
        again(vault, row)
    whole = {row.name: vault.store.get(row.name) for row in (missing, flipped)}
    # of this one nobody else has anything that helps: another length, other data
    again(vault, lost, b"x" * (lost.stored - 1))
    vault.store.put(object_name(lost.digest, "a-third-task.1"), b"x" * lost.stored)
    vault.store.delete(missing.name)
    flip(vault.store, flipped.name, 40)
    flip(vault.store, lost.name, 40)
    found = verify(vault.store, vault.copies(), context(tmp_path), data=True)
    assert {finding.object for finding in found} == {missing.name, flipped.name, lost.name}
    assert missing.name not in set(vault.store.names("backupjobs_segments")), "nobody asked for it"
    healed: list[str] = []
    found = verify(vault.store, vault.copies(), context(tmp_path), data=True, healed=healed)
    assert sorted(healed) == sorted(whole)
    assert {finding.object for finding in found} == {lost.name}
    assert {name: vault.store.get(name) for name in whole} == whole
    healed.clear()
    verify(vault.store, vault.copies(), context(tmp_path), data=True, healed=healed)
    assert healed == []


def test_a_share_reads_some_and_all_shares_together_everything(tmp_path: Path) -> None:
    vault = made(tmp_path)
    segments = {row.name for copy in vault.made for row in copy.rows}
    read: dict[str, int] = dict.fromkeys(segments, 0)
    for offset in (0, 25, 50, 75):
        store = CountingStore(vault.store)
        assert verify(store, vault.copies(), context(tmp_path), data=True, share=Share(25, offset)) == []
        for name in segments:
            read[name] += store.gets[name]
    assert set(read.values()) == {1}
    # what is not read is looked for
    gone = vault.made[0].rows[0]
    vault.store.delete(gone.name)
    for offset in (0, 25, 50, 75):
        (found,) = verify(vault.store, vault.copies(), context(tmp_path), data=True, share=Share(25, offset))
        assert (found.object, found.code) == (gone.name, "object_missing")


@given(st.binary(min_size=32, max_size=32), st.integers(0, 99), st.integers(1, 100))
def test_every_digest_is_in_as_many_shares_as_the_share_is_large(digest: bytes, offset: int, percent: int) -> None:
    assert sum(Share(percent, (offset + step) % 100).has(digest) for step in range(100)) == percent
