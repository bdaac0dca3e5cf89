"""The segment table of a map: one row per segment, kept and stored in pages.

`SegmentTable` is the writing side: it finds a row again by its name and spools full pages, so that it holds some fifty
bytes per segment (12 MiB for a disk of 1 TiB). `SegmentPage` is one page as it was read.

Layout of a page of n rows: digests (32n) · claims (4n) · lengths of all frames of all rows (4 each). How many frames
a row has is in the summary: counts of all segments (2 each), then their stored sizes (4 each).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import accumulate

from raksha.errors import ObjectCorrupt
from raksha.types import Buffer, Geometry
from raksha.vault.map_page import from_little_endian, little_endian
from raksha.vault.map_root import SEGMENT_LIMIT, TABLE_LIMIT
from raksha.vault.segment import CLAIM, DIGEST_BYTES, SegmentRow, frame_limit, padded

#: rows in one page
PAGE_ROWS = 256
_EMPTY = 0xFFFFFFFF


class SegmentTable:
    """Rows in the order in which they were added, each name once."""

    def __init__(self, geometry: Geometry, spool: Callable[[bytes], None]) -> None:
        """`spool` is given each page as it fills."""
        self._geometry = geometry
        self._spool = spool
        self.claims: list[str] = []
        self._claim_ids: dict[str, int] = {}
        self.counts = array("H")
        self.stored = array("I")
        self._digests = bytearray()
        self._claims = array("I")
        self._lengths = array("I")
        # open addressing over the row numbers: a dict of names would need ten times the memory
        self._slots = array("I", [_EMPTY]) * 1024

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, row: SegmentRow) -> int:
        """Number of the row with this name. Raises `ValueError` for a row that no map may hold."""
        problem = row_problem(row.lengths, row.stored, self._geometry)
        if problem or len(row.digest) != DIGEST_BYTES:
            raise ValueError(f"no segment: {problem or 'its digest has another length'}")
        claim = self.claim(row.claim)
        slot = self._slot(row.digest, claim)
        number = self._slots[slot]
        if number != _EMPTY:
            if (self.counts[number], self.stored[number]) != (len(row.lengths), row.stored):
                raise ValueError(f"segment {row.name} is known with other lengths")
            return number
        number = len(self.counts)
        if number >= SEGMENT_LIMIT:
            raise ValueError(f"a map names at most {SEGMENT_LIMIT} segments")
        self._slots[slot] = number
        self._digests += row.digest
        self._claims.append(claim)
        self.counts.append(len(row.lengths))
        self.stored.append(row.stored)
        self._lengths.extend(row.lengths)
        if len(self.counts) % PAGE_ROWS == 0:
            self._flush(len(self.counts) - PAGE_ROWS)
        if 2 * len(self.counts) > len(self._slots):
            self._grow()
        return number

    def claim(self, claim: str) -> int:
        """Number of a claim in the table of claims. Raises `ValueError`."""
        number = self._claim_ids.get(claim)
        if number is None:
            if not CLAIM.match(claim) or len(self.claims) >= TABLE_LIMIT:
                raise ValueError(f"no claim: {claim!r}")
            number = self._claim_ids[claim] = len(self.claims)
            self.claims.append(claim)
        return number

    def finish(self) -> bytes:
        """Spool the last page. Returns the summary of all rows."""
        rest = len(self.counts) % PAGE_ROWS
        if rest:
            self._flush(len(self.counts) - rest)
        return little_endian(self.counts) + little_endian(self.stored)

    def _flush(self, first: int) -> None:
        columns = (little_endian(self._claims[first:]), little_endian(self._lengths))
        self._spool(b"".join((self._digests[first * DIGEST_BYTES :], *columns)))
        del self._lengths[:]

    def _slot(self, digest: bytes, claim: int) -> int:
        """Where the row is, or where it belongs. Digests are uniform: their first bytes serve as the hash."""
        mask = len(self._slots) - 1
        slot = int.from_bytes(digest[:8], "little") & mask
        while (number := self._slots[slot]) != _EMPTY:
            start = number * DIGEST_BYTES
            if self._claims[number] == claim and self._digests[start : start + DIGEST_BYTES] == digest:
                break
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        self._slots = array("I", [_EMPTY]) * (2 * len(self._slots))
        for number, claim in enumerate(self._claims):
            start = number * DIGEST_BYTES
            self._slots[self._slot(bytes(self._digests[start : start + DIGEST_BYTES]), claim)] = number


class SegmentPage:
    """Rows `[first, first + n)` of a table, read from a map and checked."""

    def __init__(self, data: Buffer, first: int, counts: array[int], stored: array[int], claims: list[str]) -> None:
        """`counts` and `stored` are those of the page's rows; the length of `data` fits them."""
        rows = len(counts)
        view = memoryview(data)
        self._first = first
        self._stored = stored
        self._names = claims
        self._digests = bytes(view[: rows * DIGEST_BYTES])
        self._claims = from_little_endian("I", view[rows * DIGEST_BYTES : rows * (DIGEST_BYTES + 4)])
        self._lengths = from_little_endian("I", view[rows * (DIGEST_BYTES + 4) :])
        self._starts = list(accumulate(counts, initial=0))

    @staticmethod
    def plain_size(counts: array[int]) -> int:
        """Bytes of a page whose rows have so many clusters."""
        return len(counts) * (DIGEST_BYTES + 4) + 4 * sum(counts)

    def check(self, geometry: Geometry, name: str) -> None:
        """Raises `ObjectCorrupt` (of the map `name`) for a row that no map may hold."""
        if max(self._claims) >= len(self._names):
            raise ObjectCorrupt(name=name, detail="a segment has a claim that is not in the table")
        for place, stored in enumerate(self._stored):
            problem = row_problem(self._row_lengths(place), stored, geometry)
            if problem:
                raise ObjectCorrupt(name=name, detail=f"segment {self._first + place} is impossible: {problem}")

    def row(self, number: int) -> SegmentRow:
        """The row with this number of the whole table."""
        place = number - self._first
        digest = self._digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]
        claim = self._names[self._claims[place]]
        return SegmentRow(digest, claim, self._stored[place], tuple(self._row_lengths(place)))

    def _row_lengths(self, place: int) -> array[int]:
        return self._lengths[self._starts[place] : self._starts[place + 1]]


def row_problem(lengths: tuple[int, ...] | array[int], stored: int, geometry: Geometry) -> str | None:
    """Why a segment cannot have these lengths; None if it can."""
    if not 1 <= len(lengths) <= geometry.clusters_per_segment:
        return f"it has {len(lengths)} clusters, of at most {geometry.clusters_per_segment}"
    if min(lengths) < 1 or max(lengths) > frame_limit(geometry.cluster_size):
        return "a frame is empty or longer than zstd makes it"
    if padded(sum(lengths)) != stored:
        return f"its frames take {sum(lengths)} bytes and it has {stored}"
    return None
