"""Entries and tables."""

import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raksha.qcow2 import ABSENT, DATA, ZERO
from raksha.qcow2.compressed import CompressedImage
from raksha.qcow2.plain import PlainImage
from raksha.qcow2.tables import COMPRESSED, COPIED, big_endian, frame_entries, l1_table
from raksha.types import Geometry

KIB = 1024


def decode(entry, cluster_bits):
    """Offset and additional sectors, straight from docs/interop/qcow2.rst."""
    assert entry >> 62 == 1
    bits = 62 - (cluster_bits - 8)
    return entry & (1 << bits) - 1, (entry & (1 << 62) - 1) >> bits


@given(
    st.integers(12, 21).flatmap(
        lambda bits: st.tuples(st.just(bits), st.lists(st.integers(1, (1 << bits) + 1024), max_size=64))
    ),
    st.integers(0, 1 << 36),
)
def test_an_entry_names_where_its_frame_starts_and_all_sectors_it_touches(drawn, sector):
    bits, lengths = drawn
    start = base = sector * 512
    for entry, length in zip(frame_entries(lengths, bits), lengths, strict=True):
        offset, more = decode(base + entry, bits)
        assert offset == start
        assert offset // 512 + more == (start + length - 1) // 512
        start += length


@pytest.mark.parametrize("lengths", [[0], [3, 0, 3], [64 * KIB * 2 + 1], [511, 128 * KIB - 510]])
def test_frames_that_no_entry_can_describe(lengths):
    with pytest.raises(ValueError, match="does not fit an entry"):
        frame_entries(lengths, 16)


def test_the_longest_frame():
    assert decode(*frame_entries([128 * KIB], 16), 16) == (0, 255)


def test_big_endian():
    assert big_endian(array("Q", [1, COPIED])) == bytes(7) + b"\1\x80" + bytes(7)
    assert big_endian(array("H", [258])) == b"\1\2"


def test_l1_names_the_tables_of_pages_that_have_one():
    table = l1_table([1, 3], 0x30000, 64 * KIB, 1)
    assert len(table) == 64 * KIB
    assert struct.unpack_from(">5Q", table) == (0, COPIED | 0x30000, 0, COPIED | 0x40000, 0)


def test_l2_of_a_compressed_image():
    image = CompressedImage(Geometry(256 * KIB), [0], [512, 1024], {0: [100], 1: [300, 500]}.__getitem__)
    data = 5 * 64 * KIB
    assert image.layout.data_offset == data
    entries = image.l2_entries([DATA, ZERO, ABSENT, DATA], [1, 0, 0, 0], [1, 0, 0, 0])
    assert len(entries) == 8192
    assert list(entries[:4]) == [COMPRESSED | 1 << 54 | data + 512 + 300, 1, 0, COMPRESSED | data]
    assert not any(entries[4:])


def test_a_segment_that_is_not_padded():
    with pytest.raises(ValueError, match="513 bytes is not padded"):
        CompressedImage(Geometry(256 * KIB), [0], [513], {}.__getitem__)


def test_plain_places_in_guest_order_whatever_order_is_asked():
    geometry = Geometry(3 * 512 * 4 * KIB, 4 * KIB)
    image = PlainImage(geometry, [(0, 2), (2, 1)])
    data = image.layout.data_offset
    late = image.place(2, [ABSENT] * 511 + [DATA])
    early = image.place(0, [DATA, ZERO, DATA])
    assert list(early.offsets) == [data, 0, data + 4 * KIB]
    assert struct.unpack_from(">4Q", early.table) == (COPIED | data, 1, COPIED | data + 4 * KIB, 0)
    assert late.offsets[511] == data + 8 * KIB
    assert late.table_offset == early.table_offset + 4 * KIB


@pytest.mark.parametrize(("page", "kinds"), [(0, [DATA]), (0, [DATA] * 3), (1, []), (3, [DATA])])
def test_a_page_that_is_not_as_counted(page, kinds):
    image = PlainImage(Geometry(3 * 512 * 4 * KIB, 4 * KIB), [(0, 2), (2, 1)])
    with pytest.raises(ValueError, match=f"page {page} "):
        image.place(page, kinds)
