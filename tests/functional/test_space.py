"""An overlay that finds no space: the guest goes on, and nothing that it was told is written is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from raksha.errors import OverlaySpaceLow, RakshaError
from raksha.states import ReadMode, Reason
from raksha.virt.libvirt.recover import reconcile
from tests.bed import Bed, check_records
from tests.bed.disks import Disk, make_raw
from tests.bed.machine import Machine
from tests.functional.local_kit import Local, small_file_system
from tests.functional.overlay_kit import MIB, Guest, kit_on
from tests.functional.test_overlay_guest import request

pytestmark = [pytest.mark.bed, pytest.mark.system]


@pytest.fixture
def small(bed: Bed) -> Path:
    """A file system of 12 MiB; it goes after the guests that use it."""
    return bed.host.give(bed._stack.enter_context(small_file_system(bed.directory / "small", 12 * MIB)))


@contextmanager
def oracle(bed: Bed, pause: int = 0) -> Iterator[Machine]:
    """A guest that writes as fast as it can to disks that do have space, and is right about all of it in the end."""
    vm = bed.machine([bed.raw("a", 32 * MIB), bed.qcow2("b", 32 * MIB)], pause=pause)
    vm.boot()
    vm.wait_for_records(20)
    yield vm
    vm.wait_for_records(20)
    assert ".raksha-" not in vm.xml() and ".raksha-" not in vm.xml(inactive=True)
    vm.power_off()
    check_records([bed.directory / "a.raw", (bed.directory / "b.qcow2", "qcow2")], vm.last_ack())


#: two overlays begin with enough, and the run ends when less than 2 MiB are left
LOW = {"overlay_reserve_min": 5 * MIB, "overlay_watermark": 2 * MIB}


def stopped(vm: Machine) -> bool:
    return vm.domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]


def wait_until(true: Callable[[], object], what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def given_up(check: Callable[[], None]) -> bool:
    try:
        check()
    except OverlaySpaceLow:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0, 20000], ids=["fast guest", "slow guest"])
def test_overlay_fills_up_during_a_run(bed: Bed, small: Path, pause: int) -> None:
    """The run ends early and says so; a guest that is not too fast never notices."""
    with (
        oracle(bed, pause) as vm,
        kit_on(bed, overlay_dir=small, **LOW) as kit,
    ):
        order = request(vm, kit)
        capture = kit.capture(order)
        reader = capture.disks[0].open()
        reader.pread(0, 4096)
        wait_until(lambda: given_up(capture.check), "nobody gave the run up")
        with pytest.raises(OverlaySpaceLow, match="merged back") as raised:
            while True:
                reader.pread(0, 4096)
        assert str(small) in str(raised.value)
        if pause:
            assert "had stopped" not in str(raised.value)
        reader.close()
        capture.abandon()
        assert list(small.iterdir()) == [] and kit.journal.open_intents() == []
        assert vm.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        vm.wait_for_records(20)
        assert not stopped(vm)


def test_next_run_compares(bed: Bed, small: Path) -> None:
    with kit_on(bed, overlay_dir=small, **LOW) as kit:
        guest = Guest(bed, [bed.raw("a", 16 * MIB)])
        guest.model["vda"] = bytearray(16 * MIB)
        guest.start()
        first = kit.run(guest)
        guest.write("vda", 0, 1 * MIB, 0x51)
        capture = kit.capture(kit.request(guest.uuid, first))
        guest.write("vda", 4 * MIB, 9 * MIB, 0x52)
        wait_until(lambda: given_up(capture.check), "nobody gave the run up")
        capture.abandon()
        assert len(guest.sources()["vda"]) == 1
        run = kit.run(guest, first)
        assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.COMPARE, Reason.NO_TRACKER)
        assert kit.disk(kit.run(guest, run)).mode is ReadMode.DELTA


@pytest.mark.slow
def test_overlay_fills_up_between_runs(bed: Bed, small: Path) -> None:
    """Nobody is there to watch: the guest waits, and the next command cures it."""
    with oracle(bed) as vm, kit_on(bed, overlay_dir=small) as kit:
        order = request(vm, kit)
        capture = kit.capture(order)
        assert capture.finish() == []
        wait_until(lambda: stopped(vm), "the overlay did not fill up")
        acknowledged = vm.last_ack()
        local = Local(bed.uri, kit.settings.state_dir, "file:///nowhere")
        vm_told = local.good("recover", vm.uuid).json["vms"][0]
        assert any("runs again" in note for note in vm_told["notes"])
        vm.wait_for_records(20)
        assert vm.last_ack() >= acknowledged + 20 and list(small.iterdir()) == []


@pytest.mark.slow
def test_disk_of_the_owner_fills_up(bed: Bed, small: Path) -> None:
    """A guest that stopped for its own disk's sake is none of our business."""
    path = small / "own.raw"
    make_raw(path, 32 * MIB)
    vm = bed.machine([Disk(bed.host.give(path), "raw")], pause=0)
    vm.boot()
    with kit_on(bed, overlay_dir=bed.directory) as kit:
        kit.capture(request(vm, kit)).abandon()
        kit.engine.release(vm.uuid)
        wait_until(lambda: stopped(vm), "the disk did not fill up")
        reconcile(kit.engine.connection.guest(vm.uuid), kit.journal, kit.settings)
        assert stopped(vm)


@pytest.mark.slow
def test_no_space_to_merge_either(bed: Bed, small: Path) -> None:
    """Overlay and disk share the full file system: the guest waits with all it wrote until there is space."""
    path = small / "own.raw"
    make_raw(path, 16 * MIB)
    vm = bed.machine([Disk(bed.host.give(path), "raw")], pause=0)
    vm.boot()
    vm.wait_for_records(5)
    vm.domain.suspend()
    ballast = small / "ballast"
    room = os.statvfs(small)
    ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - 3 * MIB))
    with kit_on(bed) as kit:
        assert kit.capture(request(vm, kit)).finish() == []
        vm.domain.resume()
        wait_until(lambda: stopped(vm), "the overlay did not fill up")
        acknowledged = vm.last_ack()
        with pytest.raises(RakshaError):
            reconcile(kit.engine.connection.guest(vm.uuid), kit.journal, kit.settings)
        assert stopped(vm) and ".raksha-" in vm.xml() and ".raksha-" in vm.xml(inactive=True)
        ballast.unlink()
        reconcile(kit.engine.connection.guest(vm.uuid), kit.journal, kit.settings)
        assert vm.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING and ".raksha-" not in vm.xml()
        vm.wait_for_records(5)
        vm.power_off()
        assert vm.last_ack() > acknowledged
        check_records([path], vm.last_ack())


def test_a_watermark_above_the_reserve_ends_no_run(bed: Bed) -> None:
    with kit_on(bed, overlay_watermark=1 << 50) as kit:
        guest = Guest(bed, [bed.raw("a", 4 * MIB)])
        guest.start()
        kit.run(guest)


@pytest.mark.slow
def test_backup_command_says_so(bed: Bed, small: Path, tmp_path: Path) -> None:
    """`raksha local backup` ends with an error of its own, and nothing of the run is visible."""
    config = tmp_path / "raksha.conf"
    config.write_text(f"[host]\noverlay_reserve_min = {5 * MIB}\noverlay_watermark = {2 * MIB}\ntrash_hours = 0\n")
    local = Local(bed.uri, tmp_path / "state", f"file://{tmp_path}/vault")
    with oracle(bed) as vm:
        vm.wait_for_records(50)
        answer = local("backup", vm.uuid, "--overlay-dir", small, "--config", config, "--workers", "1")
        if answer.code == 0:  # it was quicker than the guest; the overlay that it left fills up now
            wait_until(lambda: stopped(vm), "the overlay did not fill up")
            local.good("recover")
        else:
            assert answer.error == "overlay_space_low" and answer.code == 1
            assert local.refused("vault_not_found", "list") if not local.folder.exists() else local.runs() == []
        assert list(small.iterdir()) == []
