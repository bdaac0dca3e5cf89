"""Images of whole, uncompressed clusters, each with a place known beforehand: what a restore writes.

Two passes over the map. The first counts the data clusters of each page and so fixes the layout; the second asks page
by page for the L2 table and the place of each cluster, in any order and from any thread, and writes where it is told::

    image = PlainImage(geometry, ((page, data clusters in it), ...), backing)
    for offset, data in image.fixed(): pwrite(data, offset)
    for page in pages: placed = image.place(page, kinds); pwrite(placed.table, placed.table_offset)
                       ... pwrite(cluster, placed.offsets[i])
    truncate(image.layout.file_size)

Data clusters stand in guest order. Held in memory: 12 bytes a page.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from raksha.qcow2 import DATA, ZERO
from raksha.qcow2.header import Backing, header_cluster
from raksha.qcow2.layout import plan
from raksha.qcow2.tables import COPIED, ZERO_ENTRY, big_endian, l1_table, refcount_table
from raksha.types import Geometry


class PlacedPage(Struct, frozen=True):
    """Where one page of a disk goes."""

    #: bytes from the start of the file
    table_offset: int
    #: one cluster
    table: bytes
    #: for each cluster of the page the byte of the file where it goes; 0 for one that is not data
    offsets: array[int]


class PlainImage:
    """Tables and places of such an image. Nothing changes after it is made: any thread may ask."""

    def __init__(self, geometry: Geometry, pages: Iterable[tuple[int, int]], backing: Backing | None = None) -> None:
        """`pages`: number and count of data clusters of all pages that name anything (data or zero), ascending.

        Raises `ValueError` for a geometry that qcow2 cannot express, `BadName` for such a backing file.
        """
        self._pages = array("I")
        self._before = array("Q", [0])
        for page, count in pages:
            self._pages.append(page)
            self._before.append(self._before[-1] + count)
        self.layout = plan(geometry, len(self._pages), self._before[-1] * geometry.cluster_size)
        self._header = header_cluster(self.layout, backing, zstd=False)

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of everything but L2 tables and data: header, L1, refcounts."""
        layout = self.layout
        size = layout.cluster_size
        yield 0, self._header
        yield layout.l1_offset, l1_table(self._pages, layout.l2_offset, size, layout.l1_clusters)
        yield (
            layout.refcount_table_offset,
            refcount_table(layout.refcount_blocks, layout.refcount_blocks_offset, size, layout.refcount_table_clusters),
        )
        per_block = layout.refcounts_per_block
        for block in range(layout.refcount_blocks):
            used = min(per_block, layout.host_clusters - block * per_block)
            counts = big_endian(array("H", [1]) * used)
            yield layout.refcount_blocks_offset + block * size, counts.ljust(size, b"\0")

    def place(self, page: int, kinds: Sequence[int]) -> PlacedPage:
        """Table and places of one page. Raises `ValueError` if it is not as it was counted."""
        slot = bisect_left(self._pages, page)
        if slot == len(self._pages) or self._pages[slot] != page:
            raise ValueError(f"page {page} was not counted")
        size = self.layout.cluster_size
        table = array("Q", bytes(size))
        offsets = array("Q", bytes(8 * len(kinds)))
        offset = self.layout.data_offset + self._before[slot] * size
        for index, kind in enumerate(kinds):
            if kind == DATA:
                offsets[index] = offset
                table[index] = COPIED | offset
                offset += size
            elif kind == ZERO:
                table[index] = ZERO_ENTRY
        if offset != self.layout.data_offset + self._before[slot + 1] * size:
            raise ValueError(f"page {page} does not have as many data clusters as were counted")
        return PlacedPage(self.layout.l2_offset + slot * size, big_endian(table), offsets)
