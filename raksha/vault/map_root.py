"""The root of a map: geometry, and where and with which digest every other section of the file is found.

The digest in a map's name is BLAKE3 of its root, and the root holds a digest of every section: whatever is read of a
map is verified up to its name. Byte tables: docs/vault-format.md.

Promised: `MapRoot.decode` accepts nothing whose counts do not fit its length, and no value out of bounds. Where
sections lie is checked when one is read (`map_reader`): a root may name a million of them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import blake3
from msgspec import Struct, field

from raksha.errors import ObjectCorrupt, VaultNewer
from raksha.types import Buffer, Geometry
from raksha.vault.map_page import from_little_endian, little_endian
from raksha.vault.segment import CLAIM, DIGEST_BYTES, object_name
from raksha.vault.store import Part

MAGIC = b"RAKSHAMP"
VERSION = 1
#: bytes of a section's digest
SECTION_DIGEST_BYTES = 16

#: length of the root, magic: the last bytes of the file
TRAILER = struct.Struct("<Q8s")
#: the largest root that is read: two million pages
ROOT_LIMIT = 64 << 20
#: segments of one map: 64 TiB of 4 MiB segments
SEGMENT_LIMIT = 1 << 24
#: claims, objects and parts of one map, each
TABLE_LIMIT = 1 << 16
MIN_CLUSTER, MAX_CLUSTER = 4096, 2 << 20
#: plain bytes of one segment, and clusters of one
MAX_SEGMENT, MAX_SEGMENT_CLUSTERS = 64 << 20, 4096
MAX_DISK = 1 << 62
#: frames in one page of the segment table: 4 MiB of lengths
MAX_PAGE_FRAMES = 1 << 20

_HEADER = struct.Struct("<8sHHIQIIIIIIIIII")
_SECTION = struct.Struct(f"<QI{SECTION_DIGEST_BYTES}s")
_OBJECT = struct.Struct(f"<{DIGEST_BYTES}sQII")
_SEGMENTS_FOLLOW = 1
_MANIFEST = 1


class Section(NamedTuple):
    """A stretch of the file that is read and verified as one."""

    offset: int
    #: bytes in the file, compressed
    stored: int
    #: BLAKE3 of those, `SECTION_DIGEST_BYTES` of output
    digest: bytes


_NOWHERE = Section(0, 0, bytes(SECTION_DIGEST_BYTES))


def section_digest(data: Buffer) -> bytes:
    return blake3.blake3(data).digest(length=SECTION_DIGEST_BYTES)


class Sections:
    """A packed table of sections: a large map has a million, as objects they would fill the memory."""

    def __init__(self, packed: Buffer = b"") -> None:
        self.packed = bytearray(packed)

    def __len__(self) -> int:
        return len(self.packed) // _SECTION.size

    def __getitem__(self, number: int) -> Section:
        return Section(*_SECTION.unpack_from(self.packed, number * _SECTION.size))

    def append(self, section: Section) -> None:
        self.packed += _SECTION.pack(*section)


class ObjectRow(NamedTuple):
    """An object other than a segment that the `Backup` needs: a piece of the image's tables, or a nested manifest."""

    digest: bytes
    #: row in the table of claims
    claim: int
    #: bytes; of a manifest, what it assembles to
    size: int
    manifest: bool


class MapRoot(Struct):
    """Everything in the root, decoded."""

    geometry: Geometry
    #: the key of all hashes in the map
    key_id: str
    #: rows in one page of the segment table
    segment_page_rows: int
    #: who wrote the segments and objects named here, each once
    claims: list[str] = field(default_factory=list)
    segment_count: int = 0
    #: how many clusters and bytes each segment has
    summary: Section = _NOWHERE
    #: numbers of the pages that are there, ascending
    page_numbers: array[int] = field(default_factory=lambda: array("I"))
    pages: Sections = field(default_factory=Sections)
    segment_pages: Sections = field(default_factory=Sections)
    objects: list[ObjectRow] = field(default_factory=list)
    #: the parts of the `Backup`: rows of `objects`, in order ...
    top: array[int] = field(default_factory=lambda: array("I"))
    #: ... and after them every segment in the order of the table
    segments_follow: bool = False

    def part(self, row: ObjectRow) -> Part:
        return Part(object_name(row.digest, self.claims[row.claim]), row.size, row.manifest)

    def encode(self) -> bytes:
        key, claims = self.key_id.encode("ascii"), "\n".join(self.claims).encode("ascii")
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            _SEGMENTS_FOLLOW if self.segments_follow else 0,
            self.geometry.cluster_size,
            self.geometry.size,
            self.geometry.clusters_per_segment,
            self.segment_page_rows,
            len(self.page_numbers),
            self.segment_count,
            len(self.claims),
            len(self.objects),
            len(self.top),
            len(key),
            len(claims),
            0,
        )
        objects = [_OBJECT.pack(row.digest, row.size, row.claim, row.manifest * _MANIFEST) for row in self.objects]
        columns = (header, _SECTION.pack(*self.summary), little_endian(self.page_numbers), self.pages.packed)
        return b"".join((*columns, self.segment_pages.packed, *objects, little_endian(self.top), key, claims))

    @classmethod
    def decode(cls, data: Buffer, name: str) -> MapRoot:
        """The reverse, everything checked. Raises `ObjectCorrupt` (of the object `name`), `VaultNewer`."""
        cut = _Cutter(data, name)
        _, version, flags, cluster_size, size, per_segment, rows, *counts, reserved = cut.header()
        cut.demand(version >= 1 and not reserved and flags in (0, _SEGMENTS_FOLLOW), "its header is malformed")
        geometry = Geometry(size, cluster_size, per_segment)
        cut.demand(geometry_problem(geometry) is None, f"its geometry is impossible: {geometry}")
        pages, segments, claims, objects, top, key_bytes, claims_bytes = counts
        table_fits = rows >= 1 and rows * per_segment <= MAX_PAGE_FRAMES and segments <= SEGMENT_LIMIT
        cut.demand(table_fits, "its segment table is impossible")
        cut.demand(max(claims, objects, top) <= TABLE_LIMIT, "it names too many objects")
        root = cls(geometry, "", rows, segment_count=segments)
        root.summary = Section(*_SECTION.unpack(cut.take(_SECTION.size)))
        root.page_numbers = from_little_endian("I", cut.take(4 * pages))
        root.pages = Sections(cut.take(_SECTION.size * pages))
        root.segment_pages = Sections(cut.take(_SECTION.size * -(-segments // rows)))
        root.objects = list(cut.objects(objects))
        root.top = from_little_endian("I", cut.take(4 * top))
        root.segments_follow = flags == _SEGMENTS_FOLLOW
        root.key_id = cut.text(key_bytes)
        text = cut.text(claims_bytes)
        root.claims = text.split("\n") if text else []
        cut.demand(cut.rest() == 0 and len(root.claims) == claims, "its length does not fit its counts")
        root._check(cut)
        return root

    def _check(self, cut: _Cutter) -> None:
        numbers = self.page_numbers
        cut.demand(all(low < high for low, high in pairwise(numbers)), "its pages are not in order")
        cut.demand(not numbers or numbers[-1] < self.geometry.pages, "a page lies beyond the end of the disk")
        cut.demand(all(map(CLAIM.match, (self.key_id, *self.claims))), "a claim or the key's id is malformed")
        cut.demand(all(row.claim < len(self.claims) and row.size for row in self.objects), "an object is malformed")
        cut.demand(max(self.top, default=-1) < len(self.objects), "a part of the image is not in the table")


class _Cutter:
    """Takes the root apart from front to back."""

    def __init__(self, data: Buffer, name: str) -> None:
        self._data = memoryview(data)
        self._name = name
        self._position = 0

    def demand(self, condition: bool, detail: str) -> None:
        if not condition:
            raise ObjectCorrupt(name=self._name, detail=detail)

    def header(self) -> tuple[int, ...]:
        """Raises `VaultNewer` for a version that is not known here; its other fields may mean anything."""
        fields = _HEADER.unpack(self.take(_HEADER.size))
        self.demand(fields[0] == MAGIC, "it does not begin as a map's root")
        if fields[1] > VERSION:
            raise VaultNewer(url=self._name, found=fields[1], known=VERSION)
        return fields

    def take(self, length: int) -> memoryview:
        self.demand(self.rest() >= length, "it is shorter than its counts say")
        piece = self._data[self._position : self._position + length]
        self._position += length
        return piece

    def objects(self, count: int) -> Iterator[ObjectRow]:
        for digest, size, claim, flags in _OBJECT.iter_unpack(self.take(_OBJECT.size * count)):
            self.demand(flags in (0, _MANIFEST), "it names an object of no known kind")
            yield ObjectRow(digest, claim, size, flags == _MANIFEST)

    def text(self, length: int) -> str:
        try:
            return bytes(self.take(length)).decode("ascii")
        except UnicodeDecodeError as error:
            raise ObjectCorrupt(name=self._name, detail="a text in it is not ASCII") from error

    def rest(self) -> int:
        return len(self._data) - self._position


def geometry_problem(geometry: Geometry) -> str | None:
    """Why a map cannot have this geometry; None if it can."""
    size, cluster, per_segment = geometry.size, geometry.cluster_size, geometry.clusters_per_segment
    if not MIN_CLUSTER <= cluster <= MAX_CLUSTER or cluster & (cluster - 1):
        return f"a cluster of {cluster} bytes: it must be a power of two from {MIN_CLUSTER} to {MAX_CLUSTER}"
    if not 1 <= per_segment <= MAX_SEGMENT_CLUSTERS or per_segment * cluster > MAX_SEGMENT:
        return f"{per_segment} clusters in a segment: from 1 to {MAX_SEGMENT_CLUSTERS}, at most {MAX_SEGMENT} bytes"
    if not 0 <= size <= MAX_DISK or geometry.pages > 1 << 32:
        return f"a disk of {size} bytes is beyond what a map can describe"
    return None
