"""A chain of maps seen as one disk: the newest entry that is not absent wins.

The size is the newest map's. A map in between that is shorter cuts off everything older beyond its end, as a shorter
backing file does: what lies there is absent unless a newer map has it.

Promised: a page costs one page in memory and time in proportion to what the maps have there, mostly copied in runs;
`consolidate` moves no data, and its map holds only segments that are still referred to.

Not for several threads at the same page; pages handed out are the caller's own. Maps with clusters of different sizes
cannot be overlaid (`ChainIncompatible`): the clusters would have to be cut again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import accumulate, groupby, takewhile

from msgspec.structs import replace

from raksha.errors import ChainIncompatible
from raksha.types import Geometry
from raksha.vault.map_page import ABSENT, DATA, MapPage
from raksha.vault.map_reader import MapReader
from raksha.vault.map_writer import MapBuilder
from raksha.vault.segment import HASH_BYTES

_UNKNOWN = 0xFFFFFFFF
#: in a copy that stands alone, absent reads as zeroes
_ZERO_TO_ABSENT = bytes(DATA if kind == DATA else ABSENT for kind in range(256))


class ChainPage(MapPage):
    """A page of the merged view. `segments` are rows of the table of the map that `layers` names."""

    __slots__ = ("layers",)

    def __init__(self, number: int, width: int) -> None:
        super().__init__(number, width)
        #: which of the chain's maps each entry is from, 0 the oldest; 0 where absent
        self.layers = array("H", bytes(2 * width))

    def lay_over(self, page: MapPage, layer: int) -> None:
        """Put everything that `page` has on top."""
        for start, stop in page.runs():
            run = slice(start, stop)
            hashes = slice(start * HASH_BYTES, stop * HASH_BYTES)
            self.kinds[run] = page.kinds[run]
            self.segments[run] = page.segments[run]
            self.indexes[run] = page.indexes[run]
            self.hashes[hashes] = page.hashes[hashes]
            self.layers[run] = array("H", [layer]) * (stop - start)

    def cut(self, clusters: int) -> None:
        """Make absent what lies beyond a disk of so many clusters."""
        start = max(clusters - self.first_cluster, 0)
        if any(self.kinds[start:]):
            self.clear(start)
            self.layers[start:] = array("H", bytes(2 * (self.width - start)))


class Chain:
    """Maps from the oldest, a full, to the newest."""

    def __init__(self, readers: Sequence[MapReader]) -> None:
        """At least one reader. They stay the caller's. Raises `ChainIncompatible`."""
        sizes = {reader.geometry.cluster_size for reader in readers}
        if len(sizes) != 1:
            raise ChainIncompatible(
                name=readers[-1].name if readers else "(none)",
                detail=f"its maps have clusters of {' and '.join(map(str, sorted(sizes)))} bytes",
            )
        self.readers = tuple(readers)
        per_segment = max(reader.geometry.clusters_per_segment for reader in readers)
        #: of the newest map; clusters in a segment: the most that any map has
        self.geometry: Geometry = replace(readers[-1].geometry, clusters_per_segment=per_segment)
        # by layer: clusters that can still be seen from the top
        newest_first = accumulate((reader.geometry.clusters for reader in reversed(readers)), min)
        self._visible = list(newest_first)[::-1]

    def page_numbers(self) -> array[int]:
        """Pages in which any map has anything that can be seen, ascending. All others are absent throughout."""
        ends = [-(-clusters // self.geometry.page_clusters) for clusters in self._visible]
        visible = (_up_to(end, reader) for end, reader in zip(ends, self.readers, strict=True))
        return array("I", (number for number, _ in groupby(merge(*visible))))

    def page(self, number: int) -> ChainPage:
        """One page of the merged view, absent throughout where no map has anything.

        Raises `ObjectCorrupt`, `ObjectTruncated`, and what a map's source raises.
        """
        merged = ChainPage(number, self.geometry.page_clusters)
        for layer, page in self._pages_that_show(number):
            merged.lay_over(page, layer)
            merged.cut(self._visible[layer])
        return merged

    def _pages_that_show(self, number: int) -> list[tuple[int, MapPage]]:
        """Layer and page, oldest first, from the newest page that hides all below it."""
        showing = []
        for layer in reversed(range(len(self.readers))):
            page = self.readers[layer].page(number)
            if page is not None:
                showing.append((layer, page))
                if ABSENT not in page.kinds:
                    break
        return showing[::-1]


def _up_to(end: int, reader: MapReader) -> Iterator[int]:
    return takewhile(end.__gt__, reader.page_numbers())


def consolidate(chain: Chain, builder: MapBuilder) -> None:
    """Fill `builder` with a full copy of what the chain shows, over the same segments.

    Zero entries become absent. The builder has the chain's size and cluster size, room for its segments, and its key.
    Raises `ChainIncompatible`, and like `Chain.page`.
    """
    _check(chain, builder)
    numbers = [array("I", [_UNKNOWN]) * reader.segment_count for reader in chain.readers]
    for number in chain.page_numbers():
        page = chain.page(number)
        page.kinds = page.kinds.translate(_ZERO_TO_ABSENT)
        for start, stop in page.runs(DATA):
            pairs = zip(page.layers[start:stop], page.segments[start:stop], strict=True)
            renumbered = array("I")
            for (layer, segment), run in groupby(pairs):
                known = numbers[layer][segment]
                if known == _UNKNOWN:
                    known = numbers[layer][segment] = builder.add_segment(chain.readers[layer].segment(segment))
                renumbered.extend(known for _ in run)
            page.segments[start:stop] = renumbered
        if any(page.kinds):
            builder.add_page(page)


def _check(chain: Chain, builder: MapBuilder) -> None:
    name = chain.readers[-1].name
    keys = {reader.key_id for reader in chain.readers} | {builder.key_id}
    if len(keys) != 1:
        raise ChainIncompatible(name=name, detail=f"its maps were hashed with several keys ({', '.join(sorted(keys))})")
    ours, theirs = chain.geometry, builder.geometry
    fits = (ours.size, ours.cluster_size) == (theirs.size, theirs.cluster_size)
    if not fits or ours.clusters_per_segment > theirs.clusters_per_segment:
        raise ChainIncompatible(name=name, detail=f"{ours} does not go into a map of {theirs}")
