"""kill -9 between freeze and thaw: the points that only a guest with an agent brings a backup to.

A guest with file systems writes numbered records into a file. However early or late the process dies, the guest is
thawed within seconds, nothing that it acknowledged is lost, and the next backup is quiesced and holds it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from raksha.journal import Journal
from tests.bed import Bed, check_records
from tests.bed.machine import Machine
from tests.functional.crash_kit import KILLED, Point, sample, wanted_sample
from tests.functional.crash_names import must_pass
from tests.functional.forked import ForkedLocal
from tests.functional.local_kit import Answer
from tests.functional.overlay_kit import MIB
from tests.functional.pull_kit import bitmaps

pytestmark = [pytest.mark.bed, pytest.mark.slow, pytest.mark.timeout(3600)]

#: what freezes and thaws a guest
FREEZING = must_pass("a freeze", "overlay")
#: seconds in which the watchdog must have thawed a guest whose backup died
THAWED = 5.0
#: how many points of each walk the ordinary test run takes
SAMPLE = 4


class Frozen:
    """A VM with a guest agent, its vault and one engine."""

    def __init__(self, bed: Bed, place: Path, engine: str) -> None:
        self.bed, self.place, self.engine = bed, place, engine
        self.vm: Machine = bed.machine([bed.qcow2("a", 24 * MIB)], mode="fs")
        self.local = ForkedLocal(bed.uri, bed.directory / "state", f"file://{place}/vault")
        self.command = ("backup", self.vm.uuid, "--job", "daily", "--engine", engine, "--quiesce", "require")

    def backup(self) -> Answer:
        """A quiesced one, which holds everything that the guest had said was on its disk."""
        acknowledged = self.vm.last_ack()
        answer = self.local.good(*self.command)
        (vm,) = answer.json["run"]["vms"]
        assert vm["consistency"] == "quiesced"
        assert answer.warnings == []
        self.thawed()
        self.assert_holds(answer.run, acknowledged)
        return answer

    def traced(self) -> list[Point]:
        """The passings of freeze points, in their order."""
        trace = self.place / "trace"
        answer = self.local.during(lambda _: None, {"RAKSHA_CRASH_TRACE": str(trace)}, *self.command, "--json")
        assert answer.code == 0, answer
        points, passed = [], dict[str, int]()
        for name in trace.read_text().split():
            passed[name] = passed.get(name, 0) + 1
            if name.removesuffix(".done") in FREEZING:
                points.append(Point(name, passed[name]))
        return points

    def killed_at(self, point: Point) -> None:
        mark = self.vm.mark()
        answer = self.local.during(lambda _: None, {"RAKSHA_CRASH_AT": str(point)}, *self.command, "--json")
        assert answer.code == KILLED, answer
        if point.name in ("libvirt.fsFreeze.done", "libvirt.fsThaw"):
            self.vm.wait_for("HOOK freeze", since=mark)

    def thawed(self) -> None:
        """It is, or will be in a few seconds; and it writes on."""
        deadline = time.monotonic() + THAWED
        while self._status() != "thawed":
            assert time.monotonic() < deadline, "the guest stayed frozen"
            time.sleep(0.05)
        self.vm.wait_for_records(3)

    def _status(self) -> str:
        try:
            return str(self.vm.agent("guest-fsfreeze-status"))
        except libvirt.libvirtError:  # another command of the agent is under way
            return "unknown"

    def assert_holds(self, run: str, acknowledged: int) -> None:
        """The point's file system is clean, and its file has every record."""
        into = self.place / run
        into.mkdir()
        made = self.local.good("restore", run, "--vm", self.vm.uuid, "--into", into, "--format", "raw").json
        (image,) = (Path(disk["target"]) for disk in made["disks"])
        state = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
        assert "needs_recovery" not in state
        records = into / "records"
        subprocess.run(["debugfs", "-R", f"dump /records {records}", image], check=True, capture_output=True)
        check_records([records], acknowledged)
        image.unlink()
        records.unlink()

    def assert_nothing_left(self) -> None:
        files = [path for path in self.bed.directory.iterdir() if ".raksha-" in path.name and path.is_file()]
        assert len(files) == (1 if self.engine == "overlay" else 0), files
        assert self.vm.domain.listAllCheckpoints() == []
        assert self.vm.domain.jobInfo()[0] == 0 and not self.vm.domain.blockJobInfo("vda")
        recording = bitmaps(self.vm)
        assert {name: len(found) for name, found in recording.items()} == ({"a.qcow2": 1} if not files else {})
        journal = Journal(self.local.state)
        try:
            assert journal.open_intents() == []
        finally:
            journal.close()


@pytest.fixture
def frozen(bed: Bed, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Frozen]:
    made = Frozen(bed, tmp_path, request.param)
    try:
        yield made
        made.local.good("release", made.vm.uuid)
    finally:
        made.local.forker.close()


@pytest.mark.parametrize("frozen", ["overlay", "pull"], indirect=True)
def test_every_point_of_a_freeze(frozen: Frozen) -> None:
    frozen.vm.boot()
    frozen.vm.wait_for_records(5)
    frozen.backup()
    points = frozen.traced()
    assert {each.name.removesuffix(".done") for each in points} == FREEZING
    chosen = sample(points, wanted_sample(SAMPLE))
    for point in chosen:
        try:
            frozen.vm.wait_for_records(3)
            frozen.killed_at(point)
            frozen.thawed()
            answer = frozen.backup()
            (disk,) = answer.disks().values()
            assert disk["mode"] == "delta", disk
            frozen.assert_nothing_left()
        except BaseException as error:
            error.add_note(f"killed at {point}")
            raise
    since = frozen.vm.mark()
    acknowledged = frozen.vm.last_ack()
    frozen.vm.power_off()
    frozen.vm.boot()
    assert frozen.vm.verdict(since), "its records are not what it had written"
    assert frozen.vm.wait_for_records(1) > acknowledged
