"""The first cluster of an image: header, header extensions, name of the backing file.

Field names are those of QEMU's docs/interop/qcow2.rst. All numbers are big-endian.
"""

from __future__ import annotations

import re
import struct

from msgspec import Struct

from raksha.errors import BadName
from raksha.qcow2.layout import Layout

_MAGIC = b"QFI\xfb"
_VERSION = 3
#: with the byte for the compression type, padded to a multiple of 8
_HEADER_LENGTH = 112
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQIIB7x")
_EXTENSION = struct.Struct(">II")
_EXTENSION_END = 0
_EXTENSION_BACKING_FORMAT = 0xE2792ACA
_EXTENSION_FEATURE_NAMES = 0x6803F857
_INCOMPATIBLE = 0
_BIT_COMPRESSION_TYPE = 3
_ZSTD = 1
#: QEMU refuses longer ones
_BACKING_NAME_MAX = 1023
#: QEMU takes what stands before a colon for the name of a driver, "json:" among them
_PROTOCOL = re.compile(r"[^/]*:")


class Backing(Struct, frozen=True):
    """The image that shows through where this one has nothing."""

    #: as QEMU is to open it; a relative one counts from the directory of the image
    file: str
    #: always written: QEMU must never guess it
    format: str = "qcow2"


def header_cluster(layout: Layout, backing: Backing | None, *, zstd: bool) -> bytes:
    """The first cluster, `layout.cluster_size` bytes. `zstd`: the image has clusters compressed that way.

    Raises `BadName` for a backing file name that qcow2 cannot hold or QEMU would not take for a path.
    """
    name = _backing_name(backing)
    extensions = _extensions(backing, zstd=zstd)
    name_offset = _HEADER_LENGTH + len(extensions)
    head = _HEADER.pack(
        _MAGIC,
        _VERSION,
        name_offset if name else 0,
        len(name),
        layout.cluster_bits,
        layout.virtual_size,
        0,  # crypt_method: none
        layout.l1_entries,
        layout.l1_offset,
        layout.refcount_table_offset,
        layout.refcount_table_clusters,
        0,  # nb_snapshots
        0,  # snapshots_offset
        1 << _BIT_COMPRESSION_TYPE if zstd else 0,  # incompatible_features
        0,  # compatible_features
        0,  # autoclear_features
        layout.refcount_order,
        _HEADER_LENGTH,
        _ZSTD if zstd else 0,
    )
    return (head + extensions + name).ljust(layout.cluster_size, b"\0")


def _backing_name(backing: Backing | None) -> bytes:
    if backing is None:
        return b""
    name = backing.file.encode("utf-8", "surrogateescape")
    if not name or b"\0" in name:
        raise BadName(name=backing.file, noun="a backing file", detail="it is empty or holds a zero byte")
    if len(name) > _BACKING_NAME_MAX:
        raise BadName(
            name=backing.file, noun="a backing file", detail=f"qcow2 has room for {_BACKING_NAME_MAX} bytes of path"
        )
    if _PROTOCOL.match(backing.file):
        raise BadName(
            name=backing.file, noun="a backing file", detail="QEMU would read the part before the colon as a driver"
        )
    return name


def _extensions(backing: Backing | None, *, zstd: bool) -> bytes:
    found = b""
    if backing:
        found += _extension(_EXTENSION_BACKING_FORMAT, backing.format.encode("ascii"))
    if zstd:
        # lets a QEMU before 5.1 say what it lacks instead of a bit number
        name = struct.pack(">BB46s", _INCOMPATIBLE, _BIT_COMPRESSION_TYPE, b"compression type")
        found += _extension(_EXTENSION_FEATURE_NAMES, name)
    return found + _extension(_EXTENSION_END, b"")


def _extension(kind: int, data: bytes) -> bytes:
    return _EXTENSION.pack(kind, len(data)) + data + b"\0" * (-len(data) % 8)
