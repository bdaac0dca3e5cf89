"""The first cluster, to the byte."""

import struct

import pytest

from raksha.errors import BadName
from raksha.qcow2.header import Backing, header_cluster
from raksha.qcow2.layout import plan
from raksha.types import Geometry

GIB = 1 << 30


def test_fields_of_a_compressed_image():
    layout = plan(Geometry(3 * GIB), 4, 12345 * 512)
    header = header_cluster(layout, Backing("../../../run/vm/vda/Backup"), zstd=True)
    assert len(header) == 65536
    assert header[:8] == b"QFI\xfb\0\0\0\3"
    backing_offset, backing_length, bits, size, crypt = struct.unpack_from(">QIIQI", header, 8)
    assert header[backing_offset : backing_offset + backing_length] == b"../../../run/vm/vda/Backup"
    assert not any(header[backing_offset + backing_length :])
    assert (bits, size, crypt) == (16, 3 * GIB, 0)
    l1_entries, l1_offset, table_offset, table_clusters = struct.unpack_from(">IQQI", header, 36)
    assert (l1_entries, l1_offset, table_offset, table_clusters) == (6, 65536, 6 * 65536, 1)
    assert struct.unpack_from(">IQ", header, 60) == (0, 0)  # no snapshots
    assert struct.unpack_from(">QQQII", header, 72) == (8, 0, 0, 4, 112)
    assert header[104:112] == b"\1" + bytes(7)
    assert header[112:128] == struct.pack(">II", 0xE2792ACA, 5) + b"qcow2\0\0\0"
    assert header[128:138] == struct.pack(">II", 0x6803F857, 48) + b"\0\3"
    assert header[138:].startswith(b"compression type\0")


def test_a_plain_image_needs_nothing_special_of_its_reader():
    header = header_cluster(plan(Geometry(GIB), 0, 0), None, zstd=False)
    assert struct.unpack_from(">QI", header, 8) == (0, 0)
    assert struct.unpack_from(">QQQ", header, 72) == (0, 0, 0)
    assert not any(header[104:])


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("", "empty"),
        ("a\0b", "zero byte"),
        ("/" + "x" * 1023, "1023 bytes"),
        ("json:{}", "driver"),
        ("nbd://host/", "driver"),
        ("odd:name/Backup", "driver"),
    ],
)
def test_names_that_qemu_would_not_take_for_this_path(name, detail):
    with pytest.raises(BadName, match=detail):
        header_cluster(plan(Geometry(GIB), 0, 0), Backing(name), zstd=True)


def test_the_longest_name_fits_the_smallest_cluster():
    name = "/" + "é" * 511
    header = header_cluster(plan(Geometry(GIB, 4096), 0, 0), Backing(name), zstd=True)
    assert len(header) == 4096
    assert name.encode() in header


def test_a_colon_behind_a_slash_is_a_path():
    assert b"./a:b" in header_cluster(plan(Geometry(GIB), 0, 0), Backing("./a:b"), zstd=True)
