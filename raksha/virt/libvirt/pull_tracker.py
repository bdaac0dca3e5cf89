"""What a disk's dirty bitmaps can tell about changes since an earlier run. Pure decisions.

The rule behind all of it: a bitmap of ours was begun together with the frozen view of its run, so as long as it is
whole it holds every write since then. An increment on parent P is right only with one that counts from P. A bitmap lies
in the image whose changes it records, and QEMU drops or flags it when it may be wrong, so a copied, restored or moved
image brings its own truth along; only what lies *below* the VM's own file can change without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from raksha.journal import BitmapState, OwnBitmap
from raksha.states import ReadMode, Reason
from raksha.virt.capture import Parent


class Found(StrEnum):
    """What became of a bitmap."""

    WHOLE = "whole"
    LOST = "lost"
    INCONSISTENT = "inconsistent"


class Decision(Struct, frozen=True):
    """How a disk has to be read."""

    mode: ReadMode
    reason: Reason | None
    #: for a delta: the bitmap that holds the changes
    bitmap: str | None = None


def counting(bitmaps: Sequence[OwnBitmap], target: str, parent: Parent | None) -> OwnBitmap | None:
    """The bitmap of a disk that counts from the parent, if we ever made one."""
    if parent is None:
        return None
    return next(
        (
            each
            for each in reversed(bitmaps)
            if each.target == target and each.state is BitmapState.COUNTING and parent.backupjobrun in each.counts_from
        ),
        None,
    )


def decide(
    bitmaps: Sequence[OwnBitmap],
    parent: Parent | None,
    size: int,
    *,
    full_reason: Reason,
    possible: bool,
    below: str,
    found: Found | None,
) -> Decision:
    """How to read a disk of `size` bytes.

    `bitmaps`: ours of this disk, as the journal has them. `possible`: the VM's own file can hold one. `below`: what
    lies below that file now. `found`: what became of the bitmap that counts from the parent; None: there was none.
    """
    if parent is None:
        return Decision(ReadMode.FULL, full_reason)
    if parent.size != size:
        return Decision(ReadMode.FULL, Reason.DISK_RESIZED)
    if not possible:
        return Decision(ReadMode.COMPARE, Reason.NO_BITMAP)
    if not bitmaps:
        return Decision(ReadMode.COMPARE, Reason.NO_TRACKER)
    bitmap = counting(bitmaps, bitmaps[0].target, parent)
    if bitmap is None:
        return Decision(ReadMode.COMPARE, Reason.TRACKER_OTHER_RUN)
    if bitmap.below != below:
        return Decision(ReadMode.COMPARE, Reason.BACKING_CHANGED)
    if found is not Found.WHOLE:
        reason = Reason.BITMAP_INCONSISTENT if found is Found.INCONSISTENT else Reason.BITMAP_LOST
        return Decision(ReadMode.COMPARE, reason)
    return Decision(ReadMode.DELTA, None, bitmap.name)
