"""Are all objects there, and do they hold what was stored?

::

    read every page of every map, verified by its digest; note the objects that each map needs, each object once
    each object: there, and of the right size?
    with `data`: fetch each object once; decode and hash every cluster; tables and manifests against their digests;
                 and does every map name clusters that hold what it says they hold?

Findings are collected, never raised: one damaged object does not hide another. An unreachable vault is an error.
Memory: the list of objects is in a temporary file; what is held grows with the number of findings only.

Without `data` a flipped byte goes unnoticed: only presence and size are looked at. So it is with data outside of a
`Share`, which reads some at a time.

Healing: the digest in a segment's name is made of the hashes of all its clusters. Whoever read the same data later
stored it under the same digest; where its bytes fit what the maps say of the damaged one, they take its place.
"""

from __future__ import annotations

import os
import tempfile
import threading
from array import array
from collections.abc import Iterator, Sequence
from itertools import dropwhile, groupby, zip_longest

from blake3 import blake3
from msgspec import Struct

from raksha.errors import Damaged, ObjectCorrupt, ObjectTruncated, ParentMissing
from raksha.restore.context import Context
from raksha.restore.fetch import in_parallel
from raksha.restore.inventory import Inventory, NeededObject, NeededSegment
from raksha.restore.segments import cluster_hashes, get_segment
from raksha.types import ResourceKey
from raksha.vault import names
from raksha.vault.map import DATA, MapPage, MapReader, StoreSource
from raksha.vault.segment import HASH_BYTES, ClusterHasher, SegmentRow
from raksha.vault.store import Part, Store

#: in the place of a segment's
_UNREAD = 2**64 - 1


class CopyToVerify(Struct, frozen=True):
    """One stored disk copy, as its metadata describes it."""

    key: ResourceKey
    #: as a person knows the VM
    vm: str
    #: `container/key` of the map, and its bytes
    map_name: str
    map_size: int
    hasher: ClusterHasher
    #: `container/key` of the `Backup`, and its bytes
    image_name: str
    image_size: int
    #: what it builds on; it must be among the copies that are verified
    parent: ResourceKey | None


class Finding(Struct, frozen=True):
    """Something that is wrong with an object."""

    #: `container/key`
    object: str
    #: stable name of the kind of fault, as of the errors
    code: str
    detail: str
    #: stored disk copies that cannot be restored, or not be opened as `Backup`, because of it
    hits: tuple[ResourceKey, ...]


class Share(Struct, frozen=True):
    """Some of the data: `percent` hundredths of all segments, from the one at `offset` on, by their digests. Segments
    of the same digest are in the same hundredth for ever."""

    percent: int = 100
    offset: int = 0

    def has(self, digest: bytes) -> bool:
        return (int.from_bytes(digest[:8], "big") - self.offset) % 100 < self.percent


def verify(
    store: Store,
    copies: Sequence[CopyToVerify],
    context: Context,
    *,
    data: bool = False,
    share: Share = Share(),  # noqa: B008 (frozen)
    healed: list[str] | None = None,
) -> list[Finding]:
    """Everything wrong with these copies, sorted by object. Raises `VaultError` errors and `Interrupted` only.

    `share`: of the data that is read. `healed`: gets the names of segments that were damaged and are whole again; None:
    nothing is changed.
    """
    with Inventory() as inventory, _Hashes(context) as hashes:
        check = _Check(store, copies, context, inventory, hashes, share, healed)
        check.maps()
        check.images()
        if data:
            check.contents()
            check.names()
        else:
            check.presence()
        return check.findings()


class _Hashes:
    """The hashes found in all segments, by place, in a temporary file."""

    def __init__(self, context: Context) -> None:
        self._file = tempfile.TemporaryFile(dir=context.spool_dir)  # noqa: SIM115 (closed by `__exit__`)

    def __enter__(self) -> _Hashes:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, place: int, hashes: Sequence[bytes]) -> None:
        os.pwrite(self._file.fileno(), b"".join(hashes), place * HASH_BYTES)

    def get(self, place: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count * HASH_BYTES, place * HASH_BYTES)


class _Check:
    """One verification."""

    def __init__(
        self,
        store: Store,
        copies: Sequence[CopyToVerify],
        context: Context,
        inventory: Inventory,
        hashes: _Hashes,
        share: Share,
        healed: list[str] | None,
    ) -> None:
        self._store = store
        self._copies = copies
        self._context = context
        self._inventory = inventory
        self._hashes = hashes
        self._share = share
        self._healed = healed
        self._lock = threading.Lock()
        self._found: set[Finding] = set()
        #: places of segments that are damaged: maps are not blamed for them
        self._damaged: set[int] = set()
        self._dependents = _dependents(copies)
        self._keys = {copy.key for copy in copies}
        #: by number of the copy; only those whose map is whole
        self._readers: dict[int, MapReader] = {}
        self._cluster_sizes: dict[int, int] = {}

    def findings(self) -> list[Finding]:
        return sorted(self._found, key=lambda finding: (finding.object, finding.code, finding.detail))

    def _note(self, object: str, error: Damaged, disks: Sequence[int]) -> None:
        hits = sorted({self._copies[each].key for disk in disks for each in self._dependents[disk]})
        with self._lock:
            self._found.add(Finding(error.fields.get("name", object), error.code, str(error), tuple(hits)))

    def maps(self) -> None:
        """Open and read every map; a map that cannot be read gives no more to check."""
        for number, copy in enumerate(self._copies):
            self._context.check()
            try:
                size = self._store.head(copy.map_name).size
                if size != copy.map_size:
                    raise ObjectTruncated(name=copy.map_name, wanted=copy.map_size, got=size)
                reader = MapReader.open(StoreSource(self._store, copy.map_name, size))
                self._cluster_sizes[number] = reader.geometry.cluster_size
                for page in reader.page_numbers():
                    reader.page(page)
                for row in reader.segments():
                    self._inventory.add_segment(row, number)
                for part in reader.objects:
                    self._inventory.add_object(part, number)
            except Damaged as error:
                self._note(copy.map_name, error, [number])
            else:
                self._readers[number] = reader
            if copy.parent is not None and copy.parent not in self._keys:
                lost = ParentMissing(run=copy.key.backupjobrun, parent=copy.parent.backupjobrun)
                self._note(names.metadata(copy.parent), lost, [number])

    def images(self) -> None:
        """Each `Backup` is made of what its map says, through all nested manifests."""
        for number, copy in enumerate(self._copies):
            self._context.check()
            reader = self._readers.get(number)
            try:
                size = self._store.head(copy.image_name).size
                if size != copy.image_size:
                    raise ObjectTruncated(name=copy.image_name, wanted=copy.image_size, got=size)
                if reader is not None:
                    self._same_parts(copy.image_name, reader)
            except Damaged as error:
                if not self._is_being_consolidated(copy):
                    self._note(copy.image_name, error, [number])

    def _is_being_consolidated(self, copy: CopyToVerify) -> bool:
        """A consolidation was cut off after the `Backup`, or a service's before it: another map, whole, says what it is
        made of. Nothing is lost, and whoever prunes next ends it or takes it back."""
        container, _, key = f"{names.folder(copy.key)}/{names.MAP_PREFIX}".partition("/")
        for name in self._store.names(container, key):
            try:
                if name != copy.map_name:
                    reader = MapReader.open(StoreSource(self._store, name, self._store.head(name).size))
                    self._same_parts(copy.image_name, reader)
                    return True
            except Damaged:
                continue
        return False

    def _same_parts(self, name: str, reader: MapReader) -> None:
        tables = {part.name: part.size for part in reader.objects if not part.manifest}
        leaves = self._leaves(name)
        rest = dropwhile(lambda part: tables.get(part.name) == part.size, leaves)
        rows = (Part(row.name, row.stored) for row in reader.segments())
        for found, wanted in zip_longest(rest, rows):
            if found != wanted:
                raise ObjectCorrupt(name=name, detail="it is not made of the parts that its map names")

    def _leaves(self, name: str) -> Iterator[Part]:
        for part in self._store.parts(name):
            if part.manifest:
                yield from self._leaves(part.name)
            else:
                yield part

    def presence(self) -> None:
        """Every object is there and has its size."""
        count, _ = self._inventory.total()
        self._context.progress.begin("objects", count)
        try:
            in_parallel(self._inventory.segments(), self._segment_there, self._context)
            in_parallel(self._inventory.objects(), self._object_there, self._context)
        finally:
            self._context.progress.end()

    def _segment_there(self, needed: NeededSegment) -> None:
        row = needed.row
        try:
            self._there(Part(row.name, row.stored))
        except Damaged as error:
            self._note(row.name, error, self._inventory.segment_users(needed))
        self._context.progress.advance(1)

    def _object_there(self, needed: NeededObject) -> None:
        try:
            self._there(needed.part)
        except Damaged as error:
            self._note(needed.part.name, error, self._inventory.object_users(needed))

    def _there(self, part: Part) -> None:
        found = self._store.head(part.name)
        if found.size < part.size:
            raise ObjectTruncated(name=part.name, wanted=part.size, got=found.size)
        if found.size > part.size or found.manifest != part.manifest:
            what = "manifest" if found.manifest else "object"
            raise ObjectCorrupt(name=part.name, detail=f"it is a {what} of {found.size} bytes instead of {part.size}")

    def contents(self) -> None:
        """Every object holds what was stored."""
        _, size = self._inventory.total()
        self._context.progress.begin("data", size)
        try:
            in_parallel(self._inventory.segments(), self._segment_holds, self._context)
            in_parallel(self._inventory.objects(), self._object_holds, self._context)
        finally:
            self._context.progress.end()

    def _segment_holds(self, needed: NeededSegment) -> None:
        row = needed.row
        if not self._share.has(row.digest):
            self._segment_there(needed)
            return
        hasher, cluster_size = self._copies[needed.disk].hasher, self._cluster_sizes[needed.disk]
        try:
            found = cluster_hashes(get_segment(self._store, row), row, hasher, cluster_size)
        except Damaged as error:
            healed = self._heal(row, hasher, cluster_size)
            if healed is None:
                with self._lock:
                    self._damaged.add(needed.place)
                self._note(row.name, error, self._inventory.segment_users(needed))
            else:
                self._hashes.put(needed.place, healed)
        else:
            self._hashes.put(needed.place, found)
        self._context.progress.advance(row.stored, row.stored)

    def _heal(self, row: SegmentRow, hasher: ClusterHasher, cluster_size: int) -> list[bytes] | None:
        """The hashes of its clusters, once it is whole again; None: nobody has stored its data a second time."""
        if self._healed is None:
            return None
        container, _, key = row.name.partition("/")
        for name in sorted(self._store.names(container, key.removesuffix(row.claim))):
            if name == row.name:
                continue
            try:
                body = self._store.get(name)
                if len(body) != row.stored:
                    continue
                cluster_hashes(body, row, hasher, cluster_size)
                self._store.put(row.name, body)
                found = cluster_hashes(get_segment(self._store, row), row, hasher, cluster_size)
            except Damaged:  # that one is no better, or is going just now
                continue
            with self._lock:
                self._healed.append(row.name)
            return found
        return None

    def _object_holds(self, needed: NeededObject) -> None:
        part = needed.part
        try:
            self._there(part)
            # what manifests hold was compared part by part
            if not part.manifest and blake3(self._store.get(part.name)).hexdigest() not in part.name:
                raise ObjectCorrupt(name=part.name, detail="it does not have the digest that names it")
        except Damaged as error:
            self._note(part.name, error, self._inventory.object_users(needed))

    def names(self) -> None:
        """Every map records, for each cluster, the hash of what the segment that it names holds."""
        for number, reader in self._readers.items():
            places = array("Q", (self._place(row, number) for row in reader.segments()))
            for page in reader.pages():
                self._context.check()
                cluster = self._wrong_name(page, places)
                if cluster is not None:
                    detail = f"cluster {cluster} is not in the segment that it names"
                    self._note(reader.name, ObjectCorrupt(name=reader.name, detail=detail), [number])
                    break

    def _place(self, row: SegmentRow, number: int) -> int:
        return self._inventory.add_segment(row, number) if self._share.has(row.digest) else _UNREAD

    def _wrong_name(self, page: MapPage, places: array[int]) -> int | None:
        """The first cluster of a page whose hash is not that of what it names; damaged and unread segments are left
        out."""
        named = [places[segment] for segment in page.segments] if places else []
        for start, stop in page.runs(DATA):
            for place, run in groupby(range(start, stop), key=named.__getitem__):
                if place == _UNREAD or place in self._damaged:
                    continue
                positions = list(run)
                indexes = page.indexes[positions[0] : positions[-1] + 1]
                known = self._hashes.get(place, max(indexes) + 1)
                for at, index in zip(positions, indexes, strict=True):
                    if page.hash(at) != known[index * HASH_BYTES : (index + 1) * HASH_BYTES]:
                        return page.first_cluster + at
        return None


def _dependents(copies: Sequence[CopyToVerify]) -> list[set[int]]:
    """For each copy itself and all that build on it, by number."""
    numbers = {copy.key: number for number, copy in enumerate(copies)}
    found = [{number} for number in range(len(copies))]
    for number, copy in enumerate(copies):
        seen = {number}
        parent = numbers.get(copy.parent) if copy.parent else None
        while parent is not None and parent not in seen:
            seen.add(parent)
            found[parent].add(number)
            above = copies[parent].parent
            parent = numbers.get(above) if above else None
    return found
