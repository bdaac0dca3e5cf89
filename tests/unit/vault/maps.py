"""Random and hand-made maps for the tests of maps and chains."""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping
from typing import BinaryIO

import blake3
import zstandard

from raksha.types import Geometry
from raksha.vault.map import ABSENT, DATA, ZERO, MapBuilder, MapEntry, MapReader, Source
from raksha.vault.map_root import MAGIC, TRAILER, MapRoot, Section, section_digest
from raksha.vault.map_segments import PAGE_ROWS
from raksha.vault.segment import SegmentRow, padded

#: the smallest cluster a map may have: a page is 512 entries
CLUSTER = 4096
KEY_ID = "key-1"

#: kind, segment's name, index, hash, as a dict-based model holds it
Model = dict[int, tuple[int, str, int, bytes]]


def row(number: int, clusters: int = 4, claim: str = "run.1") -> SegmentRow:
    lengths = tuple(100 + number % 50 + index for index in range(clusters))
    return SegmentRow(blake3.blake3(b"%d" % number).digest(), claim, padded(sum(lengths)), lengths)


def hash_of(seed: object) -> bytes:
    return blake3.blake3(repr(seed).encode()).digest(length=16)


KINDS = (ABSENT, DATA, ZERO)


def random_model(seed: int, clusters: int, *, kinds: tuple[int, ...] = KINDS, claim: str = "run.1") -> Model:
    """Runs of random length; segments of 1 to 64 clusters, packed in guest order or shared."""
    chance = random.Random(seed)
    model: Model = {}
    cluster = 0
    while cluster < clusters:
        kind = chance.choice(kinds)
        length = min(chance.choice([1, 1, 2, 5, 64, 200, 1500]), clusters - cluster)
        for each in range(cluster, cluster + length) if kind != ABSENT else ():
            number = chance.randrange(40)
            if kind == DATA:
                index = chance.randrange(size_of(number))
                model[each] = (DATA, row(number, size_of(number), claim).name, index, hash_of((seed, each)))
            else:
                model[each] = (ZERO, "", 0, b"")
        cluster += length
    return model


def size_of(number: int) -> int:
    return 1 + number * 7 % 64


def build(builder: MapBuilder, model: Model, claim: str = "run.1") -> None:
    """Put a model made with the same claim into a builder, entry by entry."""
    names = {row(number, size_of(number), claim).name: row(number, size_of(number), claim) for number in range(40)}
    for cluster, (kind, name, index, digest) in sorted(model.items()):
        segment = builder.add_segment(names[name]) if kind == DATA else 0
        builder.add(cluster, kind, segment, index, digest)


def view(reader: MapReader) -> Model:
    """Everything in a map."""
    return {entry.cluster: named(reader, entry) for page in reader.pages() for entry in page}


def named(reader: MapReader, entry: MapEntry) -> tuple[int, str, int, bytes]:
    name = reader.segment(entry.segment).name if entry.kind == DATA else ""
    return entry.kind, name, entry.index, entry.hash


class BytesSource:
    """A map in memory; shorter than it says, if asked."""

    def __init__(self, data: bytes, name: str = "BackupMap-x", size: int | None = None) -> None:
        self.data = data
        self.name = name
        self.size = len(data) if size is None else size

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def read_file(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


class Forgery:
    """A map whose every digest is right and whose content is whatever the test wants."""

    def __init__(self, geometry: Geometry, segment_page_rows: int = PAGE_ROWS) -> None:
        self.root = MapRoot(geometry, KEY_ID, segment_page_rows)
        self.body = bytearray()

    def section(self, plain: bytes) -> Section:
        return self.raw_section(zstandard.ZstdCompressor().compress(plain))

    def raw_section(self, stored: bytes) -> Section:
        section = Section(len(self.body), len(stored), section_digest(stored))
        self.body += stored
        return section

    def page(self, number: int, plain: bytes) -> None:
        self.root.page_numbers.append(number)
        self.root.pages.append(self.section(plain))

    def segments(self, rows: list[SegmentRow], claims: Mapping[str, int], stored: list[int] | None = None) -> None:
        """One page of the segment table, and the summary."""
        self.root.claims = list(claims)
        self.root.segment_count = len(rows)
        lengths = array("I", [length for each in rows for length in each.lengths])
        ids = array("I", [claims.get(each.claim, 0xFFFF) for each in rows])
        plain = b"".join(each.digest for each in rows) + ids.tobytes() + lengths.tobytes()
        self.root.segment_pages.append(self.section(plain))
        counts = array("H", [len(each.lengths) for each in rows])
        sizes = array("I", stored or [each.stored for each in rows])
        self.root.summary = self.section(counts.tobytes() + sizes.tobytes())

    def sealed(self, root: bytes | None = None) -> tuple[Source, str]:
        """The file, and the digest that names it."""
        data = self.root.encode() if root is None else root
        whole = bytes(self.body) + data + TRAILER.pack(len(data), MAGIC)
        return BytesSource(whole), blake3.blake3(data).hexdigest()
