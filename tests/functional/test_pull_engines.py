"""Both engines on one VM in turn, within one job: every point is exact, and what cannot be trusted is compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raksha.states import ReadMode, Reason
from raksha.virt.libvirt.pull_xml import bitmap_name
from tests.bed import Bed
from tests.functional.overlay_kit import KIB, MIB, Guest
from tests.functional.pull_kit import PullKit, bitmaps, pull_kit_on
from tests.functional.test_pull_faults import killed_at


@pytest.fixture
def kit(bed: Bed) -> Iterator[PullKit]:
    with pull_kit_on(bed) as made:
        yield made


@pytest.fixture
def guest(bed: Bed) -> Guest:
    made = Guest(bed, [bed.qcow2("a", 4 * MIB), bed.raw("b", 4 * MIB)], discard=True)
    made.start()
    made.write("vda", 0, 200 * KIB, 0x11)
    made.write("vdb", 0, 100 * KIB, 0x22)
    return made


def overlay_run(kit: PullKit, guest: Guest, parent: str | None) -> str:
    with kit.other_engine():
        return kit.run(guest, parent)


def overlays(guest: Guest) -> set[str]:
    return {name for name in guest.files() if ".raksha-" in name}


def touch(guest: Guest, number: int) -> None:
    guest.write("vda", (1024 + number * 64) * KIB, 8 * KIB, 0x40 + number)
    guest.write("vdb", (1024 + number * 64) * KIB, 8 * KIB, 0x60 + number)


def modes(kit: PullKit, run: str) -> dict[str, ReadMode]:
    return {target: disk.mode for target, disk in kit.points.captures[run].items()}


def test_from_overlay_to_pull_and_back(kit: PullKit, guest: Guest) -> None:
    definition, chain = guest.machine.xml(inactive=True), guest.sources()
    first = overlay_run(kit, guest, None)
    touch(guest, 1)
    assert len(overlays(guest)) == 2
    second = kit.run(guest, first)
    assert set(modes(kit, second).values()) == {ReadMode.COMPARE}, "no bitmap counts from a run of the other engine"
    assert kit.disk(second, "vda").reason is Reason.NO_TRACKER
    assert kit.warnings == []
    assert overlays(guest) == set(), "whoever chose pull wants the chain left alone"
    assert (guest.machine.xml(inactive=True), guest.sources()) == (definition, chain)
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(second)]}
    touch(guest, 2)
    third = kit.run(guest, second)
    assert modes(kit, third) == {"vda": ReadMode.DELTA, "vdb": ReadMode.COMPARE}, "the bitmap came along with the merge"
    touch(guest, 3)
    fourth = overlay_run(kit, guest, third)
    assert set(modes(kit, fourth).values()) == {ReadMode.COMPARE}
    touch(guest, 4)
    fifth = overlay_run(kit, guest, fourth)
    assert set(modes(kit, fifth).values()) == {ReadMode.DELTA}
    touch(guest, 5)
    sixth = kit.run(guest, fifth)
    assert (kit.disk(sixth).mode, kit.disk(sixth).reason) == (ReadMode.COMPARE, Reason.TRACKER_OTHER_RUN)
    assert overlays(guest) == set()
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(sixth)]}
    kit.assert_nothing_left(guest.machine)


def test_bitmap_outlives_runs_of_the_other_engine(kit: PullKit, guest: Guest) -> None:
    """Their points are deleted; the newest that is left is one of ours, and the bitmap still counts from it."""
    first = kit.run(guest)
    touch(guest, 1)
    second = overlay_run(kit, guest, first)
    touch(guest, 2)
    overlay_run(kit, guest, second)
    touch(guest, 3)
    guest.off()
    guest.start()
    touch(guest, 4)
    run = kit.run(guest, first)
    assert modes(kit, run) == {"vda": ReadMode.DELTA, "vdb": ReadMode.COMPARE}


def test_failed_switch(kit: PullKit, guest: Guest) -> None:
    """A run of ours that is given up leaves the other engine's tracker as it was."""
    first = overlay_run(kit, guest, None)
    touch(guest, 1)
    kit.run(guest, first, durable=False)
    assert len(overlays(guest)) == 2 and bitmaps(guest.machine) == {}
    touch(guest, 2)
    second = overlay_run(kit, guest, first)
    assert set(modes(kit, second).values()) == {ReadMode.DELTA}


@pytest.mark.slow
def test_shut_off_on_an_overlay(kit: PullKit, guest: Guest) -> None:
    first = overlay_run(kit, guest, None)
    touch(guest, 1)
    guest.off()
    chain = guest.sources(inactive=True)
    second = kit.run(guest, first)
    assert set(modes(kit, second).values()) == {ReadMode.COMPARE}
    assert guest.sources(inactive=True) == chain, "nothing is merged while the VM could be started"
    guest.start()
    touch(guest, 2)
    kit.run(guest, second)
    assert overlays(guest) == set()


def test_release_by_both(kit: PullKit, guest: Guest) -> None:
    first = kit.run(guest)
    touch(guest, 1)
    overlay_run(kit, guest, first)
    assert bitmaps(guest.machine)
    kit.engine.release(guest.uuid)
    assert bitmaps(guest.machine) == {}
    kit.overlay.release(guest.uuid)
    assert overlays(guest) == set() and len(guest.sources()["vda"]) == 1
    guest.off()
    assert (guest.bed.directory / "b.raw").read_bytes() == bytes(guest.model["vdb"])


def test_other_engine_after_a_kill(kit: PullKit, guest: Guest) -> None:
    """A backup job that a killed process left is in nobody's way, whichever engine comes next."""
    first = overlay_run(kit, guest, None)
    touch(guest, 1)
    killed_at(kit, guest, "while reading", "01234567-0123-0123-0123-0123456789ab", first)
    second = overlay_run(kit, guest, first)
    assert set(modes(kit, second).values()) == {ReadMode.DELTA}
    kit.assert_nothing_left(guest.machine)
