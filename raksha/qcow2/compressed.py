"""Images whose clusters are zstd frames, packed at byte granularity in segments: the `Backup` of the vault.

A frame is stored as a *compressed* cluster even when it did not get smaller: the entry's sector count has room for
twice the cluster size. Segments stand one after the other in the order given, each padded to a sector, the first one
at a cluster. Held in memory: 8 bytes a segment, the number of each page that has an L2 table, and the entries of a
few segments.

    image = CompressedImage(geometry, pages, segment_sizes, lengths)
    image.header(backing), image.l1_table()
    for page in pages: image.l2_entries(kinds, segments, indexes)      # to be counted in Refcounts, too
    image.refcount_table(), then the blocks from Refcounts, then the segments
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import compress, count

from raksha.qcow2 import DATA, ZERO
from raksha.qcow2.header import Backing, header_cluster
from raksha.qcow2.layout import SECTOR, plan
from raksha.qcow2.tables import ZERO_ENTRY, frame_entries, l1_table, refcount_table
from raksha.types import Geometry

#: segments whose entries are kept: their clusters come in runs, so few are in turn at a time
_SEGMENTS_KEPT = 1024


class CompressedImage:
    """Everything of such an image but its data."""

    def __init__(
        self,
        geometry: Geometry,
        pages: Iterable[int],
        segment_sizes: Iterable[int],
        lengths: Callable[[int], Sequence[int]],
        refcount_order: int = 4,
    ) -> None:
        """`pages`: the numbers of all pages that name anything, ascending; `segment_sizes`: bytes of each segment,
        padding included, in the order of the file; `lengths`: bytes of each frame of a segment, by its index.

        Raises `ValueError` for a geometry that qcow2 cannot express, or a segment that is not padded to sectors.
        """
        self.pages = array("I", pages)
        starts = array("Q")
        total = 0
        for size in segment_sizes:
            if size % SECTOR:
                raise ValueError(f"a segment of {size} bytes is not padded to {SECTOR}")
            starts.append(total)
            total += size
        self._starts = starts
        self.layout = plan(geometry, len(self.pages), total, refcount_order)
        bits = self.layout.cluster_bits

        def entries_of(segment: int) -> tuple[int, ...]:
            offset = self.segment_offset(segment)
            return tuple(offset + entry for entry in frame_entries(lengths(segment), bits))

        self._entries_of = lru_cache(maxsize=_SEGMENTS_KEPT)(entries_of)

    def segment_offset(self, segment: int) -> int:
        """Byte of the file at which a segment starts."""
        return self.layout.data_offset + self._starts[segment]

    def header(self, backing: Backing | None) -> bytes:
        """The header cluster. Raises `BadName` for a backing file that qcow2 cannot name."""
        return header_cluster(self.layout, backing, zstd=True)

    def l1_table(self) -> bytes:
        layout = self.layout
        return l1_table(self.pages, layout.l2_offset, layout.cluster_size, layout.l1_clusters)

    def l2_entries(self, kinds: Sequence[int], segments: Sequence[int], indexes: Sequence[int]) -> array[int]:
        """The L2 table of a page, from its columns: what each cluster is, and the frame that holds it if it is data."""
        table = array("Q", bytes(self.layout.cluster_size))
        current = -1
        entries: tuple[int, ...] = ()
        # most pages of an increment are nearly empty: only what is not absent is looked at
        for place in compress(count(), kinds):
            if kinds[place] == DATA:
                segment = segments[place]
                if segment != current:
                    entries = self._entries_of(segment)
                    current = segment
                table[place] = entries[indexes[place]]
            elif kinds[place] == ZERO:
                table[place] = ZERO_ENTRY
        return table

    def refcount_table(self) -> bytes:
        layout = self.layout
        return refcount_table(
            layout.refcount_blocks, layout.refcount_blocks_offset, layout.cluster_size, layout.refcount_table_clusters
        )
