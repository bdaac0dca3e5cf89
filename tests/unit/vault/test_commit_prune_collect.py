"""Commits, deletion, pruning and collection, each followed by a restore of everything that should be there."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raksha.agent.verify import verify_runs
from raksha.errors import (
    Damaged,
    Interrupted,
    MetadataInvalid,
    ObjectCorrupt,
    ObjectExists,
    ObjectMissing,
    ParentMissing,
    RakshaError,
    RunAmbiguous,
    RunNotFound,
    VaultForeign,
    VaultNewer,
    VaultNotFound,
    VaultUnavailable,
    VaultWriterOther,
)
from raksha.progress import Progress
from raksha.restore.context import Context
from raksha.states import BackupKind, ReadMode
from raksha.types import CLUSTER_SIZE, Extent, ExtentKind, ResourceKey
from raksha.vault import names
from raksha.vault.catalog import Catalog
from raksha.vault.collect import collect
from raksha.vault.commit import delete_run, establish, last_number, open_catalog_for_writing, plan_catalog, put_epoch
from raksha.vault.memory import MemoryStore
from raksha.vault.metadata import Writer
from raksha.vault.prune import remove_runs
from raksha.vault.store import BACKUPS, SEGMENTS, Part
from tests.unit.backup.disks import JOB, ME, VM, Bench, MemoryDisk, whole

OTHER = Writer(kind="host", id="ffffffff-0000-4000-8000-000000000000", name="other")


def grow(bench: Bench, count: int, clusters: int = 100, seed: int = 1) -> dict[str, bytes]:
    """A chain of `count` points r1…, each a few random clusters away from the one before."""
    chance = random.Random(seed)
    disk = bytearray(chance.randbytes(clusters * CLUSTER_SIZE))
    bench.backup("r1", MemoryDisk(bytes(disk), whole(disk)))
    points = {"r1": bytes(disk)}
    for number in range(2, count + 1):
        extents = []
        for cluster in sorted(chance.sample(range(clusters), 5)):
            data = chance.choice([bytes(CLUSTER_SIZE), chance.randbytes(CLUSTER_SIZE)])
            disk[cluster * CLUSTER_SIZE : (cluster + 1) * CLUSTER_SIZE] = data
            extents.append(Extent(cluster * CLUSTER_SIZE, CLUSTER_SIZE, ExtentKind.DATA))
        bench.backup(f"r{number}", MemoryDisk(bytes(disk), extents, ReadMode.DELTA, None, f"r{number - 1}"))
        points[f"r{number}"] = bytes(disk)
    return points


def named(bench: Bench, *runs: str) -> list:
    return [run for run in bench.catalog.runs() if run.backupjobrun in runs]


def test_numbers_follow_the_order_of_commits_and_runs_come_oldest_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    grow(bench, 3)
    assert [(run.backupjobrun, run.number) for run in bench.catalog.runs()] == [("r1", 1), ("r2", 2), ("r3", 3)]
    assert bench.catalog.find("latest").backupjobrun == "r3"
    with pytest.raises(RunAmbiguous, match="r1, r2, r3"):
        bench.catalog.find("r")
    with pytest.raises(RunNotFound):
        bench.catalog.find("x")


def test_a_place_that_is_no_vault_says_so(tmp_path: Path) -> None:
    store = MemoryStore()
    with pytest.raises(VaultNotFound):
        Catalog.open(store)
    store.prepare()
    store.put(f"{BACKUPS}/holiday.jpg", b"jpeg")
    with pytest.raises(VaultForeign, match="holiday"):
        open_catalog_for_writing(store, ME)
    assert list(store.names(BACKUPS)) == [f"{BACKUPS}/holiday.jpg"]


@pytest.mark.parametrize("changes", [0, 1, 2])
def test_who_died_while_making_a_vault_is_not_in_the_way_of_the_next(tmp_path: Path, changes: int) -> None:
    store = Dying()
    store.left = changes
    with suppress(Died):
        establish(plan_catalog(store, ME))
    store.left = 10**9
    try:
        catalog = open_catalog_for_writing(store, ME)
    except VaultNotFound:
        catalog = plan_catalog(store, ME)
        establish(catalog)
    assert catalog.listing().runs == []
    assert open_catalog_for_writing(store, ME).vault == catalog.vault


def test_a_planned_vault_is_made_once_and_only_when_asked(tmp_path: Path) -> None:
    store = MemoryStore()
    one, other = plan_catalog(store, ME), plan_catalog(store, OTHER)
    assert one.runs() == [] and list(store.names(BACKUPS)) == []
    establish(one)
    establish(one)
    with pytest.raises(ObjectExists):
        establish(other)
    assert open_catalog_for_writing(store, ME).vault == one.vault
    assert len(list(store.names(BACKUPS, "keys/"))) == 1, "the key of the other is not left behind"


def test_a_cancelled_prune_leaves_every_point_whole_or_gone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    points = grow(bench, 5)
    cancel = threading.Event()

    class AfterTwo(Progress):
        def step(self, text: str) -> None:
            if text == "deleted r3":
                cancel.set()

    with pytest.raises(Interrupted):
        remove_runs(bench.catalog, named(bench, "r1", "r2", "r3", "r4"), tmp_path, AfterTwo(), cancel)
    left = {run.backupjobrun for run in bench.catalog.runs()}
    assert left == {"r1", "r2", "r5"}
    collect(bench.catalog)
    for run in left:
        assert bench.restored(run) == points[run]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.store.put(names.VAULT, bench.store.get(names.VAULT).replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(VaultNewer):
        Catalog.open(bench.store)


def test_one_writer_others_read_and_take_over_moves_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    points = grow(bench, 2)
    with pytest.raises(VaultWriterOther, match="test"):
        open_catalog_for_writing(bench.store, OTHER)
    assert len(Catalog.open(bench.store).runs()) == 2
    taken = open_catalog_for_writing(bench.store, OTHER, take_over=True)
    assert taken.vault.id == bench.catalog.vault.id
    # the old writer is fenced: neither a commit nor a deletion nor a collection of its is carried out
    stored = bench.store_disk("late", MemoryDisk(b"x" * CLUSTER_SIZE, whole(b"x" * CLUSTER_SIZE)))
    for action in (
        lambda: bench.commit("late", stored),
        lambda: delete_run(bench.catalog, bench.catalog.find("r2")),
        lambda: collect(bench.catalog),
    ):
        with pytest.raises(VaultWriterOther, match="other"):
            action()
    assert {run.backupjobrun for run in taken.runs()} == set(points)


def test_a_commit_that_fails_at_any_write_leaves_no_run_and_the_next_one_works(tmp_path: Path) -> None:
    class Failing(MemoryStore):
        left = 10**9

        def _count(self) -> None:
            self.left -= 1
            if self.left == 0:
                raise ObjectCorrupt(name="any", detail="made to fail")

        def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
            self._count()
            super().put(name, data, create_only=create_only)

        def put_manifest(self, name: str, parts: object) -> None:
            self._count()
            super().put_manifest(name, parts)  # type: ignore[arg-type]

    store = Failing()
    bench = Bench(tmp_path, store)
    points = grow(bench, 1)
    failures = 0
    for at in range(1, 20):
        run = f"f{at}"
        disk = MemoryDisk(points["r1"], whole(points["r1"]))
        stored = bench.store_disk(run, disk)
        store.left = at
        try:
            bench.commit(run, stored)
        except ObjectCorrupt:
            failures += 1
            assert run not in {each.backupjobrun for each in bench.catalog.runs()}
        else:
            points[run] = points["r1"]
        store.left = 10**9
    assert failures == 5  # Backup, BackupMetadata, VMMetadata, epoch, run.json
    numbers = [run.number for run in bench.catalog.runs()]
    assert numbers == sorted(set(numbers)) and last_number(bench.catalog) >= numbers[-1]
    collect(bench.catalog)
    for run, expected in points.items():
        assert bench.restored(run) == expected


class Dying(MemoryStore):
    """After so many changes there are no more."""

    left = 10**9

    def _change(self) -> None:
        if self.left == 0:
            raise Died
        self.left -= 1

    def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        self._change()
        super().put(name, data, create_only=create_only)

    def put_file(self, name: str, source: BinaryIO, size: int) -> None:
        self._change()
        super().put_file(name, source, size)

    def put_manifest(self, name: str, parts: Sequence[Part]) -> None:
        self._change()
        super().put_manifest(name, parts)

    def delete(self, name: str) -> None:
        self._change()
        super().delete(name)


class Died(Exception):
    """As a process that is killed."""


def assert_whole(bench: Bench, points: Mapping[str, bytes], runs: Iterable[str]) -> None:
    """These points are listed, nothing is wrong with them, and they restore."""
    listed = bench.catalog.runs()
    assert {run.backupjobrun for run in listed} == set(runs)
    context = Context(bench.spool, 2, Progress(), bench.cancel)
    assert verify_runs(bench.catalog, listed, context, data=True)[1] == []
    for run in runs:
        assert bench.restored(run) == points[run]


@pytest.mark.parametrize("then", ["prune", "collect"])
def test_a_prune_that_died_at_any_change_costs_nothing(tmp_path: Path, then: str) -> None:
    """At once, after the same prune again, and after a collection that knows nothing of it."""
    at = 0
    while True:
        store = Dying()
        bench = Bench(tmp_path, store)
        points = grow(bench, 4, clusters=20)
        store.left = at
        try:
            remove_runs(bench.catalog, named(bench, "r1", "r2"), tmp_path, Progress())
            collect(bench.catalog)
        except Died:
            pass
        else:
            break
        finally:
            store.left = 10**9
        listed = [run.backupjobrun for run in bench.catalog.runs()]
        assert set(listed) >= {"r3", "r4"}
        assert_whole(bench, points, listed)
        if then == "prune":
            remove_runs(bench.catalog, [run for run in bench.catalog.runs() if run.number < 3], tmp_path, Progress())
            listed = ["r3", "r4"]
        collect(bench.catalog)
        assert_whole(bench, points, listed)
        assert collect(bench.catalog).deleted == 0
        at += 1
    assert at > 15


def test_deleting_the_newest_run_leaves_the_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    points = grow(bench, 3)
    delete_run(bench.catalog, bench.catalog.find("r3"))
    collect(bench.catalog)
    assert [run.backupjobrun for run in bench.catalog.runs()] == ["r1", "r2"]
    assert bench.restored("r2") == points["r2"]
    assert not [name for name in bench.store.names(BACKUPS) if "/r3/" in name]
    grow_on = MemoryDisk(points["r3"], whole(points["r3"]))
    bench.backup("r4", grow_on)
    assert bench.catalog.find("r4").number == 4, "a number is never given twice"


def test_pruning_the_oldest_moves_no_data_and_frees_what_nobody_needs(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    points = grow(bench, 5)
    before = {name: bench.store.get(name) for name in bench.store.names(SEGMENTS)}
    remove_runs(bench.catalog, named(bench, "r1", "r2", "r3"), tmp_path, Progress())
    for run in ("r4", "r5"):
        assert bench.restored(run) == points[run]
    full = bench.catalog.metadata(ResourceKey(JOB, "r4", VM, "vda"))
    assert (full.kind, full.parent) == (BackupKind.FULL, None)
    assert bench.catalog.find("r4").vms[0].resources[0].kind is BackupKind.FULL
    result = collect(bench.catalog)
    assert result.deleted > 0
    left = set(bench.store.names(SEGMENTS))
    assert {name for name in left if name in before} < set(before)
    assert all(bench.store.get(name) == before[name] for name in left & set(before))
    for run in ("r4", "r5"):
        assert bench.restored(run) == points[run]
    assert collect(bench.catalog).deleted == 0


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.sampled_from(["backup", "remove", "collect"]), st.integers(0, 1000)), max_size=12),
    seed=st.integers(0, 1000),
)
def test_whatever_is_removed_in_whatever_order_the_rest_restores(
    tmp_path: Path, steps: list[tuple[str, int]], seed: int
) -> None:
    bench = Bench(tmp_path)
    chance = random.Random(seed)
    disk = bytearray(chance.randbytes(9 * CLUSTER_SIZE))
    bench.backup("r0", MemoryDisk(bytes(disk), whole(disk)))
    points, number = {"r0": bytes(disk)}, 0
    for step, choice in steps:
        if step == "backup":
            number += 1
            at = choice % 9
            disk[at * CLUSTER_SIZE : (at + 1) * CLUSTER_SIZE] = chance.choice(
                [bytes(CLUSTER_SIZE), chance.randbytes(CLUSTER_SIZE)]
            )
            parent = bench.catalog.runs()[-1].backupjobrun
            # the tracker may count from an older point: then everything since is sent
            everything = parent != f"r{number - 1}" or chance.random() < 0.2
            listed = whole(disk) if everything else [Extent(at * CLUSTER_SIZE, CLUSTER_SIZE, ExtentKind.DATA)]
            bench.backup(f"r{number}", MemoryDisk(bytes(disk), listed, ReadMode.DELTA, None, parent))
            points[f"r{number}"] = bytes(disk)
        elif step == "remove" and len(points) > 1:
            victim = list(points)[choice % len(points)]
            remove_runs(bench.catalog, named(bench, victim), tmp_path, Progress())
            del points[victim]
        elif step == "collect":
            collect(bench.catalog)
    assert {run.backupjobrun for run in bench.catalog.runs()} == set(points)
    for run, expected in points.items():
        assert bench.restored(run) == expected


def test_collection_stops_before_deleting_anything_when_a_map_is_missing_or_wrong(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    grow(bench, 3)
    delete_run(bench.catalog, bench.catalog.find("r3"))
    metadata = bench.catalog.metadata(ResourceKey(JOB, "r1", VM, "vda"))
    name = names.map_object(metadata.resource_key, metadata.map.digest)
    good = bench.store.get(name)
    everything = sorted(bench.store.names(SEGMENTS))
    bench.store.delete(name)
    with pytest.raises(ObjectMissing):
        collect(bench.catalog)
    bench.store.put(name, good[:-40] + bytes([good[-40] ^ 1]) + good[-39:])
    with pytest.raises(Damaged):
        collect(bench.catalog)
    assert sorted(bench.store.names(SEGMENTS)) == everything
    bench.store.put(name, good)
    assert collect(bench.catalog).deleted > 0


@pytest.mark.parametrize("changed", ["000000000103", "000000000013", "000000000001", "00000000000x"])
def test_a_listing_that_was_changed_on_the_way_leaves_no_gap_in_the_numbers(tmp_path: Path, changed: str) -> None:
    class Lying(MemoryStore):
        lies = False

        def names(self, container: str, prefix: str = "") -> Iterator[str]:
            for name in super().names(container, prefix):
                yield name.replace("000000000003", changed) if self.lies else name

    store = Lying()
    bench = Bench(tmp_path, store)
    grow(bench, 3)
    store.lies = True
    stored = bench.store_disk("r4", MemoryDisk(b"x" * CLUSTER_SIZE, whole(b"x" * CLUSTER_SIZE)))
    assert bench.commit("r4", stored).number == 4
    store.lies = False
    collect(bench.catalog)
    assert last_number(bench.catalog) == 4


@pytest.mark.parametrize("numbered", [False, True], ids=["by the vault", "by a database"])
def test_a_number_that_is_called_taken_and_is_not_leaves_no_gap(tmp_path: Path, numbered: bool) -> None:
    class Lying(MemoryStore):
        lies = 0

        def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
            if create_only and "epochs/" in name and self.lies:
                self.lies -= 1
                raise ObjectExists(name=name)
            super().put(name, data, create_only=create_only)

    store = Lying()
    bench = Bench(tmp_path, store)
    grow(bench, 3)
    stored = bench.store_disk("r4", MemoryDisk(b"x" * CLUSTER_SIZE, whole(b"x" * CLUSTER_SIZE)))
    for lies in (99, 1):  # the first time for good: then it is no commit
        store.lies = lies
        try:
            if numbered:
                put_epoch(bench.catalog, msgspec.structs.replace(bench.catalog.runs()[-1], number=4, backupjobrun="r4"))
            else:
                bench.commit("r4", stored)
        except VaultUnavailable:
            assert lies == 99
        else:
            assert lies == 1
    assert last_number(bench.catalog) == 4
    store.lies = 0
    collect(bench.catalog)


def test_collection_needs_no_listing_to_know_what_is_alive(tmp_path: Path) -> None:
    class Lagging(MemoryStore):
        hidden: tuple[str, ...] = ()

        def names(self, container: str, prefix: str = "") -> object:
            return (name for name in super().names(container, prefix) if not name.endswith(self.hidden))

    store = Lagging()
    bench = Bench(tmp_path, store)
    points = grow(bench, 3)
    store.hidden = ("/run.json", "0002", "0003")
    assert collect(bench.catalog).deleted == 0
    store.hidden = ()
    for run, expected in points.items():
        assert bench.restored(run) == expected


def test_a_point_that_a_listing_does_not_show_yet_keeps_what_it_builds_on(tmp_path: Path) -> None:
    class Lagging(MemoryStore):
        hidden: tuple[str, ...] = ()

        def names(self, container: str, prefix: str = "") -> Iterator[str]:
            return (name for name in super().names(container, prefix) if not name.endswith(self.hidden))

    store = Lagging()
    bench = Bench(tmp_path, store)
    points = grow(bench, 3)
    victims = named(bench, "r1", "r2")
    store.hidden = ("r3/run.json",)
    remove_runs(bench.catalog, victims, tmp_path, Progress())
    store.hidden = ()
    collect(bench.catalog)
    assert_whole(bench, points, ["r3"])


def test_collection_leaves_alone_what_is_not_ours_and_a_dry_run_deletes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    grow(bench, 2)
    strangers = [f"{BACKUPS}/notes/today/readme.txt", f"{SEGMENTS}/zz/other", f"{BACKUPS}/notes.txt"]
    for name in strangers:
        bench.store.put(name, b"mine")
    delete_run(bench.catalog, bench.catalog.find("r2"))
    before = [*bench.store.names(BACKUPS), *bench.store.names(SEGMENTS)]
    found = collect(bench.catalog, dry_run=True).deleted
    assert found > 0
    assert [*bench.store.names(BACKUPS), *bench.store.names(SEGMENTS)] == before
    assert collect(bench.catalog).deleted == found
    assert set(strangers) <= {*bench.store.names(BACKUPS), *bench.store.names(SEGMENTS)}


def test_a_missing_parent_and_a_loop_are_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    grow(bench, 3)
    key = ResourceKey(JOB, "r3", VM, "vda")
    name = names.metadata(ResourceKey(JOB, "r1", VM, "vda"))
    good = bench.store.get(name)
    bench.store.delete(name)
    with pytest.raises(ParentMissing, match="r1"):
        bench.catalog.chain(key)
    bench.store.put(name, good.replace(b'"parent": null', b'"parent": "r3"'))
    with pytest.raises(MetadataInvalid, match="loop"):
        bench.catalog.chain(key)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],
        lambda data: data.replace(b'"size": ', b'"size": -'),
        lambda data: data.replace(b'"kind": "full"', b'"kind": "other"'),
        lambda data: b"\xff\xfe",
        lambda data: b"[]",
    ],
)
def test_damaged_metadata_is_an_error_that_names_it(tmp_path: Path, damage: object) -> None:
    bench = Bench(tmp_path)
    grow(bench, 1)
    name = names.metadata(ResourceKey(JOB, "r1", VM, "vda"))
    bench.store.put(name, damage(bench.store.get(name)))  # type: ignore[operator]
    with pytest.raises(MetadataInvalid, match="BackupMetadata"):
        bench.catalog.chain(ResourceKey(JOB, "r1", VM, "vda"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "a\0b", "keys", "epochs", "-x", "x" * 129, "a b"])
def test_names_never_leave_their_folder(name: str) -> None:
    with pytest.raises(RakshaError):
        names.run(name, "run")


def test_a_map_of_another_disk_is_refused_even_if_it_is_sound(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    grow(bench, 1)
    name = names.metadata(ResourceKey(JOB, "r1", VM, "vda"))
    good = bench.store.get(name)
    size = bench.catalog.metadata(ResourceKey(JOB, "r1", VM, "vda")).size
    bench.store.put(name, good.replace(f'"size": {size}'.encode(), f'"size": {size - 512}'.encode()))
    with pytest.raises(MetadataInvalid, match="geometry"):
        bench.restored("r1")


def test_a_document_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    grow(bench, 1)
    name = names.run(JOB, "r1")
    bench.store.put(name, bench.store.get(name).replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(MetadataInvalid, match="newer"):
        bench.catalog.run(JOB, "r1")
