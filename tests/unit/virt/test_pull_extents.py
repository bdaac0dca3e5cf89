"""Extents of a frozen view whose disk is written to meanwhile. The server's answers are made up here: QEMU's window
between its looks at what it kept and at the disk below cannot be hit on purpose."""

from __future__ import annotations

from typing import Any

import nbd as libnbd
import pytest

from raksha.errors import CaptureFailed
from raksha.types import Extent, ExtentKind
from raksha.virt.libvirt import nbd

KIB = 1024
HOLE = libnbd.STATE_HOLE | libnbd.STATE_ZERO


class Handle:
    """Answers of a server, one after the other."""

    def __init__(self, answers: list[dict[str, list[int]]]) -> None:
        self._answers = iter(answers)

    def block_status(self, length: int, offset: int, note: Any) -> None:
        for context, entries in next(self._answers).items():
            note(context, offset, entries, None)

    def shutdown(self) -> None:
        pass


class Frozen:
    vm, target, size, explain = "vm", "vda", 192 * KIB, None

    def __init__(self, changes: str | None, *answers: dict[str, list[int]], moving: bool = True) -> None:
        self.changes = changes
        self.moving = moving
        self._answers = list(answers)

    def connect(self, *, contexts: bool = False) -> Any:
        return Handle(self._answers)


FIRST = {"base:allocation": [64 * KIB, 0, 128 * KIB, HOLE]}
THEN = {"base:allocation": [128 * KIB, 0, 64 * KIB, HOLE]}


def test_zero_only_if_it_is_so_at_both_looks() -> None:
    """The second cluster was discarded between QEMU's two looks, and is among what it kept at the next."""
    assert list(nbd.extents(Frozen(None, FIRST, THEN), None)) == [Extent(0, 128 * KIB, ExtentKind.DATA)]


def test_delta() -> None:
    dirty = {"qemu:dirty-bitmap:b": [64 * KIB, 0, 128 * KIB, 1]}
    found = list(nbd.extents(Frozen("qemu:dirty-bitmap:b", FIRST | dirty, THEN | dirty), 1))
    assert found == [Extent(64 * KIB, 64 * KIB, ExtentKind.DATA), Extent(128 * KIB, 64 * KIB, ExtentKind.ZERO)]


def test_short_answers_are_asked_on() -> None:
    """An answer may end early, each context and each look somewhere else."""
    answers = [
        {"base:allocation": [128 * KIB, HOLE]}, {"base:allocation": [64 * KIB, HOLE]},
        {"base:allocation": [128 * KIB, HOLE]}, {"base:allocation": [64 * KIB, 0]},
        {"base:allocation": [64 * KIB, 0]}, {"base:allocation": [64 * KIB, HOLE]},
    ]  # fmt: skip
    assert list(nbd.extents(Frozen(None, *answers), None)) == [Extent(64 * KIB, 128 * KIB, ExtentKind.DATA)]


def test_one_look_where_nothing_moves() -> None:
    assert list(nbd.extents(Frozen(None, FIRST, moving=False), None)) == [Extent(0, 64 * KIB, ExtentKind.DATA)]


def test_a_bitmap_that_is_not_served_is_an_error() -> None:
    with pytest.raises(CaptureFailed, match="does not tell"):
        list(nbd.extents(Frozen("qemu:dirty-bitmap:b", FIRST, THEN), 1))


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
    dirty = {"base:allocation": [192 * KIB, 0], "qemu:dirty-bitmap:b": [64 * KIB, 0, 128 * KIB, 1]}
    source = Frozen("qemu:dirty-bitmap:b", dirty, moving=False)
    found = nbd.extents(source, 1, [(start * KIB, end * KIB) for start, end in also])
    assert list(found) == [Extent(start * KIB, (end - start) * KIB, ExtentKind.DATA) for start, end in expected]
