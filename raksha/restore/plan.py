"""The order of a restore: segment by segment, so that each is fetched once.

A disk's clusters lie scattered over the segments of a chain of maps: an increment packs changed clusters from
anywhere, equal stretches of a disk share one segment, and consolidated maps mix all of that. Going through the disk
in guest order would fetch segments again and again. So the plan turns the maps inside out, with a counting sort::

    count the live clusters of each segment                 (one pass over the maps)
    give each segment its place in a temporary file
    put each cluster's record in its segment's place        (a second pass)
    read that file from front to back: one piece of work per segment

Segments are numbered as they first appear in guest order, so writes stay nearly in order where that is possible.

Memory: a few bytes per segment (64 clusters), whatever the size of the disk; the records are in the temporary file.
Not here: fetching and verifying. The plan believes the maps, which verify themselves.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import compress, groupby
from pathlib import Path
from types import TracebackType

from msgspec import Struct

from raksha.restore.source import Pages
from raksha.types import Geometry
from raksha.vault.chain import ChainPage
from raksha.vault.map import MapReader
from raksha.vault.map_page import DATA
from raksha.vault.segment import HASH_BYTES, SegmentRow

#: guest cluster, index within the segment, layer whose map names it, hash
_RECORD = struct.Struct(f"<QHH{HASH_BYTES}s")
#: clusters that one piece of work writes at most; a segment that serves more is fetched again for the rest
MAX_ENTRIES = 16384
_ONLY_DATA = bytes(1 if kind == DATA else 0 for kind in range(256))


class Entry(Struct, frozen=True):
    """One cluster of the disk and where its content is."""

    #: number of the cluster on the disk
    cluster: int
    #: position within the segment
    index: int
    #: which map of the chain names it, hence which key its hash was made with
    layer: int
    hash: bytes


class SegmentWork(Struct, frozen=True):
    """A segment and the clusters that come from it, in guest order."""

    segment: SegmentRow
    entries: Sequence[Entry]


def data_mask(page: ChainPage) -> bytes:
    """A byte per cluster: 1 where it has data."""
    return bytes(page.kinds).translate(_ONLY_DATA)


class Plan:
    """What to fetch and where to write it. A context manager; not for several threads at once."""

    def __init__(self, pages: Pages, readers: Sequence[MapReader], spool_dir: Path) -> None:
        self.geometry: Geometry = pages.geometry
        self._pages = pages
        self._readers = readers
        self._ids = _SegmentIds(readers)
        self._counts = array("Q")
        with contextlib.ExitStack() as stack:
            stack.callback(self._ids.close)
            self._file = stack.enter_context(tempfile.TemporaryFile(dir=spool_dir))
            self._count()
            self._sort()
            self._close = stack.pop_all()

    def __enter__(self) -> Plan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._close.close()

    @property
    def clusters(self) -> int:
        """Clusters of the disk that have data."""
        return sum(self._counts)

    @property
    def segments(self) -> int:
        """Segments that have to be fetched."""
        return len(self._counts)

    @property
    def data_bytes(self) -> int:
        """Plain bytes to write."""
        return self.clusters * self.geometry.cluster_size

    def work(self) -> Iterator[SegmentWork]:
        """Every segment that is needed, with every cluster it supplies."""
        self._file.seek(0)
        for number, count in enumerate(self._counts):
            row = self._ids.row(number)
            while count:
                taken = min(count, MAX_ENTRIES)
                records = _RECORD.iter_unpack(self._file.read(taken * _RECORD.size))
                yield SegmentWork(row, [Entry(*record) for record in records])
                count -= taken

    def _count(self) -> None:
        for number in self._pages.page_numbers():
            page = self._pages.page(number)
            named = compress(zip(page.layers, page.segments, strict=True), data_mask(page))
            for (layer, segment), count in Counter(named).items():
                known = self._ids.number(layer, segment)
                if known == len(self._counts):
                    self._counts.append(0)
                self._counts[known] += count

    def _sort(self) -> None:
        places = array("Q")
        total = 0
        for count in self._counts:
            places.append(total)
            total += count
        for number in self._pages.page_numbers():
            page = self._pages.page(number)
            columns = list(zip(page.layers, page.segments, strict=True))
            with_data = compress(range(len(columns)), data_mask(page))
            for (layer, segment), positions in groupby(with_data, key=columns.__getitem__):
                records = self._records(number, page, layer, positions)
                known = self._ids.number(layer, segment)
                os.pwrite(self._file.fileno(), records, places[known] * _RECORD.size)
                places[known] += len(records) // _RECORD.size

    def _records(self, number: int, page: ChainPage, layer: int, positions: Iterator[int]) -> bytes:
        first, indexes, hashes = number * self.geometry.page_clusters, page.indexes, bytes(page.hashes)
        return b"".join(
            _RECORD.pack(first + at, indexes[at], layer, hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES])
            for at in positions
        )


def zero_runs(pages: Pages) -> Iterator[tuple[int, int]]:
    """Stretches of the disk without data, as (first cluster, count), in guest order."""
    geometry = pages.geometry
    start = 0
    for number in pages.page_numbers():
        first = number * geometry.page_clusters
        for has_data, run in groupby(enumerate(data_mask(pages.page(number))), key=lambda at: at[1]):
            if has_data:
                positions = [at for at, _ in run]
                if first + positions[0] > start:
                    yield start, first + positions[0] - start
                start = first + positions[-1] + 1
    if geometry.clusters > start:
        yield start, geometry.clusters - start


class _SegmentIds:
    """Numbers the segments of all maps in order of first appearance; one that several maps name has one number."""

    def __init__(self, readers: Sequence[MapReader]) -> None:
        self._readers = readers
        #: by layer: number + 1 of each of its segments, 0 for none yet
        self._known = [array("I", bytes(4 * reader.segment_count)) for reader in readers]
        #: by number: where its row is
        self._layers = array("H")
        self._rows = array("I")
        # names take some 200 bytes each: too many for memory; SQLite keeps them in a private temporary file
        self._names = sqlite3.connect("", isolation_level=None) if len(readers) > 1 else None
        if self._names is not None:
            self._names.execute("PRAGMA journal_mode = OFF")
            self._names.execute("CREATE TABLE segment (name TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID")

    def number(self, layer: int, segment: int) -> int:
        found = self._known[layer][segment]
        if not found:
            found = self._named(layer, segment) + 1
            self._known[layer][segment] = found
        return found - 1

    def _named(self, layer: int, segment: int) -> int:
        new = len(self._rows)
        if self._names is not None:
            name = self._readers[layer].segment(segment).name
            row = self._names.execute("SELECT number FROM segment WHERE name = ?", (name,)).fetchone()
            if row is not None:
                return int(row[0])
            self._names.execute("INSERT INTO segment VALUES (?, ?)", (name, new))
        self._layers.append(layer)
        self._rows.append(segment)
        return new

    def row(self, number: int) -> SegmentRow:
        return self._readers[self._layers[number]].segment(self._rows[number])

    def close(self) -> None:
        if self._names is not None:
            self._names.close()
