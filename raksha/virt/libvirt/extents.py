"""What of a frozen disk is to be stored, as its NBD server tells.

Of a delta it is asked first what changed, and only there what is data and what reads as zero: to tell that, the server
looks at the files below, and a look at the whole of a large disk takes longer than an increment of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import merge
from typing import Any

import nbd

from raksha.errors import CaptureFailed
from raksha.types import Extent, ExtentKind
from raksha.virt.libvirt.nbd import Source, hang_up, read_failed

_ALLOCATION = "base:allocation"

#: bytes asked about at once; the answer is at most some 1 MiB, whatever the size of the disk
_STEP = 1024**3
#: bytes between two changes over which one question is asked about both: it takes the server less than a second one
_GAP = 4 * 1024**2
#: changes that one question is about, at most
_GROUP = 4096
#: questions asked together, at most, if they are not about more than one alone may be about
_BATCH = 64
#: bytes of changes that no question is worth: to read them and find that they are zero takes as long as to ask
_SMALL = 256 * 1024

#: from, to, in bytes
Stretch = tuple[int, int]
#: from, to, in bytes, and what the server says of it
Status = tuple[int, int, int]


def extents(source: Source, depth: int | None, also: Sequence[Stretch] = ()) -> Iterator[Extent]:
    """What a full (`depth` None) or a delta over the upper `depth` layers consists of.

    `also`: ordered stretches that a delta takes in, whether they have changed or not.
    A full omits what reads as zero. A delta names it, if one of the layers holds it: a block that was discarded or
    zeroed must not come back from the parent. What is small may be called data although it is zero.
    Raises `DiskReadFailed`, `CaptureFailed`.
    """
    with _context(source, _ALLOCATION) as allocation:
        if depth is None:
            whole = _told(source, allocation, _ALLOCATION, 0, source.size)
            if source.moving:
                whole = _both(whole, _told(source, allocation, _ALLOCATION, 0, source.size))
            yield from _joined((start, end, flags) for start, end, flags in whole if not flags & nbd.STATE_ZERO)
            return
        if source.changes is None:
            raise ValueError("nothing tells what changed")
        with _context(source, source.changes) as changes:
            levels = _told(source, changes, source.changes, 0, source.size)
            changed = ((start, end) for start, end, level in levels if 1 <= level <= depth)
            for batch in _batches(_grouped(_union(merge(changed, also)))):
                for statuses in _looked_up(source, allocation, batch):
                    yield from _joined(statuses)


def _looked_up(source: Source, handle: nbd.NBD, batch: Sequence[list[Stretch]]) -> Iterator[Iterator[Status]]:
    """Of each group of changes, which of them are data. Of the small ones nobody asks: they are called data."""
    asked = [(group[0][0], group[-1][1]) for group in batch if _length(group) > _SMALL]
    told = iter(_allocated_all(source, handle, asked) if asked else ())
    for group in batch:
        if _length(group) > _SMALL:
            yield _within(next(told), group)
        else:
            yield ((start, end, 0) for start, end in group)


def _length(group: Iterable[Stretch]) -> int:
    return sum(end - start for start, end in group)


@contextmanager
def _context(source: Source, name: str) -> Iterator[nbd.NBD]:
    """A connection that tells one thing."""
    handle = source.connect([name])
    try:
        if not handle.can_meta_context(name):
            raise CaptureFailed(vm=source.vm, detail=f"QEMU does not tell {name} of disk {source.target}")
        yield handle
    finally:
        hang_up(handle)


def _told(
    source: Source, handle: nbd.NBD, context: str, start: int, end: int, begun: Sequence[int] = ()
) -> Iterator[Status]:
    """From `start` to `end` without a gap. `begun`: what was said of the beginning."""
    at, entries = start, begun
    while at < end:
        entries = entries or _ask(source, handle, context, [(at, end)])[0]
        for length, value in zip(entries[::2], entries[1::2], strict=True):
            if at >= end:
                return
            # an answer may cover a little more than was asked
            yield at, min(at + length, end), value
            at = min(at + length, end)
        entries = ()


def _allocated_all(source: Source, handle: nbd.NBD, stretches: Sequence[Stretch]) -> list[Iterator[Status]]:
    """Of each stretch. They are asked about together: to wait for each answer takes five times as long."""
    begun = _ask(source, handle, _ALLOCATION, stretches)
    found = [
        _told(source, handle, _ALLOCATION, *stretch, entries) for stretch, entries in zip(stretches, begun, strict=True)
    ]
    if not source.moving:
        return found
    # QEMU looks first at what it kept and then at the disk below. What the guest discards in between reads as zero
    # there, although it was kept. That can spoil one look at it, not two: only what both call zero was zero.
    again = [_told(source, handle, _ALLOCATION, *stretch) for stretch in stretches]
    return [_both(one, other) for one, other in zip(found, again, strict=True)]


def _both(one: Iterator[Status], other: Iterator[Status]) -> Iterator[Status]:
    """Two looks at the same stretch, cut at each other's borders; a flag counts where both have it."""
    first, second = next(one, None), next(other, None)
    while first is not None and second is not None:
        end = min(first[1], second[1])
        yield max(first[0], second[0]), end, first[2] & second[2]
        if first[1] == end:
            first = next(one, None)
        if second[1] == end:
            second = next(other, None)


def _ask(source: Source, handle: nbd.NBD, context: str, stretches: Sequence[Stretch]) -> list[list[int]]:
    """Of the beginning of each stretch: lengths and values by turns. They may cover a little more than was asked."""
    answers: list[list[int]] = [[] for _ in stretches]
    offset = stretches[0][0]

    def noting(answer: list[int]) -> Callable[[str, int, list[int], Any], int]:
        def note(told: str, _offset: int, entries: list[int], _error: Any) -> int:
            if told == context and not answer:
                answer.extend(entries)
            return 0

        return note

    try:
        asked = [
            handle.aio_block_status(min(_STEP, end - start), start, noting(answer))
            for answer, (start, end) in zip(answers, stretches, strict=True)
        ]
        while handle.aio_in_flight():
            handle.poll(-1)
        for cookie, (start, _) in zip(asked, stretches, strict=True):
            offset = start
            handle.aio_command_completed(cookie)
    except nbd.Error as error:
        raise read_failed(source, offset, error) from error
    if not all(answers):
        raise CaptureFailed(vm=source.vm, detail=f"QEMU does not tell {context} of disk {source.target}")
    return answers


def _union(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Of stretches ordered by their beginnings, which may overlap."""
    begin = end = 0
    for start, stop in stretches:
        if start > end:
            if end > begin:
                yield begin, end
            begin = start
        end = max(end, stop)
    if end > begin:
        yield begin, end


def _grouped(stretches: Iterable[Stretch]) -> Iterator[list[Stretch]]:
    group: list[Stretch] = []
    for start, end in stretches:
        if group and (start - group[-1][1] > _GAP or len(group) == _GROUP):
            yield group
            group = []
        group.append((start, end))
    if group:
        yield group


def _batches(groups: Iterable[list[Stretch]]) -> Iterator[list[list[Stretch]]]:
    batch: list[list[Stretch]] = []
    length = 0
    for group in groups:
        around = group[-1][1] - group[0][0]
        if batch and (length + around > _STEP or len(batch) == _BATCH):
            yield batch
            batch, length = [], 0
        batch.append(group)
        length += around
    if batch:
        yield batch


def _within(found: Iterable[Status], stretches: Sequence[Stretch]) -> Iterator[Status]:
    """What is said of the stretches."""
    number = 0
    for start, end, flags in found:
        while number < len(stretches) and stretches[number][0] < end:
            first, last = max(start, stretches[number][0]), min(end, stretches[number][1])
            if first < last:
                yield first, last, flags
            if stretches[number][1] > end:
                break
            number += 1


def _joined(statuses: Iterable[Status]) -> Iterator[Extent]:
    pending: Extent | None = None
    for start, end, flags in statuses:
        kind = ExtentKind.ZERO if flags & nbd.STATE_ZERO else ExtentKind.DATA
        if pending is not None and kind == pending.kind and pending.end == start:
            pending = Extent(pending.start, end - pending.start, pending.kind)
            continue
        if pending is not None:
            yield pending
        pending = Extent(start, end - start, kind)
    if pending is not None:
        yield pending
