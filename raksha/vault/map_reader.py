"""Reading a map piece by piece, trusting nothing.

A reader fetches the root, compares it with the digest that the caller (or the object's name) gives, and after that
only the sections that are asked for, each compared with its digest in the root.

Promised: every page and row handed out is what was written, in bounds and in canonical form; otherwise
`ObjectCorrupt` or `ObjectTruncated` with the map's name. Memory: the root, 6 bytes per segment, a few pages of the
segment table, and what the source caches. Safe for several threads.

Not promised: that the segments exist, or hold what the map says. That is seen when they are read.
"""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from typing import BinaryIO, Protocol

import blake3

from raksha.errors import ObjectCorrupt, ObjectTruncated
from raksha.types import Geometry
from raksha.vault.map_page import ENTRY_BYTES, MapPage, from_little_endian
from raksha.vault.map_root import MAGIC, ROOT_LIMIT, TRAILER, MapRoot, Section, section_digest
from raksha.vault.map_segments import SegmentPage
from raksha.vault.segment import SegmentRow, decompress
from raksha.vault.store import Part, Store

#: what `StoreSource` fetches at once, and how many of those it keeps
BLOCK_BYTES = 1 << 20
BLOCKS_KEPT = 4
#: pages of the segment table that a reader keeps
SEGMENT_PAGES_KEPT = 8
#: bytes of the summary for each segment
_SUMMARY_BYTES = 2 + 4


class Source(Protocol):
    """The bytes of a map, wherever they are."""

    name: str
    #: bytes
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Exactly those bytes, which lie within the size. Raises `ObjectTruncated`."""


class FileSource:
    """A map in a local file."""

    def __init__(self, file: BinaryIO, name: str, size: int | None = None) -> None:
        """The file stays the caller's, who keeps it open. `size` None: all of it."""
        self._fd = file.fileno()
        self.name = name
        self.size = os.fstat(self._fd).st_size if size is None else size

    def read(self, offset: int, length: int) -> bytes:
        pieces = []
        missing = length
        while missing:
            piece = os.pread(self._fd, missing, offset + length - missing)
            if not piece:
                raise ObjectTruncated(name=self.name, wanted=offset + length, got=offset + length - missing)
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)


class StoreSource:
    """A map in a vault, fetched in blocks: neighbouring pages come with one request."""

    def __init__(self, store: Store, name: str, size: int | None = None) -> None:
        """`size` None: asked of the store. Raises `ObjectMissing` then."""
        self._store = store
        self.name = name
        self.size = store.head(name).size if size is None else size
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES
        with self._lock:
            data = b"".join(map(self._block, range(first, last + 1)))
        start = offset - first * BLOCK_BYTES
        return data[start : start + length]

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            start = number * BLOCK_BYTES
            wanted = min(BLOCK_BYTES, self.size - start)
            block = self._store.get(self.name, start, wanted)
            if len(block) != wanted:
                raise ObjectTruncated(name=self.name, wanted=start + wanted, got=start + len(block))
            self._blocks[number] = block
            if len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return block


class MapReader:
    """One map. Made by `open`, or by a builder for what it holds so far."""

    def __init__(self, source: Source, root: MapRoot, sections_end: int, *, own: bool = False) -> None:
        """`root` is verified; sections lie before `sections_end`. `own`: this process made the pages just now, so what
        has their digests makes sense."""
        self._source = source
        self._own = own
        self._root = root
        self._end = sections_end
        self._lock = threading.Lock()
        self._summary: tuple[array[int], array[int]] | None = None
        self._segment_pages: OrderedDict[int, SegmentPage] = OrderedDict()

    @classmethod
    def open(cls, source: Source, digest: str | None = None) -> MapReader:
        """`digest`: hexadecimal, of the root; None: it ends the source's name (`…-<digest>`).

        Raises `ObjectCorrupt`, `ObjectTruncated`, `VaultNewer`, and what the source raises.
        """
        name = source.name
        end = source.size - TRAILER.size
        if end < 0:
            raise ObjectTruncated(name=name, wanted=TRAILER.size, got=source.size)
        length, magic = TRAILER.unpack(source.read(end, TRAILER.size))
        if magic != MAGIC or not 0 < length <= min(end, ROOT_LIMIT):
            raise ObjectCorrupt(name=name, detail="it does not end as a map")
        data = source.read(end - length, length)
        if blake3.blake3(data).hexdigest() != (digest or name.rpartition("-")[2]):
            raise ObjectCorrupt(name=name, detail="its root does not have the digest that names it")
        return cls(source, MapRoot.decode(data, name), end - length)

    # -- what the root tells ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def geometry(self) -> Geometry:
        return self._root.geometry

    @property
    def key_id(self) -> str:
        return self._root.key_id

    @property
    def segment_count(self) -> int:
        return self._root.segment_count

    @property
    def claims(self) -> tuple[str, ...]:
        """Who wrote the segments and objects named here, each once."""
        return tuple(self._root.claims)

    @property
    def objects(self) -> list[Part]:
        """What the `Backup` needs besides segments: pieces of its tables and nested manifests."""
        return list(map(self._root.part, self._root.objects))

    def parts(self) -> Iterator[Part]:
        """The part list of the `Backup` itself, in order."""
        for place in self._root.top:
            yield self._root.part(self._root.objects[place])
        if self._root.segments_follow:
            for row in self.segments():
                yield Part(row.name, row.stored)

    def object_names(self) -> Iterator[str]:
        """Everything in the container of segments that this disk copy needs."""
        yield from (part.name for part in self.objects)
        yield from (row.name for row in self.segments())

    # -- pages --------------------------------------------------------------------------------------

    def page_numbers(self) -> Iterator[int]:
        """Of the pages that are there, ascending. All others are absent as a whole."""
        return iter(self._root.page_numbers)

    @property
    def page_count(self) -> int:
        return len(self._root.page_numbers)

    def page(self, number: int) -> MapPage | None:
        """The caller's own copy of a page; None if all of it is absent. Raises `ObjectCorrupt`, `ObjectTruncated`."""
        numbers = self._root.page_numbers
        place = bisect_left(numbers, number)
        if place == len(numbers) or numbers[place] != number:
            return None
        data = self._section(self._root.pages[place], self.geometry.page_clusters * ENTRY_BYTES)
        page = MapPage.from_bytes(number, data)
        problem = None if self._own else page.problem(self.geometry.clusters, self.segment_counts())
        if problem:
            raise ObjectCorrupt(name=self.name, detail=f"page {number}: {problem}")
        return page

    def pages(self) -> Iterator[MapPage]:
        """Every page that is there, ascending."""
        for number in self._root.page_numbers:
            page = self.page(number)
            if page is not None:
                yield page

    # -- segments -----------------------------------------------------------------------------------

    def segment_counts(self) -> array[int]:
        """Clusters in each segment. Not to be changed."""
        return self._load_summary()[0]

    def stored_sizes(self) -> array[int]:
        """Bytes of each segment, padding included. Not to be changed."""
        return self._load_summary()[1]

    def segment(self, number: int) -> SegmentRow:
        """One row of the table. Quick for neighbours. Raises `IndexError`, `ObjectCorrupt`, `ObjectTruncated`."""
        if not 0 <= number < self.segment_count:
            raise IndexError(f"segment {number} of {self.segment_count}")
        place = number // self._root.segment_page_rows
        with self._lock:
            page = self._segment_pages.get(place)
            if page is not None:
                self._segment_pages.move_to_end(place)
        if page is None:
            page = self._load_segment_page(place)
        return page.row(number)

    def segments(self, start: int = 0, stop: int | None = None) -> Iterator[SegmentRow]:
        """Rows `[start, stop)` of the table, in order."""
        return map(self.segment, range(start, self.segment_count if stop is None else stop))

    def _load_segment_page(self, place: int) -> SegmentPage:
        counts, stored = self._load_summary()
        first = place * self._root.segment_page_rows
        rows = slice(first, first + self._root.segment_page_rows)
        data = self._section(self._root.segment_pages[place], SegmentPage.plain_size(counts[rows]))
        page = SegmentPage(data, first, counts[rows], stored[rows], self._root.claims)
        page.check(self.geometry, self.name)
        with self._lock:
            self._segment_pages[place] = page
            if len(self._segment_pages) > SEGMENT_PAGES_KEPT:
                self._segment_pages.popitem(last=False)
        return page

    def _load_summary(self) -> tuple[array[int], array[int]]:
        if self._summary is None:
            count = self.segment_count
            data = memoryview(self._section(self._root.summary, count * _SUMMARY_BYTES))
            counts = from_little_endian("H", data[: 2 * count])
            if count and not 1 <= min(counts) <= max(counts) <= self.geometry.clusters_per_segment:
                raise ObjectCorrupt(name=self.name, detail="a segment has an impossible number of clusters")
            self._summary = counts, from_little_endian("I", data[2 * count :])
        return self._summary

    def _section(self, section: Section, plain: int) -> bytes:
        """The `plain` bytes of a section, verified before they are decompressed."""
        most = plain + (plain >> 8) + 128
        if not 0 < section.stored <= most or section.offset + section.stored > self._end:
            raise ObjectCorrupt(name=self.name, detail=f"a section lies outside: {section.offset}+{section.stored}")
        data = self._source.read(section.offset, section.stored)
        if section_digest(data) != section.digest:
            raise ObjectCorrupt(name=self.name, detail=f"the section at {section.offset} does not have its digest")
        return decompress(data, plain, self.name)
