"""A clock that is moved by a day, forwards and back, between runs and within one."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import tests.bed as bed_package
from tests.bed import Bed
from tests.functional.local_kit import Local, Story, two_disks
from tests.functional.overlay_kit import KIB

pytestmark = pytest.mark.bed

SOURCE = Path(bed_package.__file__).with_name("clock.c")
INCREMENT = ("incremental", "delta", None)
DAY = 86400


class Clock:
    """What a command takes for the time of day."""

    def __init__(self, place: Path) -> None:
        self._library = place / "clock.so"
        self._shift = place / "clock"
        subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", self._library, SOURCE, "-ldl"], check=True)

    def on(self, local: Local) -> Local:
        """The same host, its clock moved."""
        moved = {"LD_PRELOAD": str(self._library), "CLOCK_SHIFT": str(self._shift)}
        return replace(local, environment={**local.environment, **moved})

    def move(self, days: int) -> None:
        fresh = self._shift.with_suffix(".new")
        fresh.write_text(str(days * DAY))
        fresh.replace(self._shift)


@pytest.fixture
def clock(bed: Bed) -> Clock:
    return Clock(bed.directory)


@pytest.fixture
def story(bed: Bed, tmp_path: Path) -> Story:
    # where QEMU, another user, may make its scratch files
    local = Local(bed.uri, bed.directory / "state", f"file://{tmp_path}/vault")
    return Story(local, two_disks(bed), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["overlay", "pull"])
def test_a_clock_that_jumps(bed: Bed, story: Story, clock: Clock, engine: str) -> None:
    local, runs = story.local, []
    for number, days in enumerate([0, 1, -1, 0]):
        clock.move(days)
        story.guest.write("vda", number * 128 * KIB, 64 * KIB, 0x41 + number)
        point = story.backup("--engine", engine, local=clock.on(local))
        assert point.warnings == []
        assert point.how()["vda"] == (INCREMENT if number else ("full", "full", "first_run"))
        runs.append(point.run)
    told = [run["taken_at"] for run in local.good("list").json["runs"]]
    assert told[1] > told[3] > told[0] > told[2], "the clock was not moved"
    assert local.runs() == runs, "points are in the order in which they were made, whatever the clock said"
    assert local.good("show", "latest").json["run"]["backupjobrun"] == runs[-1]
    story.assert_all_hold()
    clock.move(-1)
    gone = clock.on(local).good("prune", "--keep-last", 2).json["deleted"]
    assert [run["backupjobrun"] for run in gone] == runs[:2]
    story.forget(*runs[:2])
    story.assert_all_hold()
    assert local.good("recover").json["vms"][0]["trouble"] is None
    clock.move(1)
    clock.on(local).good("release", story.guest.uuid)
    assert not [*bed.directory.glob("*.raksha-*")], "nothing of ours is left beside the disks"


def test_a_clock_that_jumps_within_a_run(story: Story, clock: Clock) -> None:
    """A day to and fro every few moments: times are odd, the point is sound."""
    local = story.local
    story.backup()
    story.guest.write("vda", 256 * KIB, 64 * KIB, 0x55)
    clock.move(0)
    before = story.guest.frozen_model()
    process = clock.on(local).start("backup", story.guest.uuid, "--json")
    shifts = 0
    while True:
        shifts += 1
        clock.move((1, -1)[shifts % 2])
        try:
            process.wait(0.02)
            break
        except subprocess.TimeoutExpired:
            continue
    out, err = process.communicate()
    assert process.returncode == 0 and shifts > 5, (out, err)
    story.truth[local.runs()[-1]] = before
    story.assert_all_hold()
