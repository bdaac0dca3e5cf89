"""`raksha local` on real guests, from the first backup to the restored disks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.bed import Bed, check_records
from tests.functional.local_kit import Local

pytestmark = pytest.mark.bed


@pytest.fixture
def local(bed: Bed, tmp_path: Path) -> Local:
    return Local(bed.uri, tmp_path / "state", f"file://{tmp_path}/vault")


def restored(local: Local, run: str, into: Path, vm: str) -> list[Path]:
    """Both disks of a point, as raw files."""
    into.mkdir(exist_ok=True)
    paths = []
    for disk in ("vda", "vdb"):
        paths.append(into / f"{run}-{disk}.raw")
        local.good("restore", run, "--vm", vm, "--disk", disk, "--to", paths[-1], "--format", "raw")
    return paths


@pytest.mark.slow
def test_every_point_of_a_busy_guest_holds_what_was_acknowledged(bed: Bed, local: Local, tmp_path: Path) -> None:
    bed.qcow2("base")
    vm = bed.machine([bed.qcow2("a", None, backing="base.qcow2"), bed.raw("b")], pause=0)
    vm.boot()
    points = []
    for number in range(3):
        acknowledged = vm.wait_for_records(40)
        answer = local.good("backup", vm.name, "--quiesce", "never")
        kinds = {disk["kind"] for disk in answer.disks().values()}
        assert kinds == {"full" if number == 0 else "incremental"}
        assert answer.json["warnings"] == []
        points.append((answer.run, acknowledged))
    assert [run["backupjobrun"] for run in local.good("list").json["runs"]] == [run for run, _ in points]
    assert local.good("verify", "--data").json["findings"] == []
    for run, acknowledged in points:
        check_records([(path, "raw") for path in restored(local, run, tmp_path / "out", vm.name)], acknowledged)
    vm.wait_for_records(5)


def test_a_restored_vm_boots_and_finds_its_records(bed: Bed, local: Local, tmp_path: Path) -> None:
    bed.qcow2("base")
    vm = bed.machine([bed.qcow2("a", None, backing="base.qcow2"), bed.raw("b")], pause=0)
    vm.boot()
    vm.wait_for_records(30)
    local.good("backup", vm.name)
    acknowledged = vm.wait_for_records(30)
    local.good("backup", vm.name)
    into = bed.directory / "images"
    into.mkdir()
    name = f"{vm.name}-again"
    made = local.good("restore", "latest", "--vm", vm.name, "--as", name, "--into", into).json
    assert (made["vm"], {disk["disk"] for disk in made["disks"]}) == (name, {"vda", "vdb"})
    check_records([(Path(disk["target"]), Path(disk["target"]).suffix[1:]) for disk in made["disks"]], acknowledged)
    for path in (into, *into.iterdir()):
        bed.host.give(path)
    again = vm.connection.lookupByName(name)
    try:
        again.create()
        console = Path(next(text.split(" goes to ")[1] for text in made["warnings"] if text.startswith("serial")))
        deadline = time.monotonic() + 60
        while "VERDICT" not in (console.read_text(errors="replace") if console.exists() else ""):
            assert time.monotonic() < deadline, "the restored VM does not boot"
            time.sleep(0.2)
        assert "VERDICT good" in console.read_text(errors="replace")
    finally:
        if again.isActive():
            again.destroy()
        again.undefine()


@pytest.mark.slow
def test_the_engine_may_change_from_run_to_run_without_losing_the_chain(bed: Bed, tmp_path: Path) -> None:
    local = Local(bed.uri, bed.directory / "state", f"file://{tmp_path}/vault")  # QEMU must reach its scratch files
    vm = bed.machine([bed.qcow2("a"), bed.raw("b")], pause=0)
    vm.boot()
    points = []
    for engine in ("pull", "pull", "overlay", "overlay", "pull", "pull"):
        acknowledged = vm.wait_for_records(20)
        answer = local.good("backup", vm.name, "--engine", engine, "--quiesce", "never")
        assert answer.json["run"]["vms"][0]["engine"] == engine
        points.append((answer.run, acknowledged, {name: disk["mode"] for name, disk in answer.disks().items()}))
    assert [modes["vda"] for _, _, modes in points] == ["full", "delta", "compare", "delta", "compare", "delta"]
    assert [modes["vdb"] for _, _, modes in points] == ["full", "compare", "compare", "delta", "compare", "compare"]
    for run, acknowledged, _ in points:
        check_records([(path, "raw") for path in restored(local, run, tmp_path / "out", vm.name)], acknowledged)
    released = local.good("release", vm.name).json["released"][vm.name]
    assert released
    assert not [path.name for path in bed.directory.iterdir() if ".raksha" in path.name]
    vm.wait_for_records(5)
