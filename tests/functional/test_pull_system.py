"""The engine `pull` on `qemu:///system`: block devices, and scratch files and sockets for QEMU's own user."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator

import pytest

from raksha.errors import CaptureFailed
from raksha.states import ReadMode, Reason
from raksha.virt.libvirt.pull_xml import bitmap_name
from tests.bed import Bed
from tests.bed.disks import Disk
from tests.functional.overlay_kit import KIB, MIB, Guest
from tests.functional.pull_kit import PullKit, bitmaps, pull_kit_on

pytestmark = pytest.mark.system


@pytest.fixture
def kit(system_bed: Bed) -> Iterator[PullKit]:
    with pull_kit_on(system_bed) as made:
        yield made


def test_files_and_block_devices(kit: PullKit, system_bed: Bed) -> None:
    """A qcow2 file, a raw device and a qcow2 on a device in one frozen view."""
    device = system_bed.loop("c", 8 * MIB)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", device.path, str(4 * MIB)], check=True)
    disks = [system_bed.qcow2("a", 4 * MIB), system_bed.loop("b", 4 * MIB), Disk(device.path, "qcow2", kind="block")]
    guest = Guest(system_bed, disks)
    definition = guest.machine.xml(inactive=True)
    guest.start()
    run = None
    for number in range(3):
        for target in ("vda", "vdb", "vdc"):
            guest.write(target, number * 128 * KIB, 64 * KIB, 0x51 + number)
        parent, run = run, kit.run(guest, run)
        assert kit.warnings == []
        kit.assert_nothing_left(guest.machine)
        if parent:
            assert [kit.disk(run, target).mode for target in ("vda", "vdc")] == [ReadMode.DELTA] * 2
            assert (kit.disk(run, "vdb").mode, kit.disk(run, "vdb").reason) == (ReadMode.COMPARE, Reason.NO_BITMAP)
    assert guest.machine.xml(inactive=True) == definition
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(run or "")], device.path.name: [bitmap_name(run or "")]}
    guest.off()
    lying = kit.run(guest, run)
    assert [kit.disk(lying, target).mode for target in ("vda", "vdc")] == [ReadMode.DELTA] * 2
    kit.engine.release(guest.uuid)
    for path in (system_bed.directory / "a.qcow2", device.path):
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)
        shown = subprocess.run(["qemu-img", "info", "-f", "qcow2", path], check=True, capture_output=True, text=True)
        assert "bitmaps" not in shown.stdout


def test_scratch_directory_that_qemu_cannot_reach(system_bed: Bed) -> None:
    closed = system_bed.directory / "closed"
    closed.mkdir(mode=0o700)
    with pull_kit_on(system_bed, scratch_dir=closed / "scratch") as kit:
        guest = Guest(system_bed, [system_bed.qcow2("a", 4 * MIB)])
        guest.start()
        with pytest.raises(CaptureFailed, match=r"QEMU cannot get to .*/closed/scratch; set scratch_dir"):
            kit.run(guest)
        kit.assert_nothing_left(guest.machine)
        assert list((closed / "scratch").iterdir()) == [] and bitmaps(guest.machine) == {}


def test_place_is_for_qemu_alone(kit: PullKit, system_bed: Bed) -> None:
    guest = Guest(system_bed, [system_bed.qcow2("a", 4 * MIB)])
    guest.start()
    owner = (system_bed.directory / "a.qcow2").stat().st_uid
    assert owner != os.geteuid(), "libvirt hands disks to QEMU's own user"
    capture = kit.capture(kit.request(guest.uuid))
    place = next((kit.settings.state_dir / "scratch").iterdir())
    assert (place.stat().st_uid, stat.S_IMODE(place.stat().st_mode)) == (owner, 0o700)
    assert {path.name for path in place.iterdir()} == {"nbd", "vda.qcow2"}
    capture.abandon()
    kit.assert_nothing_left(guest.machine)
