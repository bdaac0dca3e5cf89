"""`raksha local` on real guests, from the first backup to the restored disks."""

from __future__ import annotations

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
