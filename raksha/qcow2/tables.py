"""Entries of L1 and L2 tables, and tables as bytes.

A compressed cluster's entry is the sum of three things that do not overlap: the flag, the number of 512-byte sectors
that its frame touches beyond the first (from bit `62 - (cluster_bits - 8)` on), and the byte at which the frame
starts. A segment starts at a sector, so the sector count of a frame does not depend on where the segment stands:
entries are made once relative to the segment, and shifted by adding its offset.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence

#: the cluster (or table) is referenced once and may be written in place
COPIED = 1 << 63
COMPRESSED = 1 << 62
#: a standard entry without a place: reads as zero, whatever the backing file holds
ZERO_ENTRY = 1


def sectors_shift(cluster_bits: int) -> int:
    """The lowest bit of the sector count in a compressed cluster's entry; the offset is below it."""
    return 62 - (cluster_bits - 8)


def frame_entries(lengths: Sequence[int], cluster_bits: int) -> tuple[int, ...]:
    """Entries of compressed frames of `lengths` bytes that follow each other from a sector boundary at offset 0.

    Raises `ValueError` for an empty frame, or one of more sectors than an entry can say (twice the cluster size).
    """
    shift = sectors_shift(cluster_bits)
    most = 1 << (cluster_bits - 8)
    entries = []
    start = 0
    for length in lengths:
        end = start + length
        sectors = (end - 1 >> 9) - (start >> 9)
        if length < 1 or sectors >= most:
            raise ValueError(f"a frame of {length} bytes does not fit an entry for clusters of {1 << cluster_bits}")
        entries.append(COMPRESSED | sectors << shift | start)
        start = end
    return tuple(entries)


def big_endian(values: array[int]) -> bytes:
    """A table or refcount block as the file holds it."""
    if sys.byteorder == "big":
        return values.tobytes()
    swapped = values[:]
    swapped.byteswap()
    return swapped.tobytes()


def l1_table(pages: Iterable[int], l2_offset: int, cluster_size: int, l1_clusters: int) -> bytes:
    """The L1 table when the L2 tables of `pages` stand one after the other from `l2_offset` on."""
    entries = array("Q", bytes(l1_clusters * cluster_size))
    for place, page in enumerate(pages):
        entries[page] = COPIED | l2_offset + place * cluster_size
    return big_endian(entries)


def refcount_table(blocks: int, blocks_offset: int, cluster_size: int, table_clusters: int) -> bytes:
    """The refcount table when its blocks stand one after the other from `blocks_offset` on."""
    entries = array("Q", bytes(table_clusters * cluster_size))
    for block in range(blocks):
        entries[block] = blocks_offset + block * cluster_size
    return big_endian(entries)
