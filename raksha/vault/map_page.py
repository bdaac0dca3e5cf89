"""One page of a map: what is known of `page_clusters` neighbouring clusters, column by column.

A page is as wide as one L2 table of the image, also at the end of a disk: entries beyond the disk are absent.
Columns are plain arrays, so that a whole page is compared, sliced or copied at the speed of memory.

Promised: a page made by `set*` is in canonical form (whatever is not data has segment 0, index 0 and a hash of
zeroes), hence equal columns mean equal entries. `problem` tells whether a page from elsewhere is.

Pure: no I/O, no compression, no digests.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, compress, count, repeat
from operator import lt
from typing import NamedTuple

from raksha.types import Buffer
from raksha.vault.segment import HASH_BYTES

#: nothing is stored of this cluster: it is as in the parent; in a full it reads as zeroes
ABSENT = 0
#: the cluster is in a segment
DATA = 1
#: reads as zeroes, whatever the parent has there
ZERO = 2

#: bytes of one entry in an encoded page: kind, segment, index, hash
ENTRY_BYTES = 1 + 4 + 2 + HASH_BYTES

_PRESENT = re.compile(rb"[^\0]+")
_RUNS = {kind: re.compile(re.escape(bytes([kind])) + b"+") for kind in (ABSENT, DATA, ZERO)}
_SAME = re.compile(rb"\x01+|\x02+")
_HASHES = struct.Struct(f"{HASH_BYTES}s")
_NO_HASH = bytes(HASH_BYTES)
_NOT_DATA = bytes(kind != DATA for kind in range(256))


class MapEntry(NamedTuple):
    """What a map says of one cluster."""

    #: number of the cluster on the disk
    cluster: int
    #: `ABSENT`, `DATA` or `ZERO`
    kind: int
    #: row of the segment in the map's table; 0 unless data
    segment: int
    #: which cluster of the segment; 0 unless data
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on an entry
    #: keyed hash of the plaintext; empty unless data
    hash: bytes


class MapPage:
    """Columns of one page. Positions count from the start of the page."""

    __slots__ = ("hashes", "indexes", "kinds", "number", "segments")

    def __init__(self, number: int, width: int) -> None:
        self.number = number
        self.kinds = bytearray(width)
        self.segments = array("I", bytes(4 * width))
        self.indexes = array("H", bytes(2 * width))
        #: `HASH_BYTES` for each position
        self.hashes = bytearray(HASH_BYTES * width)

    @property
    def width(self) -> int:
        return len(self.kinds)

    @property
    def first_cluster(self) -> int:
        return self.number * self.width

    def get(self, position: int) -> MapEntry:
        kind = self.kinds[position]
        known = self.hash(position) if kind == DATA else b""
        return MapEntry(self.first_cluster + position, kind, self.segments[position], self.indexes[position], known)

    def hash(self, position: int) -> bytes:
        return bytes(self.hashes[position * HASH_BYTES : (position + 1) * HASH_BYTES])

    def __iter__(self) -> Iterator[MapEntry]:
        """Entries that are not absent, ascending."""
        for match in _SAME.finditer(self.kinds):
            start, stop = match.span()
            if self.kinds[start] == DATA:
                chunks = _HASHES.iter_unpack(self.hashes[start * HASH_BYTES : stop * HASH_BYTES])
                hashes: Iterable[bytes] = chain.from_iterable(chunks)
            else:
                hashes = repeat(b"", stop - start)
            run = slice(start, stop)
            clusters = count(self.first_cluster + start)
            yield from map(MapEntry, clusters, self.kinds[run], self.segments[run], self.indexes[run], hashes)

    def runs(self, kind: int | None = None) -> Iterator[tuple[int, int]]:
        """`[start, stop)` of each run of one kind; without a kind, of whatever is not absent."""
        pattern = _PRESENT if kind is None else _RUNS[kind]
        return (match.span() for match in pattern.finditer(self.kinds))

    def count(self, kind: int) -> int:
        return self.kinds.count(kind)

    def set(self, position: int, kind: int, segment: int = 0, index: int = 0, hash: bytes = b"") -> None:
        """Put one entry. Segment, index and hash are for data only. Raises `ValueError`."""
        if len(hash) != (HASH_BYTES if kind == DATA else 0) or (kind != DATA and (segment or index)):
            raise ValueError(f"no entry of kind {kind} with segment {segment}, index {index}, hash {bytes(hash)!r}")
        if kind not in (ABSENT, DATA, ZERO) or not 0 <= position < len(self.kinds):
            raise ValueError(f"no entry of kind {kind} at {position} of {self.width}")
        self.kinds[position] = kind
        self.segments[position] = segment
        self.indexes[position] = index
        self.hashes[position * HASH_BYTES : (position + 1) * HASH_BYTES] = hash or _NO_HASH

    def set_data(self, position: int, segment: int, index: int, hashes: Buffer) -> None:
        """Put data entries for neighbouring clusters of one segment, one for each hash. Raises `ValueError`."""
        run, rest = divmod(len(hashes), HASH_BYTES)
        stop = position + run
        if rest or not run or position < 0 or stop > self.width:
            raise ValueError(f"{len(hashes)} bytes of hashes do not fit at {position} of {self.width}")
        self.kinds[position:stop] = bytes([DATA]) * run
        self.segments[position:stop] = array("I", [segment]) * run
        self.indexes[position:stop] = array("H", range(index, index + run))
        self.hashes[position * HASH_BYTES : stop * HASH_BYTES] = hashes

    def set_zero(self, position: int, clusters: int = 1) -> None:
        """Neighbouring clusters that read as zeroes. Raises `ValueError`."""
        self._blank(position, position + clusters, ZERO)

    def clear(self, start: int, stop: int | None = None) -> None:
        """Make `[start, stop)` absent."""
        self._blank(start, self.width if stop is None else stop, ABSENT)

    def _blank(self, start: int, stop: int, kind: int) -> None:
        if not 0 <= start <= stop <= self.width:
            raise ValueError(f"[{start}, {stop}) is not within a page of {self.width}")
        run = stop - start
        self.kinds[start:stop] = bytes([kind]) * run
        self.segments[start:stop] = array("I", bytes(4 * run))
        self.indexes[start:stop] = array("H", bytes(2 * run))
        self.hashes[start * HASH_BYTES : stop * HASH_BYTES] = bytes(HASH_BYTES * run)

    def to_bytes(self) -> bytes:
        """The columns one after the other, little-endian: kinds, segments, indexes, hashes."""
        return b"".join((self.kinds, little_endian(self.segments), little_endian(self.indexes), self.hashes))

    @classmethod
    def from_bytes(cls, number: int, data: Buffer) -> MapPage:
        """The reverse. Believes the values: see `problem`. Raises `ValueError` if the length is no whole page."""
        width, rest = divmod(len(data), ENTRY_BYTES)
        if rest:
            raise ValueError(f"{len(data)} bytes are no whole page")
        view = memoryview(data)
        page = cls(number, 0)
        page.kinds = bytearray(view[:width])
        page.segments = from_little_endian("I", view[width : 5 * width])
        page.indexes = from_little_endian("H", view[5 * width : 7 * width])
        page.hashes = bytearray(view[7 * width :])
        return page

    def problem(self, clusters: int, counts: array[int]) -> str | None:
        """Why this cannot be a page of a disk of `clusters`, with segments of so many clusters each; None if it can."""
        if self.kinds.translate(None, bytes((ABSENT, DATA, ZERO))):
            return "an entry is of no known kind"
        if any(self.kinds[max(clusters - self.first_cluster, 0) :]):
            return "an entry lies beyond the end of the disk"
        if counts:
            if max(self.segments, default=0) >= len(counts):
                return "an entry names a segment that is not in the table"
            if not all(map(lt, self.indexes, map(counts.__getitem__, self.segments))):
                return "an entry names a cluster that its segment does not have"
        elif self.kinds.count(DATA):
            return "an entry names a segment, and the table is empty"
        return self._problem_of_blanks()

    def _problem_of_blanks(self) -> str | None:
        blank = self.kinds.translate(_NOT_DATA)
        if not any(blank):
            return None
        halves = memoryview(self.hashes).cast("Q")
        columns = (self.segments, self.indexes, halves[0::2].tolist(), halves[1::2].tolist())
        if any(any(compress(column, blank)) for column in columns):
            return "an entry that is not data has a segment, an index or a hash"
        return None


def little_endian(column: array[int]) -> bytes:
    """The bytes of a column as they are stored."""
    if sys.byteorder == "big":
        column = array(column.typecode, column)
        column.byteswap()
    return column.tobytes()


def from_little_endian(typecode: str, data: Buffer) -> array[int]:
    """A column from stored bytes. Raises `ValueError` if they are no whole number of items."""
    column: array[int] = array(typecode)
    column.frombytes(data)
    if sys.byteorder == "big":
        column.byteswap()
    return column
