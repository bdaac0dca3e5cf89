"""Whatever people, agents and schedulers do in whatever order, and wherever they die: every restore point restores.

Hypothesis makes up the orders; a failure is told as the shortest one that it finds. `RAKSHA_SEED=7` searches
elsewhere, `RAKSHA_SEQUENCES=2000` for longer (with `-m slow`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
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

from raksha.errors import StateConflict
from raksha.retention import Retention
from raksha.states import BackupKind, RunState
from tests.bed.scheduling import runs_of
from tests.unit.scheduler.world import STEPS, World

#: when somebody dies or comes in between, and who that is
MOMENT = st.none() | st.integers(0, STEPS)
BETWEEN = st.sampled_from(["death", "death", "commits", "deletes", "collects", "prunes", "agents"])
DISK = st.sampled_from([("web", "vda"), ("web", "vdb"), ("db", "vda")])
SOME = st.integers(0, 1000)


class Service(RuleBasedStateMachine):
    """One project, two jobs over the same VM, one vault."""

    template: ClassVar[Path]
    checked: ClassVar[int] = 0
    world: World

    @initialize(chance=SOME, chain=st.integers(0, 3))
    def begin(self, chance: int, chain: int) -> None:
        self.world = World(self.template, chance)
        for number in range(chain):
            self.world.write(("web", "vda"), number, number + 4)
            self.a_whole_backup(0, number == 0)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.quiet()
            finally:
                self.world.close()
            Service.checked += 1

    def _within(self, moment: int | None, between: str, work: Callable[[], None]) -> None:
        act = None if between == "death" else getattr(self.world, between)
        self.world.within(moment, act, work)

    @rule(disk=DISK, at=SOME, value=st.integers(0, 5))
    def guest_writes(self, disk: tuple[str, str], at: int, value: int) -> None:
        self.world.write(disk, at, value)

    @rule(disk=DISK, clusters=st.integers(1, 8))
    def guest_is_resized(self, disk: tuple[str, str], clusters: int) -> None:
        self.world.resize(disk, clusters)

    @rule(hours=st.integers(1, 60))
    def time_passes(self, hours: int) -> None:
        self.world.agent.clock += hours * 3600

    @rule(job=st.sampled_from([0, 0, 1]), full=st.booleans())
    def backup_begins(self, job: int, full: bool) -> None:
        self.world.start(self.world.jobs[job], BackupKind.FULL if full else BackupKind.INCREMENTAL)

    @rule(moment=MOMENT, between=BETWEEN)
    def agents_work(self, moment: int | None, between: str) -> None:
        self._within(moment, between, self.world.agents)

    @rule(moment=MOMENT, between=BETWEEN)
    def schedulers_commit(self, moment: int | None, between: str) -> None:
        self._within(moment, between, self.world.commits)

    @rule(job=st.sampled_from([0, 0, 1]), full=st.booleans())
    def a_whole_backup(self, job: int, full: bool) -> None:
        self.backup_begins(job, full)
        for _ in range(2):
            self.world.agents()
            self.world.commits()
        self.world.agents()

    @rule(moment=MOMENT, between=BETWEEN)
    def schedulers_delete(self, moment: int | None, between: str) -> None:
        self._within(moment, between, self.world.deletes)

    @rule(moment=MOMENT, between=BETWEEN)
    def schedulers_collect(self, moment: int | None, between: str) -> None:
        self._within(moment, between, self.world.collects)

    @rule(moment=MOMENT, between=BETWEEN)
    def schedulers_prune(self, moment: int | None, between: str) -> None:
        self._within(moment, between, self.world.prunes)

    @rule(job=st.sampled_from([0, 1]), last=st.integers(0, 3), hourly=st.integers(0, 2), daily=st.integers(0, 2))
    def owner_wants_less(self, job: int, last: int, hourly: int, daily: int) -> None:
        if last or hourly or daily:
            self.world.retention(self.world.jobs[job], Retention(keep_last=last, hourly=hourly, daily=daily))

    @precondition(lambda self: self.world.ended())
    @rule(which=SOME)
    def owner_deletes(self, which: int) -> None:
        found = self.world.ended()
        self.world.delete(found[which % len(found)])

    @precondition(lambda self: self.world.points())
    @rule(which=SOME, protected=st.booleans())
    def owner_protects(self, which: int, protected: bool) -> None:
        found = self.world.points()
        self.world.protect(found[which % len(found)], protected)

    @rule(which=SOME)
    def owner_cancels(self, which: int) -> None:
        found = [run for run in runs_of(self.world.database) if run.state in (RunState.QUEUED, RunState.RUNNING)]
        if found:
            with suppress(StateConflict):
                self.world.cancel(found[which % len(found)])

    @rule(seconds=st.sampled_from([0.0, 3600.0]))
    def operator_sets_the_trash(self, seconds: float) -> None:
        self.world.trash(seconds)

    @rule()
    def listings_catch_up(self) -> None:
        self.world.store.settled()

    @precondition(lambda self: self.world.points())
    @rule(which=SOME, lose=st.booleans())
    def a_segment_rots(self, which: int, lose: bool) -> None:
        found = self.world.segments()
        if found and len(self.world.damaged) < 2:
            self.world.damage(found[which % len(found)], lose=lose)

    @precondition(lambda self: self.world.points())
    @rule(job=st.sampled_from([0, 1]), moment=MOMENT, between=BETWEEN)
    def somebody_verifies(self, job: int, moment: int | None, between: str) -> None:
        self._within(moment, between, lambda: self.world.verify(self.world.jobs[job]))

    @invariant()
    def every_point_restores(self) -> None:
        if hasattr(self, "world"):
            self.world.check()


def search(folder: Path, examples: int, steps: int) -> None:
    number = int(os.environ.get("RAKSHA_SEED", "1"))
    print(f"\nRAKSHA_SEED={number}", flush=True)
    Service.template, Service.checked = folder / "empty.db", 0
    profile = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink], print_blob=True,
    )  # fmt: skip
    run_state_machine_as_test(seed(number)(Service), settings=profile)
    assert Service.checked >= examples // 2


def test_every_point_restores_whatever_is_done_in_whatever_order(tmp_path: Path) -> None:
    search(tmp_path, 6, 20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_point_restores_in_many_more_orders(tmp_path: Path) -> None:
    search(tmp_path, int(os.environ.get("RAKSHA_SEQUENCES", "40")), 40)
