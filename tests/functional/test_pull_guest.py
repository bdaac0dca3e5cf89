"""Real guests and the engine `pull`: what they said is on disk is in every restore point, and they are never harmed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raksha.errors import ScratchFull
from raksha.states import Consistency, Quiesce, ReadMode
from raksha.virt.capture import CaptureRequest, Parent
from raksha.virt.group import freeze_together
from tests.bed import Bed, check_records
from tests.bed.machine import Machine
from tests.functional.overlay_kit import MIB
from tests.functional.pull_kit import PullKit, bitmaps, pull_kit_on

pytestmark = pytest.mark.bed


@pytest.fixture
def kit(bed: Bed) -> Iterator[PullKit]:
    with pull_kit_on(bed) as made:
        yield made


def request(vm: Machine, kit: PullKit, parent: str | None = None, quiesce: Quiesce = Quiesce.NEVER) -> CaptureRequest:
    images = kit.points.images.get(parent or "", {})
    since = {target: Parent(parent or "", len(image)) for target, image in images.items()}
    return CaptureRequest(vm.uuid, os.urandom(8).hex(), "job", since=since, quiesce=quiesce)


def check_point(kit: PullKit, bed: Bed, run: str, acknowledged: int) -> None:
    files = []
    for target, image in kit.points.images[run].items():
        files.append(bed.directory / f"{run}-{target}.raw")
        files[-1].write_bytes(image)
    check_records(files, acknowledged)


def test_records_under_load(kit: PullKit, bed: Bed) -> None:
    """A qcow2 on a backing image and a raw disk stop at the same record, in the full and in every increment."""
    bed.qcow2("base", 8 * MIB)
    vm = bed.machine([bed.qcow2("a", None, backing="base.qcow2"), bed.raw("b", 8 * MIB)], pause=0)
    vm.boot()
    parent = None
    for number in range(5):
        vm.wait_for_records(40)
        order = request(vm, kit, parent)
        prepared = kit.engine.prepare(order)
        acknowledged = vm.last_ack()
        capture = freeze_together([prepared], 10.0).captures[0]
        kit.points.store(order.backupjobrun, capture)
        capture.check()
        check_point(kit, bed, order.backupjobrun, acknowledged)
        if number == 2:
            capture.abandon()  # a failed run in the middle
            continue
        assert capture.finish() == []
        disk = kit.disk(order.backupjobrun)
        assert (disk.mode, disk.reason) == ((ReadMode.DELTA, None) if parent else (ReadMode.FULL, disk.reason))
        kit.assert_nothing_left(vm)
        parent = order.backupjobrun
    vm.wait_for_records(20)
    since = vm.mark()
    vm.shut_down()
    vm.boot()
    assert vm.verdict(since)
    order = request(vm, kit, parent)
    capture = freeze_together([kit.engine.prepare(order)], 10.0).captures[0]
    kit.points.store(order.backupjobrun, capture)
    assert capture.finish() == [] and kit.disk(order.backupjobrun).mode is ReadMode.DELTA
    check_point(kit, bed, order.backupjobrun, acknowledged)
    kit.engine.release(vm.uuid)
    assert bitmaps(vm) == {}
    vm.wait_for_records(20)
    vm.power_off()
    check_records([(bed.directory / "a.qcow2", "qcow2"), bed.directory / "b.raw"], vm.last_ack())


@pytest.mark.slow
def test_guest_shuts_itself_down(kit: PullKit, bed: Bed) -> None:
    vm = bed.machine([bed.qcow2("a", 8 * MIB)], pause=0)
    vm.boot()
    vm.wait_for_records(20)
    capture = freeze_together([kit.engine.prepare(request(vm, kit))], 10.0).captures[0]
    vm.shut_down()
    with pytest.raises(Exception, match="shut off, crashed"):
        capture.check()
    capture.abandon()
    kit.assert_nothing_left(vm)
    check_records([(bed.directory / "a.qcow2", "qcow2")], vm.last_ack())
    order = request(vm, kit)
    capture = freeze_together([kit.engine.prepare(order)], 10.0).captures[0]
    kit.points.store(order.backupjobrun, capture)
    capture.check()
    capture.finish()
    check_point(kit, bed, order.backupjobrun, vm.last_ack())


@pytest.mark.slow
def test_quiesced(kit: PullKit, bed: Bed) -> None:
    """File systems are frozen while the backup begins, and thawed soon after; two VMs form one group."""
    vms = [bed.machine([bed.qcow2(name, 24 * MIB)], name=name, mode="fs") for name in ("one", "two")]
    for vm in vms:
        vm.boot()
    for vm in vms:
        vm.wait_for_records(5)
    orders = [request(vm, kit, quiesce=Quiesce.REQUIRE) for vm in vms]
    marks = [vm.mark() for vm in vms]
    group = freeze_together([kit.engine.prepare(order) for order in orders], 10.0)
    assert group.skew_seconds < 1.0
    for vm, mark, order, capture in zip(vms, marks, orders, group.captures, strict=True):
        assert capture.consistency is Consistency.QUIESCED
        assert capture.frozen_seconds is not None and capture.frozen_seconds < 5
        vm.wait_for("HOOK freeze", since=mark)
        vm.wait_for("HOOK thaw", since=mark)
        vm.wait_for_records(3)
        kit.points.store(order.backupjobrun, capture)
        capture.check()
        assert capture.finish() == []
        image = bed.directory / "frozen.raw"
        image.write_bytes(kit.points.images[order.backupjobrun]["vda"])
        # A frozen file system needs no replay of its journal.
        state = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
        assert "needs_recovery" not in state
        image.unlink()
    for vm in vms:
        kit.assert_nothing_left(vm)


@contextmanager
def small_file_system(path: Path, mib: int) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0711", "raksha-test", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("watched", [True, False])
def test_scratch_files_fill_up(bed: Bed, watched: bool) -> None:
    """The backup is given up, in time or not: the guest goes on, and no write that it was told of is lost."""
    # 64 KiB are put aside for each record of 4 KiB that hits another place; a disk of 32 MiB is hit everywhere.
    reserve = 4 * MIB if watched else 16 * 1024
    with (
        small_file_system(bed.directory / "small", 6) as small,
        pull_kit_on(bed, scratch_dir=small, overlay_reserve_min=reserve, overlay_reserve=0.0) as kit,
    ):
        vm = bed.machine([bed.qcow2("a", 32 * MIB)], pause=0)
        vm.boot()
        vm.wait_for_records(300)
        capture = freeze_together([kit.engine.prepare(request(vm, kit))], 10.0).captures[0]
        deadline = time.monotonic() + 60
        while vm.domain.jobInfo()[0]:
            assert time.monotonic() < deadline, "the backup goes on"
            time.sleep(0.05)
        with pytest.raises(ScratchFull):
            capture.check()
        capture.abandon()
        vm.wait_for_records(50)
        kit.assert_nothing_left(vm)
        assert list(small.iterdir()) == []
        vm.power_off()
        check_records([(bed.directory / "a.qcow2", "qcow2")], vm.last_ack())
