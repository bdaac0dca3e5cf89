"""Extents of a frozen view whose disk is written to meanwhile. The server's answers are made up here: QEMU's window
between its looks at what it kept and at the disk below cannot be hit on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import nbd as libnbd
import pytest

from raksha.errors import CaptureFailed
from raksha.types import Extent, ExtentKind
from raksha.virt.libvirt.extents import extents

KIB = 1024
MIB = 1024 * KIB
BITMAP = "qemu:dirty-bitmap:b"
HOLE = libnbd.STATE_HOLE | libnbd.STATE_ZERO


class Handle:
    """Answers of a server about one thing, one after the other; the last one again and again."""

    def __init__(self, context: str, answers: list[list[int]]) -> None:
        self._context = context
        self._answers = answers

    def can_meta_context(self, context: str) -> bool:
        return context == self._context and bool(self._answers)

    def aio_block_status(self, length: int, offset: int, note: Any) -> int:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        note(self._context, offset, answer, None)
        return 1

    def aio_in_flight(self) -> int:
        return 0

    def aio_command_completed(self, cookie: int) -> bool:
        return True

    def shutdown(self) -> None:
        pass


class Frozen:
    vm, target, size, explain = "vm", "vda", 192 * KIB, None

    def __init__(
        self, *allocation: list[int], dirty: list[int] | None = None, changes: str | None = None, moving: bool = True
    ) -> None:
        self.changes = changes or (BITMAP if dirty else None)
        self.moving = moving
        self._answers = {"base:allocation": list(allocation), BITMAP: [dirty] if dirty else []}

    def connect(self, contexts: Sequence[str] = ()) -> Any:
        (context,) = contexts
        return Handle(context, self._answers[context])


class Large(Frozen):
    size = 3 * MIB


FIRST = [64 * KIB, 0, 128 * KIB, HOLE]


def test_zero_only_if_it_is_so_at_both_looks() -> None:
    """The second cluster was discarded between QEMU's two looks, and is among what it kept at the next."""
    then = [128 * KIB, 0, 64 * KIB, HOLE]
    assert list(extents(Frozen(FIRST, then), None)) == [Extent(0, 128 * KIB, ExtentKind.DATA)]


def test_delta() -> None:
    dirty = [MIB, 0, 2 * MIB, 1]
    found = list(extents(Large([MIB, 0, MIB, HOLE], dirty=dirty), 1))
    assert found == [Extent(MIB, MIB, ExtentKind.DATA), Extent(2 * MIB, MIB, ExtentKind.ZERO)]


def test_small_changes_are_not_asked_about() -> None:
    """To read them takes no longer."""
    dirty = [MIB, 0, 128 * KIB, 1, 2 * MIB - 128 * KIB, 0]
    assert list(extents(Large([], dirty=dirty), 1)) == [Extent(MIB, 128 * KIB, ExtentKind.DATA)]


def test_short_answers_are_asked_on() -> None:
    """An answer may end early, at each look somewhere else."""
    answers = [
        [128 * KIB, HOLE],
        [64 * KIB, HOLE], [64 * KIB, 0],
        [64 * KIB, HOLE],
        [64 * KIB, 0],
    ]  # fmt: skip
    assert list(extents(Frozen(*answers), None)) == [Extent(64 * KIB, 128 * KIB, ExtentKind.DATA)]


def test_one_look_where_nothing_moves() -> None:
    assert list(extents(Frozen(FIRST, moving=False), None)) == [Extent(0, 64 * KIB, ExtentKind.DATA)]


def test_what_has_not_changed_is_not_asked_about() -> None:
    """Only changes, and what lies shortly between them."""
    size, changes = 64 << 20, [(1 << 20, 2 << 20), (3 << 20, 4 << 20), (40 << 20, 41 << 20)]
    dirty, asked = [], []
    for (_, before), (start, end) in pairwise([(0, 0), *changes]):
        dirty += [start - before, 0, end - start, 1]

    class Watched(Handle):
        def aio_block_status(self, length: int, offset: int, note: Any) -> int:
            asked.append((offset, offset + length))
            note(self._context, offset, [length, 0], None)
            return 1

    class Disk(Frozen):
        size = 64 << 20

        def connect(self, contexts: Sequence[str] = ()) -> Any:
            return Watched(contexts[0], [[1]]) if contexts == ["base:allocation"] else super().connect(contexts)

    source = Disk(dirty=[*dirty, size - changes[-1][1], 0], moving=False)
    assert list(extents(source, 1)) == [Extent(start, end - start, ExtentKind.DATA) for start, end in changes]
    assert asked == [(1 << 20, 4 << 20), (40 << 20, 41 << 20)]


def test_a_bitmap_that_is_not_served_is_an_error() -> None:
    with pytest.raises(CaptureFailed, match="does not tell"):
        list(extents(Frozen(FIRST, changes=BITMAP), 1))


@pytest.mark.parametrize(
    ("also", "expected"),
    [
        ([], [(64, 192)]),
        ([(0, 64)], [(0, 192)]),
        ([(16, 32), (40, 48)], [(16, 32), (40, 48), (64, 192)]),
        ([(16, 100)], [(16, 192)]),
        ([(100, 120), (180, 192)], [(64, 192)]),
    ],
)
def test_stretches_that_a_delta_takes_in(also: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    source = Frozen([192 * KIB, 0], dirty=[64 * KIB, 0, 128 * KIB, 1], moving=False)
    found = extents(source, 1, [(start * KIB, end * KIB) for start, end in also])
    assert list(found) == [Extent(start * KIB, (end - start) * KIB, ExtentKind.DATA) for start, end in expected]
