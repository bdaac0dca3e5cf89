"""Counting references to host clusters in bounded memory.

A host cluster that holds compressed frames is referenced once by every frame that touches it, by whole sectors of
the frame's entry as QEMU counts them; frames that serve several guest clusters count for each. Bytes that no entry
names (the dead part of a segment after a consolidation) have no reference.

Blocks of counts are handed to the caller as they leave a small window, and asked for again when a reference comes
back to them: with segments in guest order that hardly happens, in any other order it costs time, not memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Protocol

from raksha.qcow2.layout import Layout
from raksha.qcow2.tables import COMPRESSED, big_endian, sectors_shift

#: bytes of counts held at once: 256 blocks at the default cluster size, which is 512 GiB of file
_WINDOW = 16 * 1024 * 1024
_TYPECODES = {4: "H", 5: "I"}


class BlockStore(Protocol):
    """Where refcount blocks are kept while they are outside the window. What was never saved is all zero."""

    def load(self, block: int) -> bytes:
        """`cluster_size` bytes as last saved."""

    def save(self, block: int, data: bytes) -> None: ...


class RefcountOverflow(Exception):
    """A host cluster has more references than the width of a refcount can say: make the image with wider ones."""


class Refcounts:
    """Counts of all host clusters of one image. Not for several threads."""

    def __init__(self, layout: Layout, store: BlockStore) -> None:
        self._layout = layout
        self._store = store
        self._typecode = _TYPECODES[layout.refcount_order]
        self._saved: set[int] = set()
        self._window: dict[int, array[int]] = {}
        self._window_blocks = max(2, _WINDOW >> layout.cluster_bits)

    def add_tables(self) -> None:
        """One reference to each cluster before the data."""
        per_block = self._layout.refcounts_per_block
        clusters = self._layout.data_offset >> self._layout.cluster_bits
        for start in range(0, clusters, per_block):
            here = min(per_block, clusters - start)
            self._block(start // per_block)[:here] = array(self._typecode, [1]) * here

    def add_entries(self, entries: Iterable[int]) -> None:
        """A reference to every host cluster that the compressed entries among these touch.

        Raises `RefcountOverflow`.
        """
        bits = self._layout.cluster_bits
        shift = sectors_shift(bits)
        offset_mask = (1 << shift) - 1
        # what is left above the offset: the sector count and the flag for "compressed"
        flag = COMPRESSED >> shift
        per_block = self._layout.refcounts_per_block
        counts: array[int] = array(self._typecode)
        base = 0
        try:
            for entry in filter(None, entries):
                if not entry & COMPRESSED:
                    continue
                offset = entry & offset_mask
                cluster = offset >> bits
                last = ((offset | 511) + ((entry >> shift ^ flag) << 9)) >> bits
                while cluster <= last:
                    index = cluster - base
                    if not 0 <= index < len(counts):
                        base = cluster // per_block * per_block
                        counts = self._block(cluster // per_block)
                        index = cluster - base
                    counts[index] += 1
                    cluster += 1
        except OverflowError as error:
            raise RefcountOverflow from error

    def flush(self) -> None:
        """Hand every block to the store; those that nothing referenced too."""
        for block, counts in self._window.items():
            self._save(block, counts)
        self._window.clear()
        nothing = bytes(self._layout.cluster_size)
        for block in range(self._layout.refcount_blocks):
            if block not in self._saved:
                self._store.save(block, nothing)

    def _block(self, block: int) -> array[int]:
        """The counts of one block, made the newest of the window."""
        counts = self._window.pop(block, None)
        if counts is None:
            counts = self._load(block)
            while len(self._window) >= self._window_blocks:
                oldest = next(iter(self._window))
                self._save(oldest, self._window.pop(oldest))
        self._window[block] = counts
        return counts

    def _load(self, block: int) -> array[int]:
        counts = array(self._typecode)
        if block not in self._saved:
            counts.frombytes(bytes(self._layout.cluster_size))
            return counts
        # swapping the bytes twice gives the number back
        counts.frombytes(self._store.load(block))
        swapped = big_endian(counts)
        counts = array(self._typecode)
        counts.frombytes(swapped)
        return counts

    def _save(self, block: int, counts: array[int]) -> None:
        self._store.save(block, big_endian(counts))
        self._saved.add(block)
