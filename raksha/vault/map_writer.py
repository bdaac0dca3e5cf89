"""Making a map: clusters go in ascending, one file comes out.

::

    with MapBuilder(geometry, key_id, spool_dir) as builder:
        number = builder.add_segment(row)
        builder.add_data(cluster, number, 0, hashes)     # or add, add_zeros, add_page
        reader = builder.seal()                          # everything readable: make the image's tables from it
        built = builder.finish(objects, parts)           # BuiltMap: digest, size, file

Promised: memory does not grow with the disk, but for some fifty bytes per segment and 32 per page; the same calls make
the same bytes. The file is anonymous and goes with the builder.

Not for several threads. What is wrong is the caller's fault and raises `ValueError`.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import takewhile
from operator import eq
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import blake3
import zstandard
from msgspec import Struct

from raksha.types import Buffer, Geometry
from raksha.vault.map_page import DATA, ZERO, MapPage
from raksha.vault.map_reader import FileSource, MapReader
from raksha.vault.map_root import (
    MAGIC,
    ROOT_LIMIT,
    TABLE_LIMIT,
    TRAILER,
    MapRoot,
    ObjectRow,
    Section,
    geometry_problem,
    section_digest,
)
from raksha.vault.map_segments import PAGE_ROWS, SegmentTable
from raksha.vault.segment import CLAIM, HASH_BYTES, SegmentRow
from raksha.vault.store import Part


class BuiltMap(Struct, frozen=True):
    """A finished map, not yet stored. Valid as long as its builder is open."""

    #: BLAKE3 of the root, hexadecimal: it names the object
    digest: str
    #: bytes
    size: int
    #: at its start
    file: BinaryIO


class MapBuilder:
    """A context manager."""

    def __init__(self, geometry: Geometry, key_id: str, spool_dir: Path | None = None) -> None:
        """`spool_dir` takes the anonymous file; None: where temporary files go."""
        problem = geometry_problem(geometry)
        if problem or not CLAIM.match(key_id):
            raise ValueError(problem or f"no key id: {key_id!r}")
        self.geometry = geometry
        self.key_id = key_id
        self._file: BinaryIO = tempfile.TemporaryFile(dir=spool_dir)  # noqa: SIM115 (closed by `close`)
        self._zstd = zstandard.ZstdCompressor(level=1, write_checksum=False, write_content_size=True)
        self._root = MapRoot(geometry, key_id, PAGE_ROWS)
        self._table = SegmentTable(geometry, self._spool_segments)
        self._page: MapPage | None = None
        self._width = geometry.page_clusters
        self._next_cluster = 0
        self._sealed: MapReader | None = None
        self._finished = False
        #: bytes written
        self._size = 0

    def __enter__(self) -> MapBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the file. May be called twice."""
        self._file.close()

    # -- filling ------------------------------------------------------------------------------------

    @property
    def segment_count(self) -> int:
        return len(self._table)

    def add_segment(self, row: SegmentRow) -> int:
        """Number of this segment in the map; a name that was added before keeps its number. Raises `ValueError`."""
        self._demand(self._sealed is None, "the map is sealed")
        return self._table.add(row)

    def add(self, cluster: int, kind: int, segment: int = 0, index: int = 0, hash: bytes = b"") -> None:
        """One entry, of kind `DATA` or `ZERO`. Clusters ascend over all calls. Raises `ValueError`."""
        counts = self._table.counts
        if kind not in (DATA, ZERO):
            raise ValueError(f"cluster {cluster}: kind {kind} is not for a map; what is absent is not added")
        if kind == DATA and not (0 <= segment < len(counts) and 0 <= index < counts[segment]):
            raise ValueError(f"cluster {cluster}: there is no cluster {index} in segment {segment}")
        self._advance(cluster, 1)
        number, position = divmod(cluster, self._width)
        self._page_of(number).set(position, kind, segment, index, hash)

    def add_data(self, cluster: int, segment: int, index: int, hashes: Buffer) -> None:
        """Neighbouring clusters that lie in one segment from `index` on, one for each hash. Raises `ValueError`."""
        count, rest = divmod(len(hashes), HASH_BYTES)
        if rest or not 0 <= segment < len(self._table) or not 0 <= index <= self._table.counts[segment] - count:
            raise ValueError(f"cluster {cluster}: segment {segment} has no {len(hashes)} bytes of hashes at {index}")
        view = memoryview(hashes)
        for page, position, length in self._run(cluster, count):
            page.set_data(position, segment, index, view[: length * HASH_BYTES])
            view = view[length * HASH_BYTES :]
            index += length

    def add_zeros(self, cluster: int, count: int = 1) -> None:
        """Neighbouring clusters that read as zeroes, whatever the parent holds. Raises `ValueError`."""
        for page, position, length in self._run(cluster, count):
            page.set_zero(position, length)

    def add_page(self, page: MapPage) -> None:
        """A whole page at once; its segments have been added. Raises `ValueError`."""
        self._flush_page()
        if page.width != self._width:
            raise ValueError(f"page {page.number} has {page.width} entries, not {self._width}")
        self._advance(page.first_cluster, min(page.width, self.geometry.clusters - page.first_cluster))
        problem = page.problem(self.geometry.clusters, self._table.counts)
        if problem:
            raise ValueError(f"page {page.number}: {problem}")
        self._spool_page(page)

    def _run(self, cluster: int, count: int) -> Iterator[tuple[MapPage, int, int]]:
        """Page, position in it and length, for each page that a run of clusters touches."""
        self._advance(cluster, count)
        while count:
            number, position = divmod(cluster, self._width)
            length = min(count, self._width - position)
            yield self._page_of(number), position, length
            cluster += length
            count -= length

    def _advance(self, cluster: int, count: int) -> None:
        if self._sealed is not None:
            raise ValueError("the map is sealed")
        if count < 1 or cluster < self._next_cluster or cluster + count > self.geometry.clusters:
            raise ValueError(
                f"clusters [{cluster}, {cluster + count}) do not lie between {self._next_cluster}, which comes next, "
                f"and {self.geometry.clusters}, where the disk ends"
            )
        self._next_cluster = cluster + count

    def _demand(self, condition: bool, detail: str) -> None:
        if not condition:
            raise ValueError(detail)

    # -- the file -----------------------------------------------------------------------------------

    def _page_of(self, number: int) -> MapPage:
        """The page being filled; the one before goes to the file."""
        if self._page is None or self._page.number != number:
            self._flush_page()
            self._page = MapPage(number, self._width)
        return self._page

    def _flush_page(self) -> None:
        if self._page is not None:
            self._spool_page(self._page)
            self._page = None

    def _spool_page(self, page: MapPage) -> None:
        if any(page.kinds):
            self._root.page_numbers.append(page.number)
            self._root.pages.append(self._spool(page.to_bytes()))

    def _spool_segments(self, data: bytes) -> None:
        self._root.segment_pages.append(self._spool(data))

    def _spool(self, data: bytes) -> Section:
        stored = self._zstd.compress(data)
        section = Section(self._size, len(stored), section_digest(stored))
        self._write(stored)
        return section

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._size += len(data)

    # -- ending -------------------------------------------------------------------------------------

    def seal(self) -> MapReader:
        """Nothing is added any more. The pages and segments so far, readable as long as the builder is open."""
        if self._sealed is None:
            self._flush_page()
            self._root.summary = self._spool(self._table.finish())
            self._root.segment_count = len(self._table)
            self._root.claims = self._table.claims
            self._file.flush()
            source = FileSource(self._file, "(map being made)", self._size)
            self._sealed = MapReader(source, self._root, self._size, own=True)
        return self._sealed

    def finish(self, objects: Sequence[Part] = (), parts: Sequence[Part] = ()) -> BuiltMap:
        """Seal, name what else the `Backup` needs, and end the file. Called once.

        `objects`: every piece of the image's tables and every nested manifest, in any order. `parts`: the part list
        of the `Backup` itself: some of `objects`, then no segment or every segment in the order of the table.
        Raises `ValueError`.
        """
        reader = self.seal()
        self._demand(not self._finished, "the map is finished")
        self._finished = True
        self._demand(len(objects) <= TABLE_LIMIT, f"{len(objects)} objects")
        self._root.objects = [self._object_row(each) for each in objects]
        places = {part: place for place, part in enumerate(objects)}
        known = len(list(takewhile(places.__contains__, parts)))
        self._root.top = array("I", map(places.__getitem__, parts[:known]))
        self._root.segments_follow = known < len(parts)
        if self._root.segments_follow:
            self._demand(len(parts) - known == len(self._table), "the parts end with other segments than the table has")
            segments = (Part(row.name, row.stored) for row in reader.segments())
            self._demand(all(map(eq, segments, parts[known:])), "a part is neither an object nor the next segment")
        root = self._root.encode()
        self._demand(len(root) <= ROOT_LIMIT, f"its root would have {len(root)} bytes")
        self._write(root + TRAILER.pack(len(root), MAGIC))
        self._file.seek(0)
        return BuiltMap(blake3.blake3(root).hexdigest(), self._size, self._file)

    def _object_row(self, part: Part) -> ObjectRow:
        text, _, claim = part.name.rpartition("/")[2].partition("-")
        try:
            row = ObjectRow(bytes.fromhex(text), self._table.claim(claim), part.size, part.manifest)
        except ValueError as error:
            raise ValueError(f"{part.name!r} is not named like a part of an image") from error
        self._demand(self._root.part(row) == part and part.size > 0, f"{part} cannot be a part of an image")
        return row
