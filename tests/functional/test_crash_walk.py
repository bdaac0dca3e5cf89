"""kill -9 at every crash point of every command that changes something. `make crash-walk` takes all of them.

A walk runs its command once to its end and notes the points it passes. Then, for each point, the command is killed
there while the guest writes, and it must hold: no acknowledged write is lost, the VM starts from its definition, the
next command is right, the next backup is exact and no larger than what was written, nothing is left over.
What one point leaves is where the next begins.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bed import Bed
from tests.functional.crash_kit import Point, World, sample, wanted_sample, world_on
from tests.functional.crash_names import must_pass
from tests.functional.local_kit import Answer

pytestmark = [pytest.mark.bed, pytest.mark.timeout(4 * 3600)]

#: how many points of each walk the ordinary test run takes
SAMPLE = 2


@pytest.fixture
def world(bed: Bed, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with world_on(bed, tmp_path, getattr(request, "param", "overlay")) as made:
        yield made


both_engines = pytest.mark.parametrize("world", ["overlay", "pull"], indirect=True)


def walk(
    name: str,
    world: World,
    arrange: Callable[[], None],
    command: Callable[[], tuple[str, ...]],
    settle: Callable[[int], None],
) -> None:
    """Every point of a command (or a sample of them): `arrange`, die there, `settle`. Ends with the first failure.

    `name`: as crash_names.py calls it.
    """
    arrange()
    points = world.traced(*command())
    assert must_pass(name, world.engine) <= {point.name for point in points}
    settle(0)
    chosen = sample(points, wanted_sample(SAMPLE))
    missed, began = [], time.monotonic()
    for number, point in enumerate(chosen):
        try:
            arrange()
            if not world.killed_at(point, *command()):
                missed.append(point)
            settle(number)
        except BaseException as error:
            error.add_note(f"killed at {point}, which is {number + 1} of {len(chosen)}")
            raise
    told(f"{len(points)} points, {len(chosen)} walked, {len(missed)} not reached, {time.monotonic() - began:.0f} s")
    # threads may pass points in another order or number, but not often
    assert len(missed) <= len(chosen) // 10, missed


def told(text: str) -> None:
    print(text, file=sys.stderr)


def backup_settles(world: World, *, tracked: bool = True) -> Callable[[int], None]:
    """After a killed backup. `tracked`: the VM had a tracker and a point before, so the next is an increment."""

    def settle(number: int) -> None:
        world.write()
        if number % 2:
            world.restart()
        world.adopt_new_points()
        touched = {target: set(clusters) for target, clusters in world.touched.items()}
        answer = world.backup()
        assert answer.warnings == []
        if tracked:
            world.assert_increment(answer, touched)
        world.assert_nothing_left()
        world.assert_right(answer.run)
        if not number % 2:
            world.restart()
        if number % 8 == 7:
            world.prune()

    return settle


@both_engines
def test_an_increment(world: World) -> None:
    world.backup()
    walk(
        "an increment", world, world.writes, lambda: ("backup", world.guest.uuid, *world.options), backup_settles(world)
    )


@both_engines
def test_after_a_failed_run(world: World) -> None:
    """Two frozen layers of ours lie below the active one: the next run sends their union."""

    def arrange() -> None:
        world.writes()
        assert world.killed_at(Point("vault.put.segment", 1), "backup", world.guest.uuid, *world.options)
        world.writes()

    world.backup()
    walk(
        "after a failed run",
        world,
        arrange,
        lambda: ("backup", world.guest.uuid, *world.options),
        backup_settles(world),
    )


@both_engines
def test_a_first_backup(world: World) -> None:
    """Of a VM without any trace of ours, into a place without a vault."""

    def arrange() -> None:
        world.local.good("release", world.guest.uuid)
        world.local.vault = f"file://{world.place}/vault-{len(list(world.place.iterdir()))}"
        world.truth.clear()
        world.writes()

    def settle(number: int) -> None:
        world.write()
        if number % 2:
            world.restart()
        if world.local("list").code == 0:  # else it died before it had made a vault
            world.adopt_new_points()
        touched = {target: set(clusters) for target, clusters in world.touched.items()}
        first = not world.truth
        answer = world.backup()
        assert answer.warnings == []
        if first:
            assert {how[0] for how in answer.how().values()} == {"full"}
        else:
            world.assert_increment(answer, touched)
        world.assert_nothing_left()
        world.assert_right(answer.run)

    walk("a first backup", world, arrange, lambda: ("backup", world.guest.uuid, *world.options), settle)


@pytest.mark.slow
@both_engines
def test_a_backup_of_a_vm_that_is_shut_off(world: World) -> None:
    def arrange() -> None:
        if not world.guest.machine.running:
            world.guest.start()
        world.writes()
        world.guest.off()

    def settle(number: int) -> None:
        if number % 2:
            world.guest.start()
            world.write()
        world.adopt_new_points()
        touched = {target: set(clusters) for target, clusters in world.touched.items()}
        answer = world.backup()
        assert answer.warnings == []
        world.assert_increment(answer, touched)
        world.assert_nothing_left()
        world.assert_right(answer.run)
        if number % 8 == 7:
            world.prune()

    world.backup()
    walk(
        "a backup of a VM that is shut off",
        world,
        arrange,
        lambda: ("backup", world.guest.uuid, *world.options),
        settle,
    )


@both_engines
@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
def test_a_release(world: World, running: bool) -> None:
    """Afterwards: a release once more, or a backup instead, which finds a tracker where there still is one."""

    def arrange() -> None:
        if not world.guest.machine.running:
            world.guest.start()
        world.backup()
        world.writes()
        if not running:
            world.guest.off()

    def settle(number: int) -> None:
        if running:
            # Not restarted before the recovery: whether a pivot took place can be told only while that QEMU runs.
            # Without it the overlay is kept, which is right, but would be in the way of the next point.
            world.write()
        elif number % 4 > 1:
            world.guest.start()
            world.write()
        if number % 2:
            world.local.good("release", world.guest.uuid)
            world.assert_nothing_left(layers=0)
            assert world.guest.machine.xml(inactive=True) == world.definition
        tracked = world.tracked()
        answer = world.backup()
        assert answer.warnings == []
        modes = {target: how[1] for target, how in answer.how().items()}
        assert modes == {target: "delta" if target in tracked else "compare" for target in modes}
        if world.guest.machine.running:
            world.assert_nothing_left()
        world.assert_right(answer.run)
        world.guest.off()
        world.assert_disks_hold()
        if number % 8 == 7:
            world.prune()

    walk(
        "a release" if running else "a release of a VM that is shut off",
        world,
        arrange,
        lambda: ("release", world.guest.uuid),
        settle,
    )


def test_a_restored_vm(world: World) -> None:
    """The same command again makes the VM; or it is all there already."""
    name, into = f"{world.guest.machine.name}-again", world.bed.directory / "restored"
    into.mkdir()
    world.writes()
    run = world.backup().run
    command = ("restore", run, "--vm", world.guest.uuid, "--as", name, "--into", str(into), "--format", "raw")

    def settle(number: int) -> None:
        again: Answer = world.local(*command)
        assert again.code == 0 or again.error == "target_exists", again
        domain = world.guest.machine.connection.lookupByName(name)
        files = {path.name: path for path in into.iterdir()}
        assert set(files) == {f"{name}-vda.raw", f"{name}-vdb.raw"}, "exactly its disks"
        assert {path.stat().st_nlink for path in files.values()} == {1}
        found = {path.stem.rpartition("-")[2]: path.read_bytes() for path in files.values()}
        assert found == world.truth[run]
        domain.undefine()
        for path in files.values():
            path.unlink()

    walk("a restored VM", world, lambda: None, lambda: command, settle)


def test_a_prune(world: World) -> None:
    """At any moment every point that is still listed is whole; once more, and only what was wanted is left."""

    def arrange() -> None:
        while len(world.truth) < 3:
            world.writes()
            world.backup()

    def settle(number: int) -> None:
        listed = world.local.runs()
        newest = max(world.truth, key=list(world.truth).index)
        assert newest in listed and set(listed) <= set(world.truth)
        world.truth = {run: truth for run, truth in world.truth.items() if run in listed}
        for run in listed:
            assert world.restored(run) == world.truth[run]
        world.assert_vault_whole()
        world.prune()
        world.assert_right(newest)
        touched = {target: set(clusters) for target, clusters in world.touched.items()}
        answer = world.backup()
        world.assert_increment(answer, touched)
        world.assert_right(answer.run)

    walk("a prune", world, arrange, lambda: ("prune", "--keep-last", "1"), settle)
