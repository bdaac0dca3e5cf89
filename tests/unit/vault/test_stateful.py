"""A vault with one writer, as `raksha local` has it: whatever is stored, pruned and collected in whatever order, and
wherever it dies, on whatever a listing says: every restore point restores. `RAKSHA_SEED=7` searches
elsewhere, `RAKSHA_SEQUENCES=2000` for longer (with `-m slow`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from raksha.progress import Progress
from raksha.retention import beyond_last
from raksha.states import ReadMode
from raksha.types import CLUSTER_SIZE, Extent, ExtentKind, ResourceKey
from raksha.vault import names
from raksha.vault.collect import collect, live_runs
from raksha.vault.prune import remove_runs
from raksha.vault.store import BACKUPS
from tests.unit.backup.disks import JOB, VM, Bench, MemoryDisk
from tests.unit.scheduler.unsteady import Fate, UnsteadyStore

CHANGES = st.none() | st.integers(0, 25)
SOME = st.integers(0, 1000)


def cluster(value: int) -> bytes:
    return bytes(CLUSTER_SIZE) if value == 0 else (b"%032d" % value) * (CLUSTER_SIZE // 32)


class Vault(RuleBasedStateMachine):
    """One disk, its restore points, and who prunes them."""

    checked: ClassVar[int] = 0
    bench: Bench

    @initialize(chance=SOME, chain=st.integers(1, 5))
    def begin(self, chance: int, chain: int) -> None:
        self._open = ExitStack()
        root = "/dev/shm" if Path("/dev/shm").is_dir() else None
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(dir=root)))
        self.fate = Fate()
        self.store = UnsteadyStore(self.fate, chance)
        self.bench = Bench(folder, self.store)
        self.bench.workers = 1
        self.disk = b"".join(cluster(1 + at % 3) for at in range(6))
        #: what each run captured, whether it was committed or not
        self.captured: dict[str, bytes] = {}
        self._seen = -1
        for number in range(chain):
            self.backup(None, 1, number, number + 4)

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        try:
            self.store.settled()
            collect(self.bench.catalog)
            self.store.settled()
            assert collect(self.bench.catalog).deleted == 0
            self.every_point_restores()
            self._no_garbage()
        finally:
            self._open.close()
        Vault.checked += 1

    def points(self) -> list[str]:
        """Oldest first; by the numbers, not by a listing."""
        return [run.backupjobrun for run in live_runs(self.bench.catalog)]

    @rule(at=SOME, value=st.integers(0, 5))
    def guest_writes(self, at: int, value: int) -> None:
        at = at % (len(self.disk) // CLUSTER_SIZE) * CLUSTER_SIZE
        self.disk = self.disk[:at] + cluster(value) + self.disk[at + CLUSTER_SIZE :]

    @rule(clusters=st.integers(1, 9))
    def guest_is_resized(self, clusters: int) -> None:
        self.disk = self.disk[: clusters * CLUSTER_SIZE].ljust(clusters * CLUSTER_SIZE, b"\0")

    @rule(left=CHANGES, back=st.sampled_from([1, 1, 1, 0, 2, 3]), at=SOME, value=st.integers(0, 5))
    def backup(self, left: int | None, back: int, at: int, value: int) -> None:
        """Over one of the last points, or a full one that shares data with the last."""
        self.guest_writes(at, value)
        points = self.points()
        parent = points[-back] if 0 < back <= len(points) else None
        old = b"" if parent is None else self.captured[parent]
        extents = []
        for start in range(0, len(self.disk), CLUSTER_SIZE):
            now = self.disk[start : start + CLUSTER_SIZE]
            if parent is None or now != old[start : start + CLUSTER_SIZE]:
                kind = ExtentKind.DATA if any(now) else ExtentKind.ZERO
                extents.append(Extent(start, CLUSTER_SIZE, kind))
        mode, reason = (ReadMode.DELTA, None) if parent else (ReadMode.FULL, MemoryDisk(b"", []).reason)
        run = f"r{len(self.captured) + 1}"
        self.captured[run] = self.disk
        last = points[-1:]
        pins = [each for known in last for each in self.bench.catalog.chain(self._key(known))]
        with self.fate.at(left, None):
            self.bench.backup(run, MemoryDisk(self.disk, extents, mode, reason, parent), pins)

    @precondition(lambda self: len(self.points()) > 1)
    @rule(left=CHANGES, which=st.sets(SOME, min_size=1, max_size=4), then=st.booleans())
    def somebody_deletes(self, left: int | None, which: set[int], then: bool) -> None:
        runs = list(live_runs(self.bench.catalog))
        doomed = {each % len(runs) for each in which}
        self._change(left, lambda: self._remove([runs[each] for each in sorted(doomed)], then))

    @precondition(lambda self: len(self.points()) > 1)
    @rule(left=CHANGES, keep=st.integers(1, 3), then=st.booleans())
    def somebody_prunes(self, left: int | None, keep: int, then: bool) -> None:
        before = self.points()
        self._change(left, lambda: self._remove(beyond_last(self.bench.catalog.runs(), keep), then))
        assert set(before[-1:]) <= set(self.points())

    @rule(left=CHANGES)
    def somebody_collects(self, left: int | None) -> None:
        self._change(left, lambda: collect(self.bench.catalog))

    @rule()
    def listings_catch_up(self) -> None:
        self.store.settled()

    def _remove(self, victims: list, then: bool) -> None:  # type: ignore[type-arg]
        remove_runs(self.bench.catalog, victims, self.bench.spool, Progress())
        if then:
            collect(self.bench.catalog)

    def _change(self, left: int | None, work: Callable[[], object]) -> None:
        with self.fate.at(left, None):
            work()

    @invariant()
    def every_point_restores(self) -> None:
        if not hasattr(self, "bench") or self._seen == self.fate.steps:
            return
        for run in self.points():
            assert self.bench.restored(run) == self.captured[run]
            # for tools of others: `Backup` is made of what is there
            for part in self.store.parts(names.image(self._key(run))):
                assert self.store.head(part.name).size == part.size
        self._seen = self.fate.steps

    def _key(self, run: str) -> ResourceKey:
        return ResourceKey(JOB, run, VM, "vda")

    def _no_garbage(self) -> None:
        catalog = self.bench.catalog
        known = (names.VAULT, f"{BACKUPS}/keys/", f"{BACKUPS}/epochs/")
        left = {name for name in self.store.all_names() if not name.startswith(known)}
        for run in self.points():
            key = self._key(run)
            metadata = catalog.metadata(key)
            left -= {names.run(JOB, run), names.vm_metadata(JOB, run, VM), names.metadata(key), names.image(key)}
            left -= {names.map_object(key, metadata.map.digest), *catalog.reader(metadata).object_names()}
        assert left == set()


def search(examples: int, steps: int) -> None:
    number = int(os.environ.get("RAKSHA_SEED", "1"))
    print(f"\nRAKSHA_SEED={number}", flush=True)
    Vault.checked = 0
    profile = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink], print_blob=True,
    )  # fmt: skip
    run_state_machine_as_test(seed(number)(Vault), settings=profile)
    assert Vault.checked >= examples // 2


def test_every_point_restores_whatever_is_pruned_in_whatever_order() -> None:
    search(25, 20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_point_restores_after_thousands_of_prunes() -> None:
    search(int(os.environ.get("RAKSHA_SEQUENCES", "200")), 20)
