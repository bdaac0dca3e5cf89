"""Runs on a running VM: what is captured is what the guest had written, bit for bit, whatever happened in between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raksha.states import ReadMode, Reason
from tests.bed import Bed
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed) as made:
        yield made


@pytest.fixture
def guest(bed: Bed) -> Guest:
    """vda is a raw file; vdb a qcow2 on a backing image that holds something."""
    base = bed.qcow2("base", 4 * MIB)
    made = Guest(bed, [bed.raw("a", 4 * MIB), bed.qcow2("b", None, backing="base.qcow2")])
    assert base.path.exists()
    made.start()
    made.write("vda", 64 * KIB, 200 * KIB, 0x11)
    made.write("vdb", 0, 100 * KIB, 0x22)
    return made


def test_full_then_increments(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    assert kit.disk(first).mode is ReadMode.FULL and kit.disk(first).reason is Reason.FIRST_RUN
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
        chain = guest.sources()[target]
        assert chain[1].endswith(f"/{own}") and ".raksha-" in chain[0], "one overlay stays on the VM's own file"
    assert len([name for name in guest.files() if ".raksha-" in name]) == 2
