"""A small vault made by hand: chains of maps with segments, next to a model of the disk as plain bytes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raksha.restore.context import Context
from raksha.restore.source import DiskSource
from raksha.restore.verify import CopyToVerify
from raksha.types import Geometry, ResourceKey
from raksha.vault import names
from raksha.vault.image import write_image_objects
from raksha.vault.map import DATA, ZERO, MapBuilder, MapReader, StoreSource
from raksha.vault.memory import MemoryStore
from raksha.vault.segment import ClusterHasher, Codec, SegmentRow, segment_digest
from raksha.vault.store import Store

CLUSTER = 4096
#: bytes; of larger disks there is no model
_MODEL_MAX = 1 << 26
KEY = bytes(range(32))
HASHER = ClusterHasher(KEY)


def pattern(seed: int, size: int = CLUSTER) -> bytes:
    """Data that differs by seed and does not compress to nothing."""
    return b"".join((seed * 1_000_003 + at).to_bytes(8, "little") for at in range(size // 8))


def _padded(data: bytes, number: int, geometry: Geometry) -> bytes:
    """The last cluster of a disk has zeroes beyond its end."""
    return data[: max(0, geometry.size - number * CLUSTER)].ljust(CLUSTER, b"\0")


@dataclass
class Made:
    """One stored disk copy."""

    key: ResourceKey
    reader: MapReader
    rows: list[SegmentRow]
    map_name: str
    map_size: int
    image_size: int = 0


@dataclass
class Vault:
    """Copies of one disk, each on top of the one before."""

    spool: Path
    geometry: Geometry
    store: Store = field(default_factory=MemoryStore)
    vm: str = "vm-1"
    disk: str = "vda"
    made: list[Made] = field(default_factory=list)
    #: what the disk holds at each copy
    models: list[bytes] = field(default_factory=list)
    _stored: dict[bytes, SegmentRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store.prepare()

    def add(
        self,
        clusters: Mapping[int, bytes | None],
        *,
        order: Sequence[int] | None = None,
        size: int | None = None,
        image: bool = False,
    ) -> Made:
        """A copy on top: cluster to data, or to None for zeroes. `order`: how data is packed in segments."""
        run = f"run-{len(self.made)}"
        geometry = self.geometry if size is None else Geometry(size, CLUSTER, self.geometry.clusters_per_segment)
        clusters = {number: data and _padded(data, number, geometry) for number, data in clusters.items()}
        packed = [number for number in order or sorted(clusters) if clusters[number] is not None]
        places: dict[int, tuple[SegmentRow, int, bytes]] = {}
        for at in range(0, len(packed), geometry.clusters_per_segment):
            group = packed[at : at + geometry.clusters_per_segment]
            hashes = [HASHER.hash(clusters[number]) for number in group]
            row = self._segment([clusters[number] for number in group], hashes, f"{run}.1")
            places |= {number: (row, index, hashes[index]) for index, number in enumerate(group)}
        made = self._map(run, geometry, clusters, places, image)
        self.made.append(made)
        if geometry.size <= _MODEL_MAX:
            self.models.append(self._model(clusters, geometry))
        return made

    def _segment(self, data: Sequence[bytes], hashes: Sequence[bytes], claim: str) -> SegmentRow:
        digest = segment_digest(hashes)
        if digest not in self._stored:
            lengths, body = Codec().compress(data)
            row = SegmentRow(digest, claim, len(body), lengths)
            self.store.put(row.name, body)
            self._stored[digest] = row
        return self._stored[digest]

    def _map(
        self,
        run: str,
        geometry: Geometry,
        clusters: Mapping[int, bytes | None],
        places: Mapping[int, tuple[SegmentRow, int, bytes]],
        image: bool,
    ) -> Made:
        key = ResourceKey("job", run, self.vm, self.disk)
        with MapBuilder(geometry, "key-1", self.spool) as builder:
            for number in sorted(clusters):
                if number in places:
                    row, index, hash = places[number]
                    builder.add(number, DATA, builder.add_segment(row), index, hash)
                else:
                    builder.add(number, ZERO)
            reader = builder.seal()
            parent = names.relative_image(key, self.made[-1].key) if self.made else None
            objects = write_image_objects(self.store, reader, f"{run}.1", parent, self.spool) if image else None
            built = builder.finish(*((objects.objects, objects.parts) if objects else ()))
            name = names.map_object(key, built.digest)
            self.store.put_file(name, built.file, built.size)
        if objects:
            self.store.put_manifest(names.image(key), objects.parts)
        rows = list({row.name: row for row, _, _ in places.values()}.values())
        opened = MapReader.open(StoreSource(self.store, name, built.size))
        return Made(key, opened, rows, name, built.size, objects.size if objects else 0)

    def _model(self, clusters: Mapping[int, bytes | None], geometry: Geometry) -> bytes:
        disk = bytearray(self.models[-1] if self.models else b"")
        disk = bytearray(disk[: geometry.size].ljust(geometry.clusters * CLUSTER, b"\0"))
        for number, data in clusters.items():
            disk[number * CLUSTER : (number + 1) * CLUSTER] = data or bytes(CLUSTER)
        return bytes(disk[: geometry.size])

    def source(self, count: int | None = None, store: Store | None = None) -> DiskSource:
        """The disk after the first `count` copies, its maps opened afresh in `store`."""
        store = store or self.store
        made = self.made[:count]
        readers = [MapReader.open(StoreSource(store, each.map_name, each.map_size)) for each in made]
        return DiskSource("mail", self.disk, made[-1].key.backupjobrun, store, readers, [HASHER] * len(made))

    def copies(self) -> list[CopyToVerify]:
        """For `verify`; the copies must have been made with images."""
        return [
            CopyToVerify(
                key=each.key,
                vm="mail",
                map_name=each.map_name,
                map_size=each.map_size,
                hasher=HASHER,
                image_name=names.image(each.key),
                image_size=each.image_size,
                parent=self.made[at - 1].key if at else None,
            )
            for at, each in enumerate(self.made)
        ]


class CountingStore:
    """Passes everything on and counts what is asked for; may call something before each `get`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.gets: Counter[str] = Counter()
        self.bytes = 0
        self.before_get = lambda name: None

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self.before_get(name)
        data = self._store.get(name, offset, length)
        with self._lock:
            self.gets[name] += 1
            self.bytes += len(data)
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def replace(store: Store, name: str, data: bytes) -> None:
    """Put other bytes at a name."""
    store.delete(name)
    store.put(name, data)


def flip(store: Store, name: str, at: int) -> None:
    """Change one bit of an object."""
    data = bytearray(store.get(name))
    data[at] ^= 0x10
    replace(store, name, bytes(data))


def context(spool: Path, **fields: object) -> Context:
    return Context(spool_dir=spool, **fields)
