"""Runs of the engine `pull`: what is captured is what the guest had written, bit for bit; chains stay as they are."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import libvirt
import pytest

from raksha.errors import DiskUnsupported, NoSpaceForScratch, VmBusy, VmStarted
from raksha.states import Consistency, ReadMode, Reason
from raksha.types import ExtentKind
from raksha.virt.libvirt.pull_xml import bitmap_name
from tests.bed import Bed
from tests.bed.disks import Disk
from tests.functional.overlay_kit import KIB, MIB, Guest
from tests.functional.pull_kit import PullKit, bitmaps, lying, pull_kit_on


@pytest.fixture
def kit(bed: Bed) -> Iterator[PullKit]:
    with pull_kit_on(bed) as made:
        yield made


@pytest.fixture
def guest(bed: Bed) -> Guest:
    """vda is a qcow2 on a backing image; vdb a raw file."""
    bed.qcow2("base", 4 * MIB)
    made = Guest(bed, [bed.qcow2("a", None, backing="base.qcow2"), bed.raw("b", 4 * MIB)], discard=True)
    made.start()
    made.write("vda", 64 * KIB, 200 * KIB, 0x11)
    made.write("vdb", 0, 100 * KIB, 0x22)
    return made


def how(kit: PullKit, run: str, target: str = "vda") -> tuple[ReadMode, Reason | None]:
    disk = kit.disk(run, target)
    return disk.mode, disk.reason


def test_full_then_increments(kit: PullKit, guest: Guest) -> None:
    definition, chain = guest.machine.xml(inactive=True), guest.sources()
    first = kit.run(guest)
    assert how(kit, first) == (ReadMode.FULL, Reason.FIRST_RUN)
    assert kit.points.sent[first]["vda"] < 512 * KIB, "what was never written is not read"
    parent = first
    for number in range(3):
        guest.write("vda", (512 + number * 100) * KIB, 10 * KIB, 0x30 + number)
        guest.write("vdb", 1 * MIB + number * 64 * KIB, 4 * KIB, 0x40 + number)
        run = kit.run(guest, parent)
        assert how(kit, run) == (ReadMode.DELTA, None) and kit.disk(run).parent == parent
        assert kit.points.sent[run]["vda"] <= 4 * 64 * KIB
        assert how(kit, run, "vdb") == (ReadMode.COMPARE, Reason.NO_BITMAP)
        assert kit.warnings == []
        kit.assert_nothing_left(guest.machine)
        assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(run)]}, "one bitmap per disk and job remains"
        parent = run
    assert (guest.machine.xml(inactive=True), guest.sources()) == (definition, chain), "the chain is never touched"
    assert kit.disk(parent).base_image is not None and kit.disk(parent).facts["format"] == "qcow2"


def test_zeroes_and_discards_are_stored(kit: PullKit, bed: Bed) -> None:
    guest = Guest(bed, [bed.qcow2("a", 4 * MIB)], discard=True)
    guest.start()
    guest.write("vda", 0, 2 * MIB, 0x77)
    first = kit.run(guest)
    guest.zero("vda", 0, 128 * KIB, how="write -z")
    guest.zero("vda", 256 * KIB, 128 * KIB, how="write -z -u")
    guest.zero("vda", 1024 * KIB, 256 * KIB, how="discard")
    second = kit.run(guest, first)
    zeroes = [extent for extent in kit.disk(second).extents_seen if extent.kind is ExtentKind.ZERO]
    assert sum(extent.length for extent in zeroes) == 512 * KIB
    assert kit.run(guest, second)


def test_overwritten_while_it_is_read(kit: PullKit, guest: Guest) -> None:
    """What the guest does to its disks after the view was frozen is not in it, whether it was asked about or not."""
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 512 * KIB, 0x31)
    request = kit.request(guest.uuid, first)
    capture = kit.capture(request)
    expected = guest.frozen_model()
    # QEMU lets no discard through while there is a backup, but zeroes, and they may make holes.
    guest.zero("vda", 1 * MIB, 128 * KIB)
    guest.zero("vdb", 0, 64 * KIB)
    guest.write("vda", 1 * MIB + 128 * KIB, 64 * KIB, 0x32)
    guest.write("vdb", 2 * MIB, 64 * KIB, 0x33)
    kit.points.store(request.backupjobrun, capture)
    capture.check()
    assert kit.points.images[request.backupjobrun] == expected
    assert capture.finish() == []
    assert kit.disk(kit.run(guest, request.backupjobrun)).mode is ReadMode.DELTA


def test_failed_runs_lose_nothing(kit: PullKit, guest: Guest) -> None:
    first = kit.run(guest)
    for number in range(3):
        guest.write("vda", (512 + number * 128) * KIB, 8 * KIB, 0x51 + number)
        kit.run(guest, first, durable=False)
        kit.assert_nothing_left(guest.machine)
        assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(first)]}
    run = kit.run(guest, first)
    assert how(kit, run) == (ReadMode.DELTA, None) and kit.disk(run).parent == first
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(run)]}


def test_first_run_that_fails(kit: PullKit, guest: Guest) -> None:
    kit.run(guest, durable=False)
    assert bitmaps(guest.machine) == {}
    run = kit.run(guest)
    assert kit.disk(run).mode is ReadMode.FULL
    assert kit.disk(kit.run(guest, run)).mode is ReadMode.DELTA


def test_two_jobs_in_turn(kit: PullKit, guest: Guest) -> None:
    """Each has a bitmap of its own, so both stay incremental."""
    daily, weekly = kit.run(guest, job="daily"), kit.run(guest, job="weekly")
    for number in range(2):
        guest.write("vda", 1 * MIB + number * 64 * KIB, 8 * KIB, 0x61 + number)
        daily = kit.run(guest, daily, job="daily")
        assert how(kit, daily) == (ReadMode.DELTA, None)
        guest.write("vda", 2 * MIB + number * 64 * KIB, 8 * KIB, 0x71 + number)
        weekly = kit.run(guest, weekly, job="weekly")
        assert how(kit, weekly) == (ReadMode.DELTA, None)
        assert bitmaps(guest.machine) == {"a.qcow2": sorted([bitmap_name(daily), bitmap_name(weekly)])}


def test_parent_deleted(kit: PullKit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    kit.run(guest, first)
    run = kit.run(guest, first)  # the second point is gone from the vault
    assert how(kit, run) == (ReadMode.COMPARE, Reason.TRACKER_OTHER_RUN)
    assert kit.disk(kit.run(guest, run)).mode is ReadMode.DELTA


def test_full_on_request(kit: PullKit, guest: Guest) -> None:
    kit.run(guest)
    run = kit.run(guest, None, full_reason=Reason.ASKED)
    assert how(kit, run) == (ReadMode.FULL, Reason.ASKED)
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(run)]}


def test_old_qcow2(kit: PullKit, bed: Bed) -> None:
    path = bed.directory / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, str(4 * MIB)], check=True)
    guest = Guest(bed, [Disk(bed.host.give(path), "qcow2")])
    guest.start()
    guest.write("vda", 0, 64 * KIB, 0x51)
    first = kit.run(guest)
    guest.write("vda", 64 * KIB, 64 * KIB, 0x52)
    assert how(kit, kit.run(guest, first)) == (ReadMode.COMPARE, Reason.NO_BITMAP)


def test_internal_snapshots_stay_usable(kit: PullKit, bed: Bed) -> None:
    """QEMU goes back to no internal snapshot while there is a bitmap; so an image that has one gets none."""
    guest = Guest(bed, [bed.qcow2("a", 4 * MIB)])
    guest.start()
    first = kit.run(guest)
    guest.off()
    image = bed.directory / "a.qcow2"
    subprocess.run(["qemu-img", "snapshot", "-c", "mine", image], check=True)
    guest.start()
    guest.write("vda", 64 * KIB, 64 * KIB, 0x52)
    second = kit.run(guest, first)
    assert how(kit, second) == (ReadMode.COMPARE, Reason.NO_BITMAP)
    guest.off()
    assert lying(image) == {}
    subprocess.run(["qemu-img", "snapshot", "-a", "mine", image], check=True)


def test_resized_disk(kit: PullKit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.machine.domain.blockResize("vda", 6 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    guest.model["vda"] += bytes(2 * MIB)
    guest.write("vda", 5 * MIB, 8 * KIB, 0x51)
    run = kit.run(guest, first)
    assert how(kit, run) == (ReadMode.FULL, Reason.DISK_RESIZED)
    assert kit.disk(run).size == 6 * MIB and kit.warnings == []
    guest.write("vda", 5 * MIB + 64 * KIB, 8 * KIB, 0x52)
    assert kit.disk(kit.run(guest, run)).mode is ReadMode.DELTA


def test_left_out_disks(kit: PullKit, bed: Bed) -> None:
    extra = [
        Disk(bed.raw("cd", 1 * MIB).path, "raw", target="hdc", extra="<readonly/>"),
        Disk(bed.qcow2("ro", 1 * MIB).path, "qcow2", target="vdb", extra="<readonly/>"),
        Disk(bed.qcow2("out", 1 * MIB).path, "qcow2", target="vdc", extra="<serial>out</serial>"),
    ]
    guest = Guest(bed, [bed.qcow2("a", 4 * MIB), *extra])
    guest.start()
    guest.write("vda", 0, 8 * KIB, 0x51)
    run = kit.run(guest, exclude=frozenset(["vdc"]))
    assert [*kit.points.captures[run]] == ["vda"]
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(run)]}, "a disk that is left out gets no bitmap"


def test_paused(kit: PullKit, bed: Bed) -> None:
    guest = Guest(bed, [bed.qcow2("a", 4 * MIB)])
    guest.start(paused=True)
    guest.write("vda", 0, 8 * KIB, 0x51)
    first = kit.run(guest)
    assert kit.last is not None and kit.last.consistency is Consistency.PAUSED
    guest.write("vda", 64 * KIB, 8 * KIB, 0x52)
    assert kit.disk(kit.run(guest, first)).mode is ReadMode.DELTA
    assert guest.machine.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED


def test_network_disk(kit: PullKit, bed: Bed) -> None:
    network, _ = bed.failing("net", 4 * MIB)
    guest = Guest(bed, [bed.qcow2("a", 4 * MIB), network])
    guest.start()
    guest.write("vda", 0, 8 * KIB, 0x51)
    guest.write("vdb", 0, 128 * KIB, 0x52)
    first = kit.run(guest)
    guest.write("vda", 64 * KIB, 8 * KIB, 0x53)
    guest.write("vdb", 64 * KIB, 128 * KIB, 0x54)
    second = kit.run(guest, first)
    assert how(kit, second) == (ReadMode.DELTA, None)
    assert how(kit, second, "vdb") == (ReadMode.COMPARE, Reason.NO_BITMAP)
    guest.off()
    with pytest.raises(DiskUnsupported, match="only while the VM runs"):
        kit.run(guest, second)


def test_shut_off_without_bitmap(kit: PullKit, guest: Guest) -> None:
    guest.off()
    before = guest.state()
    first = kit.run(guest)
    second = kit.run(guest, first)
    assert kit.last is not None and kit.last.consistency is Consistency.OFFLINE
    assert how(kit, first) == (ReadMode.FULL, Reason.FIRST_RUN)
    assert how(kit, second) == (ReadMode.COMPARE, Reason.NO_TRACKER)
    assert guest.state() == before, "reading a VM that is shut off leaves no trace"


def test_shut_off_with_bitmap(kit: PullKit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    guest.zero("vda", 64 * KIB, 64 * KIB, how="discard")
    guest.off()
    before = guest.state()
    second = kit.run(guest, first)
    assert how(kit, second) == (ReadMode.DELTA, None) and kit.disk(second).parent == first
    assert kit.points.sent[second]["vda"] <= 3 * 64 * KIB
    third = kit.run(guest, second)
    assert how(kit, third) == (ReadMode.DELTA, None), "the bitmap counts from the second run as well"
    assert guest.state() == before
    guest.start()
    guest.write("vda", 640 * KIB, 8 * KIB, 0x52)
    fourth = kit.run(guest, third)
    assert how(kit, fourth) == (ReadMode.DELTA, None)
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(fourth)]}
    kit.assert_nothing_left(guest.machine)


def test_started_while_it_was_read(kit: PullKit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.off()
    capture = kit.capture(kit.request(guest.uuid, first))
    guest.start()  # nothing blocks it
    with pytest.raises(VmStarted):
        capture.check()
    capture.abandon()
    guest.write("vda", 640 * KIB, 8 * KIB, 0x52)
    assert how(kit, kit.run(guest, first)) == (ReadMode.DELTA, None)


def test_no_room_for_scratch_files(bed: Bed) -> None:
    with pull_kit_on(bed, overlay_reserve_min=1 << 50) as kit:
        guest = Guest(bed, [bed.qcow2("a", 4 * MIB)])
        guest.start()
        before = guest.state()
        with pytest.raises(NoSpaceForScratch):
            kit.run(guest)
        assert guest.state() == before
        kit.assert_nothing_left(guest.machine)


def test_backup_of_somebody_else(kit: PullKit, guest: Guest) -> None:
    """A job that is not ours is not ended."""
    theirs = somebody_begins(guest)
    with pytest.raises(VmBusy):
        kit.run(guest)
    assert guest.machine.domain.backupGetXMLDesc() == theirs
    guest.machine.domain.abortJob()


def somebody_begins(guest: Guest) -> str:
    directory = guest.bed.directory
    domain = guest.machine.domain
    domain.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{directory}/theirs'/><disks>"
        f"<disk name='vda' type='file'><scratch file='{directory}/theirs.scratch'/></disk>"
        "<disk name='vdb' backup='no'/></disks></domainbackup>",
        None,
    )
    return str(domain.backupGetXMLDesc())


def test_release_leaves_no_bitmap(kit: PullKit, guest: Guest, bed: Bed) -> None:
    image = bed.directory / "a.qcow2"
    run = kit.run(guest)
    assert kit.engine.release(guest.uuid) == ["vda: no bitmap of ours any more"]
    assert bitmaps(guest.machine) == {} and kit.journal.bitmaps(guest.uuid) == []
    run = kit.run(guest, run)
    assert how(kit, run) == (ReadMode.COMPARE, Reason.NO_TRACKER)
    guest.off()
    assert lying(image) == {bitmap_name(run): {"auto"}}
    kit.engine.release(guest.uuid)
    assert lying(image) == {}
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", image], check=True)
    kit.assert_nothing_left(guest.machine)
    assert kit.engine.release(guest.uuid) == []


def test_release_with_a_lost_journal(kit: PullKit, guest: Guest, bed: Bed) -> None:
    run = kit.run(guest)
    guest.off()
    kit.journal.forget_bitmap(guest.uuid, "vda", bitmap_name(run))
    guest.start()
    assert how(kit, kit.run(guest, run, durable=False))[1] is Reason.NO_TRACKER, "what is unknown is not trusted"
    kit.engine.release(guest.uuid)
    assert bitmaps(guest.machine) == {}
    guest.off()
    assert lying(bed.directory / "a.qcow2") == {}
