"""Reads the head of a layer on this host: virtual size, backing file, and what must be refused.

Only for layers of a VM's own chain whose format the domain definition states as qcow2; nothing that a header names is
opened here. No lock is taken, so the layer may be in use: the fields read change only with the chain itself.
"""

from __future__ import annotations

import struct
from pathlib import Path

from msgspec import Struct

_MAGIC = 0x514649FB
_FIXED = struct.Struct(">IIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_DATA_FILE_BIT = 1 << 2
_CORRUPT_BIT = 1 << 1


class NotQcow2(ValueError):
    """The file does not start as a qcow2 image does."""


class LayerHeader(Struct, frozen=True):
    version: int
    #: bytes, as the guest sees it
    size: int
    cluster_size: int
    #: as written in the header: relative to the layer's directory, or absolute
    backing: str | None
    backing_format: str | None
    encrypted: bool
    #: number of internal snapshots
    snapshots: int
    #: the guest's data lies in another file
    data_file: bool
    #: QEMU found the image damaged
    corrupt: bool


def read_header(path: str) -> LayerHeader:
    """Raises `OSError`, or `NotQcow2`."""
    with Path(path).open("rb") as file:
        head = file.read(65536)
    if len(head) < _FIXED.size:
        raise NotQcow2(path)
    magic, version, backing_at, backing_length, bits, size, crypt, _, _, _, _, snapshots, _ = _FIXED.unpack_from(head)
    if magic != _MAGIC or version not in (2, 3):
        raise NotQcow2(path)
    incompatible, length = 0, _FIXED.size
    if version == 3:
        incompatible, _, _, _, length = _V3.unpack_from(head, _FIXED.size)
    backing = head[backing_at : backing_at + backing_length] if backing_at else b""
    backing_format = _extension(head, length, _BACKING_FORMAT)
    return LayerHeader(
        version=version,
        size=size,
        cluster_size=1 << bits,
        backing=backing.decode("utf-8", "surrogateescape") or None,
        backing_format=backing_format.decode("ascii", "replace") if backing_format else None,
        encrypted=crypt != 0,
        snapshots=snapshots,
        data_file=bool(incompatible & _DATA_FILE_BIT),
        corrupt=bool(incompatible & _CORRUPT_BIT),
    )


def _extension(head: bytes, offset: int, wanted: int) -> bytes | None:
    while offset + _EXTENSION.size <= len(head):
        kind, length = _EXTENSION.unpack_from(head, offset)
        offset += _EXTENSION.size
        if kind == 0:
            return None
        if kind == wanted:
            return head[offset : offset + length]
        offset += -(-length // 8) * 8
    return None
