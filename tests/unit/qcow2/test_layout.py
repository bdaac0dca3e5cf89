"""Where the parts of an image stand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raksha.qcow2.layout import plan
from raksha.types import Geometry

KIB = 1024
GIB = 1 << 30
TIB = 1 << 40


@given(
    size=st.integers(0, 16 * TIB),
    bits=st.integers(14, 21),
    share=st.floats(0, 1),
    data_size=st.integers(0, 1 << 45),
    order=st.sampled_from([4, 5]),
)
def test_parts_follow_each_other_and_refcounts_cover_the_file(size, bits, share, data_size, order):
    geometry = Geometry(size, 1 << bits)
    layout = plan(geometry, int(geometry.pages * share), data_size, order)
    assert 0 <= layout.virtual_size - size < 512
    assert layout.l1_offset == layout.cluster_size
    assert layout.l1_entries * 8 <= layout.l2_offset - layout.l1_offset
    assert layout.l1_entries * geometry.page_clusters >= geometry.clusters
    assert layout.refcount_blocks * 8 <= layout.refcount_blocks_offset - layout.refcount_table_offset
    covered = layout.refcount_blocks * layout.refcounts_per_block
    assert covered >= layout.host_clusters
    # two blocks less would not do: one may be there only because the last one counts itself
    assert covered - 2 * layout.refcounts_per_block < layout.host_clusters
    assert layout.file_size == layout.data_offset + data_size
    assert layout.data_offset % layout.cluster_size == 0


def test_an_empty_disk_has_a_place_for_every_table():
    layout = plan(Geometry(0), 0, 0)
    assert (layout.virtual_size, layout.l1_entries, layout.file_size) == (0, 1, 4 * 64 * KIB)


def test_wide_refcounts_take_twice_the_blocks():
    narrow, wide = (plan(Geometry(8 * GIB), 16, 8 * GIB, order) for order in (4, 5))
    assert (narrow.refcount_blocks, wide.refcount_blocks) == (5, 9)
    assert narrow.refcounts_per_block == 2 * wide.refcounts_per_block == 32768


@pytest.mark.parametrize("cluster_size", [0, 512, 2048, 3 * 4096, 4 << 20])
def test_cluster_sizes_that_qcow2_or_we_do_not_have(cluster_size):
    class Odd(Geometry):
        pages = 1

    with pytest.raises(ValueError, match="power of two between 4 KiB and 2 MiB"):
        plan(Odd(0, cluster_size), 0, 0)


def test_a_disk_too_large_for_its_clusters():
    plan(Geometry(8 * TIB, 4 * KIB), 0, 0)
    with pytest.raises(ValueError, match="too large for clusters of 4096 bytes"):
        plan(Geometry(8 * TIB + 1, 4 * KIB), 0, 0)
    with pytest.raises(ValueError, match=r"an image of \d+ clusters is too large"):
        plan(Geometry(8 * TIB, 4 * KIB), 0, 9 * TIB)
