"""The host's half of the oracle: are the records on frozen or restored disks what the guest had written?

Layout, as guest/records.c writes it. A disk (or its first SPAN bytes) is cut into blocks of 4096 bytes; a block is
one line of eight little-endian 64-bit words, repeated 64 times, so that a block torn at any sector shows.

====  =======================  ====================
word  record (slots 1 to S)    header (slot 0)
====  =======================  ====================
0     "RKRECORD"               "RKHEADER"
1     n                        newest n
2     number of the disk       number of the disk
3     mixed from n             S
4-6   mixed from n             0
7     checksum of words 0-6    checksum of words 0-6
====  =======================  ====================

Record n is in slot 1 + n * STRIDE mod S, so later records take over the places of those S before them. The record is
written before the header, disk 0 before disk 1, and `ACK n` is printed after that. Hence, for disks frozen at one
instant: every record up to the newest is there (one of the next may be), and disk 0 is ahead by 0 or 1.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bed.disks import as_raw

BLOCK = 4096
LINE = struct.Struct("<8Q")
REPEAT = BLOCK // LINE.size
RECORD, HEADER = (int.from_bytes(magic, "little") for magic in (b"RKRECORD", b"RKHEADER"))
STRIDE = 2654435761
WORD = 0xFFFFFFFFFFFFFFFF
READ = 1024 * 1024


class RecordsWrong(AssertionError):
    """Records are damaged, lost, too old or too new."""


@dataclass(frozen=True, slots=True)
class DiskRecords:
    """What is on one disk."""

    #: the last record whose header is there; 0: none was ever written
    newest: int
    #: a sentence for each thing that is wrong
    problems: tuple[str, ...]


def check_records(images: Sequence[Path | tuple[Path, str]], acknowledged: int = 0) -> list[int]:
    """The newest record of each disk, in the guest's order; an image that is not raw comes with its format.

    Raises `RecordsWrong` if any record is not as it must be, if the disks are of different moments, or if the newest
    record is older than `acknowledged`, the last ACK that was seen before the capture.
    """
    with ExitStack() as stack:
        named = [image if isinstance(image, tuple) else (image, "raw") for image in images]
        found = [read_records(stack.enter_context(as_raw(*each)), number) for number, each in enumerate(named)]
    newest = [disk.newest for disk in found]
    problems = [f"{path.name}: {each}" for (path, _), disk in zip(named, found, strict=True) for each in disk.problems]
    if not newest[-1] <= newest[0] <= newest[-1] + 1 or sorted(newest, reverse=True) != newest:
        problems.append(f"the disks are of different moments: newest records {newest}")
    if min(newest) < acknowledged:
        problems.append(f"record {acknowledged} was acknowledged, but the newest ones are {newest}")
    if problems:
        raise RecordsWrong(f"{len(problems)} wrong: " + "; ".join(problems[:8]))
    return newest


def read_records(path: Path, number: int) -> DiskRecords:
    """Look at one raw disk, file or block device; `number` is its place in the guest (0 is vda)."""
    blocks = _blocks(path)
    header = next(blocks, bytes(BLOCK))
    magic, newest, _, slots, *_ = LINE.unpack_from(header)
    if magic != HEADER:
        return DiskRecords(0, ())
    if header != make_header(newest, number, slots):
        return DiskRecords(newest, (f"the header is damaged (newest {newest})",))
    expected = {slot_of(n, slots): n for n in range(max(1, newest - slots + 1), newest + 1)}
    problems = []
    for slot, block in zip(range(1, slots + 1), blocks, strict=False):
        found = _record_number(block, number)
        if found is not None and found > newest:
            if found > newest + 1:
                problems.append(f"record {found} in slot {slot} is newer than the header ({newest})")
        elif slot in expected and found != expected[slot]:
            what = "damaged or lost" if found is None else f"an older one ({found})"
            problems.append(f"record {expected[slot]} in slot {slot} is {what}")
        expected.pop(slot, None)
    if expected:
        problems.append(f"the disk ends before slot {min(expected)}")
    return DiskRecords(newest, tuple(problems))


def slot_of(n: int, slots: int) -> int:
    return 1 + n * STRIDE % slots


def make_record(n: int, number: int) -> bytes:
    """The 4096 bytes of record n of a disk."""
    return _block([RECORD, n, number, *(_mix((n * 8 + i + (number << 56)) & WORD) for i in range(3, 7))])


def make_header(newest: int, number: int, slots: int) -> bytes:
    """The 4096 bytes at the start of a disk."""
    return _block([HEADER, newest, number, slots, 0, 0, 0])


def _record_number(block: bytes, number: int) -> int | None:
    magic, n, *_ = LINE.unpack_from(block)
    return n if magic == RECORD and block == make_record(n, number) else None


def _block(words: list[int]) -> bytes:
    checksum = 0
    for word in words:
        checksum = _mix(checksum ^ word)
    return LINE.pack(*words, checksum) * REPEAT


def _mix(value: int) -> int:
    value = value + 0x9E3779B97F4A7C15 & WORD
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & WORD
    return value ^ value >> 31


def _blocks(path: Path) -> Iterator[bytes]:
    with _opened(path) as descriptor:
        offset = 0
        while data := os.pread(descriptor, READ, offset):
            offset += len(data)
            yield from (data[at : at + BLOCK] for at in range(0, len(data) - BLOCK + 1, BLOCK))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
