"""Which disk is read how by the engine `pull`: a table of what is known and what follows."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from raksha.journal import BitmapState, OwnBitmap
from raksha.states import ReadMode, Reason
from raksha.virt.capture import Parent
from raksha.virt.libvirt.pull_tracker import Decision, Found, counting, decide

MIB = 1 << 20
P = Parent("p", MIB)
COUNTS = OwnBitmap("vm", "vda", "raksha-p", "p", "job", "[]", BitmapState.COUNTING, frozenset({"p"}))


def decision(
    bitmaps: list[OwnBitmap],
    parent: Parent | None = P,
    size: int = MIB,
    found: Found | None = Found.WHOLE,
    possible: bool = True,
    below: str = "[]",
) -> Decision:
    return decide(
        bitmaps, parent, size, full_reason=Reason.FIRST_RUN, possible=possible, below=below, found=found
    )  # fmt: skip


def test_delta() -> None:
    assert decision([COUNTS]) == Decision(ReadMode.DELTA, None, "raksha-p")


@pytest.mark.parametrize(
    ("found", "mode", "reason"),
    [
        (decision([COUNTS], parent=None), ReadMode.FULL, Reason.FIRST_RUN),
        (decision([COUNTS], size=2 * MIB), ReadMode.FULL, Reason.DISK_RESIZED),
        (decision([COUNTS], possible=False), ReadMode.COMPARE, Reason.NO_BITMAP),
        (decision([], found=None), ReadMode.COMPARE, Reason.NO_TRACKER),
        (decision([COUNTS], parent=Parent("q", MIB), found=None), ReadMode.COMPARE, Reason.TRACKER_OTHER_RUN),
        (decision([COUNTS], below='["/other"]'), ReadMode.COMPARE, Reason.BACKING_CHANGED),
        (decision([COUNTS], found=Found.LOST), ReadMode.COMPARE, Reason.BITMAP_LOST),
        (decision([COUNTS], found=Found.INCONSISTENT), ReadMode.COMPARE, Reason.BITMAP_INCONSISTENT),
        (decision([COUNTS], found=None), ReadMode.COMPARE, Reason.BITMAP_LOST),
    ],
)
def test_everything_else_is_read_completely(found: Decision, mode: ReadMode, reason: Reason) -> None:
    assert found == Decision(mode, reason)


@pytest.mark.parametrize("state", [BitmapState.PLANNED, BitmapState.UNWANTED])
def test_only_runs_that_are_restore_points_count(state: BitmapState) -> None:
    bitmap = replace(COUNTS, state=state)
    assert counting([bitmap], "vda", P) is None
    assert decision([bitmap], found=None) == Decision(ReadMode.COMPARE, Reason.TRACKER_OTHER_RUN)


def test_the_newest_that_counts_from_the_parent() -> None:
    other_disk = replace(COUNTS, target="vdb", name="raksha-b")
    offline = replace(COUNTS, name="raksha-o", run="o", counts_from=frozenset({"o", "p"}))
    unrelated = replace(COUNTS, name="raksha-u", run="u", counts_from=frozenset({"u"}))
    bitmaps = [COUNTS, offline, other_disk, unrelated]
    assert counting(bitmaps, "vda", P) == offline
    assert counting(bitmaps, "vdb", P) == other_disk
    assert counting(bitmaps, "vdc", P) is None
    assert counting(bitmaps, "vda", None) is None
