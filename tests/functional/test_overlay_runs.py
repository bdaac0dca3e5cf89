"""Runs on a running VM: what is captured is what the guest had written, bit for bit, whatever happened in between."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from raksha.errors import CaptureFailed, VmStarted
from raksha.states import Consistency, ReadMode, Reason
from raksha.types import ExtentKind
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.own_source import own_sources
from tests.bed import Bed
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed) as made:
        yield made


@pytest.fixture
def guest(bed: Bed) -> Guest:
    """vda is a raw file; vdb a qcow2 on a backing image."""
    bed.qcow2("base", 4 * MIB)
    made = Guest(bed, [bed.raw("a", 4 * MIB), bed.qcow2("b", None, backing="base.qcow2")])
    made.start()
    made.write("vda", 64 * KIB, 200 * KIB, 0x11)
    made.write("vdb", 0, 100 * KIB, 0x22)
    return made


def start_below(guest: Guest, **bases: Layer) -> None:
    """What somebody does who rebuilds the definition from his own records: the disks are on their own files again."""
    guest.off()
    guest.machine.connection.defineXML(own_sources(guest.machine.xml(inactive=True), bases))
    guest.start()


def overlays(guest: Guest) -> set[str]:
    return {name for name in guest.files() if ".raksha-" in name}


def test_full_then_increments(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    assert (kit.disk(first).mode, kit.disk(first).reason) == (ReadMode.FULL, Reason.FIRST_RUN)
    assert kit.points.sent[first]["vda"] < 512 * KIB, "what was never written is not read"
    parent = first
    for number in range(3):
        guest.write("vda", (512 + number * 100) * KIB, 10 * KIB, 0x30 + number)
        guest.write("vdb", 1 * MIB + number * 64 * KIB, 4 * KIB, 0x40 + number)
        run = kit.run(guest, parent)
        assert kit.warnings == []
        for target in ("vda", "vdb"):
            disk = kit.disk(run, target)
            assert (disk.mode, disk.reason, disk.parent) == (ReadMode.DELTA, None, parent)
            assert kit.points.sent[run][target] <= 4 * 64 * KIB
        parent = run
    for target, own in (("vda", "a.raw"), ("vdb", "b.qcow2")):
        for chain in (guest.sources()[target], guest.sources(inactive=True)[target]):
            assert chain[1].endswith(f"/{own}") and ".raksha-" in chain[0], "one overlay stays on the VM's own file"
    assert len(overlays(guest)) == 2


def test_facts_of_a_disk(kit: Kit, guest: Guest) -> None:
    run = kit.run(guest)
    raw, qcow2 = kit.disk(run, "vda"), kit.disk(run, "vdb")
    assert raw.facts["format"] == "raw" and raw.facts["bus"] == "virtio"
    assert str(raw.facts["source"]).endswith("/a.raw") and raw.base_image is None
    assert qcow2.base_image is not None and qcow2.base_image.path.endswith("/base.qcow2")
    again = kit.run(guest, run)
    assert kit.disk(again, "vda").facts == raw.facts, "the overlay in between is no fact of the VM"
    assert kit.disk(again, "vdb").base_image == qcow2.base_image


def test_zeroes_and_discards_are_stored(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)], discard=True)
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


def test_failed_runs_become_part_of_the_next(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    for number in range(3):
        guest.write("vda", (512 + number * 128) * KIB, 8 * KIB, 0x51 + number)
        kit.run(guest, first, durable=False)
    assert len(guest.sources()["vda"]) == 5, "the layers of failed runs stay"
    guest.write("vdb", 2 * MIB, 4 * KIB, 0x60)
    run = kit.run(guest, first)
    disk = kit.disk(run, "vda")
    assert (disk.mode, disk.reason, disk.parent) == (ReadMode.DELTA, Reason.UNION_OF_LAYERS, first)
    assert len(guest.sources()["vda"]) == 2, "all older layers were merged at once"
    assert len(overlays(guest)) == 2
    assert kit.disk(kit.run(guest, run)).reason is None


def test_first_run_that_fails(kit: Kit, guest: Guest) -> None:
    kit.run(guest, durable=False)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x51)
    run = kit.run(guest)
    assert kit.disk(run).mode is ReadMode.FULL
    assert len(guest.sources()["vda"]) == 2


def test_two_jobs_in_turn(kit: Kit, guest: Guest) -> None:
    daily = kit.run(guest, job="daily")
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    weekly = kit.run(guest, job="weekly")
    for number in range(2):
        guest.write("vda", 1 * MIB + number * 64 * KIB, 8 * KIB, 0x61 + number)
        daily = kit.run(guest, daily, job="daily")
        disk = kit.disk(daily)
        assert (disk.mode, disk.reason) == (ReadMode.COMPARE, Reason.TRACKER_OTHER_RUN)
        guest.write("vda", 2 * MIB + number * 64 * KIB, 8 * KIB, 0x71 + number)
        weekly = kit.run(guest, weekly, job="weekly")
        assert kit.disk(weekly).mode is ReadMode.COMPARE
    guest.write("vda", 0, 8 * KIB, 0x7F)
    assert kit.disk(kit.run(guest, weekly, job="weekly")).mode is ReadMode.DELTA


def test_parent_deleted(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    kit.run(guest, first)
    guest.write("vda", 640 * KIB, 8 * KIB, 0x52)
    run = kit.run(guest, first)  # the second point is gone from the vault
    assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.COMPARE, Reason.TRACKER_OTHER_RUN)


def test_full_on_request(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    run = kit.run(guest, None, full_reason=Reason.ASKED)
    assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.FULL, Reason.ASKED)
    assert len(guest.sources()["vda"]) == 2
    assert first != run


def test_restarted_below_the_overlay(kit: Kit, guest: Guest, bed: Bed) -> None:
    first = kit.run(guest)
    old = overlays(guest)
    kept = guest.frozen_model()["vdb"]
    # What was written into the overlay is lost to the VM, as it is for every other reader of its own file.
    guest.model["vda"][3 * MIB : 3 * MIB + 4096] = bytes(4096)
    start_below(guest, vda=Layer(str(bed.directory / "a.raw"), "file", "raw"))
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    run = kit.run(guest, first)
    disk = kit.disk(run, "vda")
    assert (disk.mode, disk.reason) == (ReadMode.COMPARE, Reason.RESTARTED_BELOW)
    assert kit.disk(run, "vdb").mode is ReadMode.DELTA and kit.points.images[run]["vdb"] == kept
    orphan = next(name for name in old if "-vda." in name)
    assert orphan in guest.files(), "it may be the only copy of what the VM wrote"
    assert any(orphan in warning for warning in kit.warnings)
    guest.write("vda", 640 * KIB, 8 * KIB, 0x52)
    assert kit.disk(kit.run(guest, run)).mode is ReadMode.DELTA


def test_orphan_put_back_counts_from_nothing(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    overlay, own = guest.sources()["vda"]
    guest.model["vda"][3 * MIB : 3 * MIB + 4096] = bytes(4096)
    start_below(guest, vda=Layer(own, "file", "raw"))
    guest.write("vda", 512 * KIB, 8 * KIB, 0x09)
    kit.run(guest, first, durable=False)
    start_below(guest, vda=Layer(overlay, "file", "qcow2"))
    guest.model["vda"][3 * MIB : 3 * MIB + 4096] = b"\x01" * 4096
    run = kit.run(guest, first)
    assert kit.disk(run).mode is ReadMode.COMPARE, "its base was written to while it was out of the chain"


def test_written_below_the_overlay(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    guest.off()
    overlay = guest.sources(inactive=True)["vda"][0]
    # Somebody commits our overlay by hand: it is empty now, and what it held is in the base.
    subprocess.run(["qemu-img", "commit", "-q", "-f", "qcow2", overlay], check=True)
    guest.start()
    run = kit.run(guest, first)
    assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.COMPARE, Reason.BASE_WRITTEN)


def test_resized_disk(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.machine.domain.blockResize("vda", 6 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    guest.model["vda"] += bytes(2 * MIB)
    guest.write("vda", 5 * MIB, 8 * KIB, 0x51)
    run = kit.run(guest, first)
    assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.FULL, Reason.DISK_RESIZED)
    assert kit.disk(run).size == 6 * MIB
    assert kit.warnings == [], "the merge lets the VM's own file grow"
    guest.write("vda", 5 * MIB + 64 * KIB, 8 * KIB, 0x52)
    assert kit.disk(kit.run(guest, run)).mode is ReadMode.DELTA


def test_replaced_disk(kit: Kit, guest: Guest, bed: Bed) -> None:
    first = kit.run(guest)
    other = bed.raw("other", 4 * MIB)
    start_below(guest, vda=Layer(str(other.path), "file", "raw"))
    guest.model["vda"][:] = bytes(4 * MIB)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    run = kit.run(guest, first)
    assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.FULL, Reason.DISK_REPLACED)


def test_left_out_disks(kit: Kit, bed: Bed) -> None:
    iso = bed.raw("cd", 1 * MIB)
    extra = [
        type(iso)(iso.path, "raw", target="hdc", extra="<readonly/>"),
        type(iso)(bed.raw("ro", 1 * MIB).path, "raw", target="vdb", extra="<readonly/>"),
        type(iso)(bed.raw("out", 1 * MIB).path, "raw", target="vdc", extra="<serial>out</serial>"),
    ]
    guest = Guest(bed, [bed.raw("a", 4 * MIB), *extra])
    guest.start()
    guest.write("vda", 0, 8 * KIB, 0x51)
    run = kit.run(guest, exclude=frozenset(["vdc"]))
    assert [*kit.points.captures[run]] == ["vda"]
    for target in ("hdc", "vdb", "vdc"):
        assert len(guest.sources()[target]) == 1, "a disk that is left out gets no overlay"
    assert len(overlays(guest)) == 1


def test_paused(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start(paused=True)
    guest.write("vda", 0, 8 * KIB, 0x51)
    first = kit.run(guest)
    assert kit.last is not None and kit.last.consistency is Consistency.PAUSED and kit.last.machine.power == "paused"
    guest.write("vda", 64 * KIB, 8 * KIB, 0x52)
    second = kit.run(guest, first)
    assert kit.disk(second).mode is ReadMode.DELTA
    assert len(guest.sources()["vda"]) == 2
    assert guest.machine.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED


def test_resumed_before_the_snapshot(kit: Kit, bed: Bed) -> None:
    """It may have written: nobody is told that it stood still."""
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start(paused=True)
    prepared = kit.engine.prepare(kit.request(guest.uuid))
    prepared.freeze()
    guest.machine.domain.resume()
    prepared.snapshot()
    capture = prepared.capture()
    assert capture.consistency is Consistency.CRASH
    capture.abandon()


def test_overlays_elsewhere(bed: Bed) -> None:
    elsewhere = bed.directory / "overlays"
    elsewhere.mkdir(mode=0o755)
    bed.host.give(elsewhere)
    with kit_on(bed, overlay_dir=elsewhere) as kit:
        guest = Guest(bed, [bed.raw("a", 4 * MIB)])
        guest.start()
        guest.write("vda", 0, 8 * KIB, 0x51)
        first = kit.run(guest)
        guest.write("vda", 64 * KIB, 8 * KIB, 0x52)
        second = kit.run(guest, first)
        assert kit.warnings == []
        guest.off()
        guest.start()  # the chain of absolute names holds over a cold boot
        guest.write("vda", 128 * KIB, 8 * KIB, 0x53)
        kit.run(guest, second)
        assert kit.warnings == [] and len(list(elsewhere.iterdir())) == 1
        assert overlays(guest) == set()


def test_chain_survives_cold_boots(kit: Kit, guest: Guest) -> None:
    run = kit.run(guest)
    for number in range(2):
        guest.off()
        guest.start()
        guest.write("vda", 512 * KIB + number * 64 * KIB, 8 * KIB, 0x51)
        run = kit.run(guest, run)
        assert kit.disk(run).mode is ReadMode.DELTA and kit.warnings == []
        assert len(guest.sources()["vda"]) == 2


def test_shut_off_without_tracker(kit: Kit, guest: Guest) -> None:
    guest.off()
    before = guest.state()
    first = kit.run(guest)
    second = kit.run(guest, first)
    assert kit.last is not None and kit.last.consistency is Consistency.OFFLINE
    assert kit.disk(first).mode is ReadMode.FULL
    assert (kit.disk(second).mode, kit.disk(second).reason) == (ReadMode.COMPARE, Reason.SHUT_OFF)
    assert guest.state() == before, "reading a VM that is shut off leaves no trace"


def test_shut_off_with_tracker(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    guest.off()
    second = kit.run(guest, first)
    assert (kit.disk(second).mode, kit.disk(second).parent) == (ReadMode.DELTA, first)
    third = kit.run(guest, second)
    assert kit.disk(third).mode is ReadMode.DELTA, "the tracker counts from the second run as well"
    guest.start()
    guest.write("vda", 640 * KIB, 8 * KIB, 0x52)
    fourth = kit.run(guest, third)
    assert kit.disk(fourth).mode is ReadMode.DELTA
    assert len(guest.sources()["vda"]) == 2


def test_started_while_it_was_read(kit: Kit, guest: Guest) -> None:
    guest.off()
    capture = kit.capture(kit.request(guest.uuid))
    guest.start()  # nothing blocks it
    with pytest.raises(VmStarted):
        capture.check()
    capture.abandon()


def test_started_and_stopped_while_it_was_read(kit: Kit, guest: Guest) -> None:
    guest.off()
    capture = kit.capture(kit.request(guest.uuid))
    guest.start()
    guest.off()
    with pytest.raises(VmStarted):
        capture.check()
    capture.abandon()


def test_shut_off_while_it_was_read(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    request = kit.request(guest.uuid, first)
    capture = kit.capture(request)
    expected = guest.frozen_model()
    guest.off()
    kit.points.store(request.backupjobrun, capture)
    capture.check()
    assert kit.points.images[request.backupjobrun] == expected
    assert capture.finish() == []
    guest.start()
    guest.write("vda", 640 * KIB, 8 * KIB, 0x52)
    run = kit.run(guest, request.backupjobrun)
    assert kit.disk(run).mode is ReadMode.DELTA
    assert len(guest.sources()["vda"]) == 2


def test_frozen_layer_changed_while_it_was_read(kit: Kit, guest: Guest) -> None:
    kit.run(guest)
    capture = kit.capture(kit.request(guest.uuid))
    frozen = Path(guest.sources()["vda"][1])
    frozen.touch()
    with pytest.raises(CaptureFailed, match="was written to"):
        capture.check()
    capture.abandon()
