"""Refcounts against the plainest count there is."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raksha.qcow2 import refcounts as module
from raksha.qcow2.layout import plan
from raksha.qcow2.refcounts import RefcountOverflow, Refcounts
from raksha.qcow2.tables import frame_entries
from raksha.types import Geometry

GIB = 1 << 30


class Blocks(dict):
    """Keeps blocks, and how often one was asked for again."""

    loads = 0

    def load(self, block):
        self.loads += 1
        return self[block]

    def save(self, block, data):
        assert len(data) == 4096
        self[block] = data


def stored(layout, blocks):
    letter = {4: "H", 5: "I"}[layout.refcount_order]
    assert sorted(blocks) == list(range(layout.refcount_blocks))
    each = layout.refcounts_per_block
    counts = (struct.unpack(f">{each}{letter}", blocks[block]) for block in range(layout.refcount_blocks))
    return [count for block in counts for count in block]


@given(
    segments=st.lists(st.lists(st.integers(1, 5000), min_size=1, max_size=64), min_size=1, max_size=8),
    far=st.integers(1, 30_000_000),
    order=st.sampled_from([4, 5]),
    data=st.data(),
)
def test_every_frame_counts_in_each_cluster_it_touches(segments, far, order, data):
    # far apart, so that the window of two blocks is too small and blocks come back
    size = far // 512 * 512
    layout = plan(Geometry(GIB, 4096), 3, size * len(segments) + 1_000_000, order)
    used = data.draw(st.lists(st.sampled_from(range(len(segments))), min_size=1, max_size=20))
    expected = [1] * (layout.data_offset // 4096)
    expected += [0] * (layout.refcount_blocks * layout.refcounts_per_block - len(expected))
    blocks = Blocks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WINDOW", 0)
        refcounts = Refcounts(layout, blocks)
        refcounts.add_tables()
        for segment in used:
            base = layout.data_offset + segment * size
            entries = [base + entry for entry in frame_entries(segments[segment], 12)]
            start = base
            for length in segments[segment]:
                first, last = start // 512 * 512 // 4096, ((start + length - 1) // 512 * 512 + 511) // 4096
                for cluster in range(first, last + 1):
                    expected[cluster] += 1
                start += length
            refcounts.add_entries([0, 1, *entries])
        refcounts.flush()
    assert stored(layout, blocks) == expected


def test_guest_order_never_loads_a_block_again(monkeypatch):
    monkeypatch.setattr(module, "_WINDOW", 0)
    layout = plan(Geometry(GIB, 4096), 512, 512 * 4096 * 512)
    blocks = Blocks()
    refcounts = Refcounts(layout, blocks)
    refcounts.add_tables()
    for segment in range(512 * 64):
        base = layout.data_offset + segment * 8 * 4096
        refcounts.add_entries([base + entry for entry in frame_entries([4096] * 8, 12)])
    refcounts.flush()
    assert blocks.loads == 0
    assert set(stored(layout, blocks)[: layout.host_clusters]) == {1}


def test_more_references_than_16_bits_can_say():
    """A disk full of one pattern: every range has the same segment."""
    entries = [(1 << 62) + 600 * 4096] * 65536
    narrow = plan(Geometry(GIB, 4096), 512, 4096)
    with pytest.raises(RefcountOverflow):
        Refcounts(narrow, Blocks()).add_entries(entries)
    wide = plan(Geometry(GIB, 4096), 512, 4096, 5)
    blocks = Blocks()
    refcounts = Refcounts(wide, blocks)
    refcounts.add_entries(entries)
    refcounts.flush()
    assert stored(wide, blocks)[600] == 65536
