"""The engine `pull` on a real Ceph: qcow2 image, raw file and RBD volume in one frozen view."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha.states import ReadMode, Reason
from tests.bed import Bed
from tests.bed.ceph import Ceph
from tests.functional.overlay_kit import KIB, MIB, Guest
from tests.functional.pull_kit import bitmaps, pull_kit_on

pytestmark = [pytest.mark.bed, pytest.mark.timeout(240)]


@pytest.fixture
def ceph(bed: Bed) -> Iterator[Ceph]:
    folder = bed.directory / "ceph"
    folder.mkdir(mode=0o755)
    cluster = Ceph(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.mark.slow
def test_one_frozen_view(bed: Bed, ceph: Ceph, tmp_path: Path) -> None:
    volume = ceph.volume("data", 4 * MIB)
    with pull_kit_on(bed) as kit:
        guest = Guest(bed, [bed.qcow2("a", 4 * MIB), bed.raw("b", 4 * MIB), volume])
        guest.start()
        for target, pattern in (("vda", 0x51), ("vdb", 0x52), ("vdc", 0x53)):
            guest.write(target, 0, 128 * KIB, pattern)
        sources = guest.sources()
        first = kit.run(guest)
        assert {disk.mode for disk in kit.points.captures[first].values()} == {ReadMode.FULL}
        for target, pattern in (("vda", 0x61), ("vdb", 0x62), ("vdc", 0x63)):
            guest.write(target, 64 * KIB, 128 * KIB, pattern)
        guest.zero("vdc", 0, 64 * KIB)
        second = kit.run(guest, first)
        assert kit.disk(second).mode is ReadMode.DELTA
        assert (kit.disk(second, "vdc").mode, kit.disk(second, "vdc").reason) == (ReadMode.COMPARE, Reason.NO_BITMAP)
        # the kit has compared what was captured with what was written; and Ceph has the same
        kit.assert_nothing_left(guest.machine)
        assert guest.sources() == sources
        assert set(bitmaps(guest.machine)) == {"a.qcow2"}
        guest.off()
        assert ceph.export(volume, tmp_path / "exported") == guest.model["vdc"]
        # at rest it is read without QEMU
        third = kit.run(guest, second)
        assert (kit.disk(third).mode, kit.disk(third).reason) == (ReadMode.DELTA, None)
        assert (kit.disk(third, "vdc").mode, kit.disk(third, "vdc").reason) == (ReadMode.COMPARE, Reason.NO_BITMAP)
