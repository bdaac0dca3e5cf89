"""The fence: nothing starts or writes below an overlay, we ourselves pass, and no flag is left behind."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from raksha.states import ReadMode
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.own_source import own_sources
from raksha.virt.libvirt.recover import reconcile
from tests.bed import Bed
from tests.functional.local_kit import Local
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on

pytestmark = pytest.mark.system


def immutable(path: Path) -> bool:
    shown = subprocess.run(["lsattr", "-d", path], capture_output=True, text=True, check=True)
    return "i" in shown.stdout.split()[0]


@pytest.fixture(autouse=True)
def _flags_are_gone(bed: Bed) -> Iterator[None]:
    """A test that fails must not leave files that nobody can delete."""
    yield
    for path in bed.directory.glob("*.*"):
        if path.is_file():
            subprocess.run(["chattr", "-i", path], check=False, capture_output=True)


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed, fence=True) as made:
        yield made


@pytest.fixture
def guest(bed: Bed) -> Guest:
    """vda raw, vdb qcow2 on an image that others may use as well."""
    bed.qcow2("base", 4 * MIB)
    made = Guest(bed, [bed.raw("a", 4 * MIB), bed.qcow2("b", None, backing="base.qcow2")])
    made.start()
    made.write("vda", 0, 64 * KIB, 0x11)
    return made


def fenced(bed: Bed) -> dict[str, bool]:
    return {name: immutable(bed.directory / name) for name in ("a.raw", "b.qcow2", "base.qcow2")}


UP = {"a.raw": True, "b.qcow2": True, "base.qcow2": False}
DOWN = dict.fromkeys(UP, False)


def test_runs_and_release(kit: Kit, guest: Guest, bed: Bed) -> None:
    """Up between runs, down for our own merges; a shared image below is never fenced."""
    first = kit.run(guest)
    assert fenced(bed) == UP
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    second = kit.run(guest, first)
    assert kit.warnings == [] and fenced(bed) == UP and len(guest.sources()["vda"]) == 2
    guest.off()
    guest.start()
    guest.write("vdb", 1 * MIB, 64 * KIB, 0x52)
    third = kit.run(guest, second)
    assert kit.disk(third).mode is ReadMode.DELTA and kit.warnings == []
    kit.engine.release(guest.uuid)
    assert fenced(bed) == DOWN and kit.journal.fences(guest.uuid) == []
    guest.off()
    assert (bed.directory / "a.raw").read_bytes() == bytes(guest.model["vda"])


def test_release_of_a_vm_that_is_off(kit: Kit, guest: Guest, bed: Bed) -> None:
    kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    guest.off()
    kit.engine.release(guest.uuid)
    assert fenced(bed) == DOWN
    assert (bed.directory / "a.raw").read_bytes() == bytes(guest.model["vda"])


def test_start_below_fails_loudly(kit: Kit, guest: Guest, bed: Bed) -> None:
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    guest.off()
    own = str(bed.directory / "a.raw")
    guest.machine.connection.defineXML(own_sources(guest.machine.xml(True), {"vda": Layer(own, "file", "raw")}))
    with pytest.raises(libvirt.libvirtError, match=r"not permitted|Permission|denied"):
        guest.start()
    reconcile(kit.engine.connection.guest(guest.uuid), kit.journal, kit.settings)
    guest.start()
    run = kit.run(guest, first)
    assert kit.disk(run).mode is ReadMode.DELTA, "nothing was lost"
    kit.engine.release(guest.uuid)


def test_flag_of_the_owner_stays(kit: Kit, bed: Bed) -> None:
    """A file that was immutable before (a read-only disk's) is not ours to fence or to free."""
    disk = bed.raw("a", 4 * MIB)
    guest = Guest(bed, [disk])
    guest.start()
    prepared = kit.engine.prepare(kit.request(guest.uuid))
    prepared.snapshot()
    subprocess.run(["chattr", "+i", disk.path], check=True)
    prepared.capture().abandon()
    assert kit.journal.fences(guest.uuid) == []
    reconcile(kit.engine.connection.guest(guest.uuid), kit.journal, kit.settings)
    assert immutable(disk.path)
    subprocess.run(["chattr", "-i", disk.path], check=True)
    kit.engine.release(guest.uuid)


def test_stale_flags_are_lifted(kit: Kit, guest: Guest, bed: Bed) -> None:
    """The overlay was merged by somebody else, the setting was taken back, the VM is gone: the flag goes."""
    kit.run(guest)
    with kit_on(bed, fence=False) as off:
        reconcile(off.engine.connection.guest(guest.uuid), off.journal, off.settings)
        assert fenced(bed) == DOWN
    reconcile(kit.engine.connection.guest(guest.uuid), kit.journal, kit.settings)
    assert fenced(bed) == UP
    guest.machine.remove()
    Local(bed.uri, kit.settings.state_dir, "file:///nowhere")("recover")
    assert fenced(bed) == DOWN


def test_killed_between_the_note_and_the_flag(kit: Kit, guest: Guest, bed: Bed) -> None:
    from raksha.journal import Fenced

    path = bed.directory / "a.raw"
    kit.journal.add_fence(Fenced(str(path), guest.uuid, "vda", path.stat().st_ino))
    reconcile(kit.engine.connection.guest(guest.uuid), kit.journal, kit.settings)
    assert kit.journal.fences(guest.uuid) == [] and not immutable(path)
    kit.journal.add_fence(Fenced(str(path), guest.uuid, "vda", path.stat().st_ino))
    subprocess.run(["chattr", "+i", path], check=True)
    reconcile(kit.engine.connection.guest(guest.uuid), kit.journal, kit.settings)
    assert kit.journal.fences(guest.uuid) == [] and not immutable(path)


def test_system_guests_start_and_stop_over_a_fenced_file(system_bed: Bed) -> None:
    """libvirt hands files to QEMU's user and back; it cannot with one that is immutable."""
    with kit_on(system_bed, fence=True) as kit:
        guest = Guest(system_bed, [system_bed.raw("a", 4 * MIB)])
        path = system_bed.directory / "a.raw"
        owner = path.stat().st_uid
        guest.start()
        try:
            first = kit.run(guest)
            assert immutable(path)
            for _ in range(2):
                guest.off()
                guest.start()
            guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
            run = kit.run(guest, first)
            assert kit.disk(run).mode is ReadMode.DELTA and kit.warnings == []
            kit.engine.release(guest.uuid)
            assert not immutable(path)
            guest.off()
            assert path.stat().st_uid == owner == os.geteuid() and stat.S_ISREG(path.stat().st_mode)
        finally:
            subprocess.run(["chattr", "-i", path], check=False)
