"""Real guests: file systems frozen by the agent, several VMs at one instant, and data that VMs have in common."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.bed import Bed, check_records
from tests.bed.bed import MIB
from tests.functional.local_kit import REFUSED, Local, assert_holds, restored
from tests.functional.overlay_kit import KIB, Guest

pytestmark = pytest.mark.bed


@pytest.fixture
def local(bed: Bed, tmp_path: Path) -> Local:
    return Local(bed.uri, tmp_path / "state", f"file://{tmp_path}/vault")


@pytest.mark.slow
def test_quiesced_by_the_guest_agent(bed: Bed, local: Local, tmp_path: Path) -> None:
    """What is restored is a clean file system that needs no journal replay, with every acknowledged record."""
    bed.qcow2("base", 64 * MIB)
    vm = bed.machine([bed.qcow2("a", None, backing="base.qcow2"), bed.raw("b", 64 * MIB)], mode="fs", pause=0)
    vm.boot()
    points = []
    for when, consistency in (("require", "quiesced"), ("auto", "quiesced"), ("never", "crash")):
        acknowledged, since = vm.wait_for_records(20), vm.mark()
        point = local.good("backup", vm.name, "--quiesce", when)
        (summary,) = point.json["run"]["vms"]
        assert summary["consistency"] == consistency
        assert point.warnings == []
        if consistency == "quiesced":
            assert 0 < summary["frozen_seconds"] < 5
            vm.wait_for("HOOK thaw", since)
        else:
            assert summary["frozen_seconds"] is None and "HOOK" not in vm.log(since)
        assert vm.agent("guest-fsfreeze-status") == "thawed"
        points.append((point.run, consistency, acknowledged))
    vm.wait_for_records(5)
    for run, consistency, acknowledged in points:
        paths = restored(local, run, tmp_path / "out", vm.name)
        files = [records_of(path, clean=consistency == "quiesced") for path in paths.values()]
        check_records(files, acknowledged)


def records_of(disk: Path, *, clean: bool) -> Path:
    """The file with the records, out of an ext4 that was frozen, or else whose journal is replayed now."""
    state = subprocess.run(["dumpe2fs", "-h", disk], capture_output=True, text=True, check=True).stdout
    assert ("needs_recovery" not in state) == clean, "a frozen file system needs no recovery"
    if not clean:
        assert subprocess.run(["e2fsck", "-p", disk], check=False, capture_output=True).returncode in (0, 1)
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
    records = disk.with_suffix(".records")
    subprocess.run(["debugfs", "-R", f"dump /records {records}", disk], check=True, capture_output=True)
    return records


@pytest.mark.slow
def test_several_vms_at_one_instant(bed: Bed, local: Local, tmp_path: Path) -> None:
    vms = [bed.machine([bed.raw(f"{name}-a"), bed.raw(f"{name}-b")], name=name, pause=2000) for name in ("one", "two")]
    for vm in vms:
        vm.boot()
    names = [vm.name for vm in vms]
    acknowledged = {vm.name: vm.wait_for_records(10) for vm in vms}
    point = local.good("backup", *names)
    assert point.json["run"]["job_name"] == "+".join(sorted(names))
    assert 0 <= point.json["run"]["skew_seconds"] < 2
    taken = [vm["taken_at"] for vm in point.json["run"]["vms"]]
    assert max(taken) - min(taken) == pytest.approx(point.json["run"]["skew_seconds"], abs=1e-6)
    known = local.runs()

    # one of them cannot be frozen: nothing is visible, and none stays frozen
    vms[1].domain.suspend()
    since = {vm.name: vm.mark() for vm in vms}
    answer = local.refused("quiesce_failed", "backup", *names, "--quiesce", "require", exit_code=REFUSED)
    assert vms[1].name in answer.json["error"]["message"]
    vms[1].domain.resume()
    assert local.runs() == known
    for vm in vms:
        assert vm.agent("guest-fsfreeze-status") == "thawed"
        vm.wait_for_records(5)
        assert "HOOK freeze" not in vm.log(since[vm.name]), "who can not is seen before anybody is frozen"

    after = {vm.name: vm.wait_for_records(5) for vm in vms}
    second = local.good("backup", *names)
    assert {disk["kind"] for disk in second.disks().values()} == {"incremental"}
    assert local.good("verify", "--data").json["findings"] == []
    for run, expected in ((point.run, acknowledged), (second.run, after)):
        for name in names:
            check_records(list(restored(local, run, tmp_path / "out", name).values()), expected[name])


@pytest.mark.slow
def test_the_same_data_is_sent_once(bed: Bed, local: Local, tmp_path: Path) -> None:
    """Two VMs on one base image in one call, the same disk again, and a third VM later."""
    content = random.Random(11).randbytes(12 * MIB)
    base = bed.directory / "base.raw"
    base.write_bytes(content)
    bed.host.give(base)
    a, b, c = (
        Guest(bed, [bed.qcow2(name, None, backing="base.raw", backing_format="raw")], name=name) for name in "abc"
    )
    for number, guest in enumerate((a, b, c)):
        guest.model["vda"] = bytearray(content)
        guest.start()
        guest.write("vda", 11 * MIB, 8 * KIB, 0x21 + number)
    both = local.good("backup", a.uuid, b.uuid)
    sent = [vm["resources"][0]["volume"] for vm in both.json["run"]["vms"]]
    assert min(each["stored"] for each in sent) > 11 * MIB, "both refer to all of it"
    assert max(each["sent"] for each in sent) < 12 * MIB + TABLES
    assert min(each["sent"] for each in sent) < 4 * MIB + TABLES, "only the segment in which they differ went twice"
    later = local.backup(c).disks()["vda"]["volume"]
    assert later["sent"] < 4 * MIB + TABLES, "and so for the next VM"
    again = local.backup(c, "--full").disks()["vda"]
    assert again["kind"] == "full" and again["volume"]["sent"] < TABLES, "the same disk again sends nothing"
    for guest in (a, b, c):
        run = local.good("list", "--vm", guest.uuid).json["runs"][-1]["backupjobrun"]
        assert_holds(local, run, tmp_path / "out", guest, guest.frozen_model())


#: bytes of qcow2 tables and map of a small disk
TABLES = 400 * KIB
