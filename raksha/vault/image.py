"""The `Backup` of a map: a valid qcow2 made of table objects and of the map's segments, none of them copied.

::

    Backup = table parts (header, L1, L2 tables, refcounts; ≤ 4 MiB each) | every segment in the map's order

The tables are built in a spool file from the map alone; only they are sent. Where there are more parts than a manifest
may have, runs of parts become manifests of their own, to any depth. Table parts and nested manifests are named
`backupjobs_segments/<d[0:2]>/<digest>-<claim>` like segments: write-once, inert until the map's root names them. The
layout and both digests are in docs/qcow2-layout.md.

Promised: memory does not grow with the data, but for 8 bytes a segment and 12 a page. A map whose segments are partly
dead (after a consolidation) makes a sound image too: what no cluster refers to has no refcount.

Not here: making `Backup` itself (the committer does, from `ImageObjects.parts`), and verifying segments.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Protocol

import blake3
from msgspec import Struct

from raksha.errors import ObjectTruncated
from raksha.qcow2.compressed import CompressedImage
from raksha.qcow2.header import Backing
from raksha.qcow2.layout import Layout
from raksha.qcow2.refcounts import RefcountOverflow, Refcounts
from raksha.qcow2.tables import big_endian
from raksha.types import Geometry
from raksha.vault.segment import SegmentRow, object_name
from raksha.vault.store import Part, Store

#: bytes of one table part, but for the last
PART_SIZE = 4 * 1024 * 1024
#: log2 of the bits of a refcount: what every reader of qcow2 knows, and what a disk full of one pattern may need
_REFCOUNT_ORDERS = (4, 5)


class Columns(Protocol):
    """One page of a map, as far as an image is concerned."""

    kinds: bytearray
    segments: array[int]
    indexes: array[int]


class ImageSource(Protocol):
    """A map, or anything that answers like its `MapReader`."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def segment_count(self) -> int: ...

    def page_numbers(self) -> Iterable[int]: ...

    def page(self, number: int) -> Columns | None: ...

    def segment(self, number: int) -> SegmentRow: ...

    def stored_sizes(self) -> Sequence[int]: ...


class ImageObjects(Struct, frozen=True):
    """What stands in the vault after `write_image_objects`."""

    #: what `Backup` is to be made of; at most `Store.manifest_limit`
    parts: tuple[Part, ...]
    #: everything that was put, each name once: table parts and nested manifests
    objects: tuple[Part, ...]
    #: bytes of the whole `Backup`
    size: int


def write_image_objects(
    store: Store, source: ImageSource, claim: str, backing: str | None, spool_dir: Path
) -> ImageObjects:
    """Build the tables of a map's image and put them, and nested manifests where needed.

    The segments must be in the store already. `backing` is the path of the parent's `Backup`, relative to the folder
    of this one. May be repeated: the same claim puts the same bytes under the same names. Raises what the store
    raises, `BadName` for the backing, `ValueError` for a geometry or a claim that cannot be, `OSError` of the spool.
    """
    objects: dict[str, Part] = {}

    def put_manifest(parts: Sequence[Part]) -> Part:
        part = Part(object_name(_list_digest(parts), claim), sum(each.size for each in parts), manifest=True)
        store.put_manifest(part.name, parts)
        objects[part.name] = part
        return part

    with tempfile.TemporaryFile(dir=spool_dir, prefix="image-") as spool:
        image = write_tables(source, backing, spool)
        tables = []
        for part, data in _cut(spool, image.layout.data_offset, claim):
            # equal parts (runs of empty tables) are one object
            if part.name not in objects:
                store.put(part.name, data)
                objects[part.name] = part
            tables.append(part)
    parts = nest(
        chain(tables, _segment_parts(source)), len(tables) + source.segment_count, store.manifest_limit, put_manifest
    )
    return ImageObjects(parts, tuple(objects.values()), image.layout.file_size)


def write_image(
    source: ImageSource,
    fetch: Callable[[SegmentRow], bytes],
    target: BinaryIO,
    backing: str | None,
    workers: int = 4,
) -> int:
    """Write the same image as one local file; returns its size in bytes.

    `fetch` returns the whole stored segment, verified as far as the caller wants it; it is called from `workers`
    threads. `target` is an empty regular file, open for reading and writing; the caller makes it durable, or removes
    it after an error. Raises what `fetch` raises, and like `write_image_objects`.
    """
    image = write_tables(source, backing, target)

    def copy(row: SegmentRow, offset: int) -> None:
        _pwrite(target, _whole(fetch, row), offset)

    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="raksha-image") as pool:
        try:
            for index in range(source.segment_count):
                waiting.append(pool.submit(copy, source.segment(index), image.segment_offset(index)))
                if len(waiting) > 2 * workers:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
    return image.layout.file_size


def read_image(
    source: ImageSource, fetch: Callable[[SegmentRow], bytes], spool: BinaryIO, workers: int = 4
) -> tuple[int, Iterator[bytes]]:
    """The same image, standing alone, as its size in bytes and its content from the first byte to the last.

    `spool` is an empty file for the tables, which must stay open while the content is read. At most `2 * workers`
    segments are in memory. Raises like `write_image`, from the iterator as well.
    """
    image = write_tables(source, None, spool)
    return image.layout.file_size, _content(source, image.layout.data_offset, fetch, spool, workers)


def _content(
    source: ImageSource, tables: int, fetch: Callable[[SegmentRow], bytes], spool: BinaryIO, workers: int
) -> Iterator[bytes]:
    for offset in range(0, tables, PART_SIZE):
        yield _pread(spool, min(PART_SIZE, tables - offset), offset)
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="raksha-image") as pool:
        try:
            for index in range(source.segment_count):
                waiting.append(pool.submit(_whole, fetch, source.segment(index)))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()


def _whole(fetch: Callable[[SegmentRow], bytes], row: SegmentRow) -> bytes:
    body = fetch(row)
    if len(body) != row.stored:
        raise ObjectTruncated(name=row.name, wanted=row.stored, got=len(body))
    return body


def write_tables(source: ImageSource, backing: str | None, file: BinaryIO) -> CompressedImage:
    """Write everything before the data to the start of a file that is open for reading and writing.

    Refcounts get wider where the usual 16 bits cannot count: that takes a second go.
    """
    narrow, wide = _REFCOUNT_ORDERS
    try:
        return _write_tables(source, backing, file, narrow)
    except RefcountOverflow:
        file.truncate(0)
        return _write_tables(source, backing, file, wide)


def _write_tables(source: ImageSource, backing: str | None, file: BinaryIO, refcount_order: int) -> CompressedImage:
    image = CompressedImage(
        source.geometry,
        source.page_numbers(),
        source.stored_sizes(),
        lambda number: source.segment(number).lengths,
        refcount_order,
    )
    layout = image.layout
    refcounts = Refcounts(layout, _Blocks(file, layout))
    refcounts.add_tables()
    _pwrite(file, image.header(Backing(backing) if backing is not None else None), 0)
    _pwrite(file, image.l1_table(), layout.l1_offset)
    offset = layout.l2_offset
    for number in image.pages:
        page = source.page(number)
        entries = image.l2_entries(page.kinds, page.segments, page.indexes) if page else array("Q")
        refcounts.add_entries(entries)
        _pwrite(file, big_endian(entries).ljust(layout.cluster_size, b"\0"), offset)
        offset += layout.cluster_size
    _pwrite(file, image.refcount_table(), layout.refcount_table_offset)
    refcounts.flush()
    return image


def nest(
    parts: Iterator[Part], count: int, limit: int, put_manifest: Callable[[Sequence[Part]], Part]
) -> tuple[Part, ...]:
    """At most `limit` parts that assemble to the `count` parts given: those, or manifests over runs of them.

    Never some of both: then every object of the vault is either named here or below. Holds `limit` parts a level.
    """
    if count <= limit:
        return tuple(islice(parts, count))
    # parts below each part of this level
    span = limit
    while span * limit < count:
        span *= limit
    level = []
    while count:
        here = min(span, count)
        level.append(put_manifest(nest(parts, here, limit, put_manifest)))
        count -= here
    return tuple(level)


def _segment_parts(source: ImageSource) -> Iterator[Part]:
    for index in range(source.segment_count):
        row = source.segment(index)
        yield Part(row.name, row.stored)


def _cut(file: BinaryIO, size: int, claim: str) -> Iterator[tuple[Part, bytes]]:
    """The first `size` bytes of a file as table parts."""
    for offset in range(0, size, PART_SIZE):
        data = _pread(file, min(PART_SIZE, size - offset), offset)
        yield Part(object_name(blake3.blake3(data).digest(), claim), len(data)), data


def _list_digest(parts: Sequence[Part]) -> bytes:
    """What names a nested manifest: its parts, one a line."""
    lines = (f"{part.name} {part.size} {'manifest' if part.manifest else 'object'}\n" for part in parts)
    return blake3.blake3("".join(lines).encode()).digest()


class _Blocks:
    """Refcount blocks at their place in the file."""

    def __init__(self, file: BinaryIO, layout: Layout) -> None:
        self._file = file
        self._layout = layout

    def load(self, block: int) -> bytes:
        return _pread(self._file, self._layout.cluster_size, self._offset(block))

    def save(self, block: int, data: bytes) -> None:
        _pwrite(self._file, data, self._offset(block))

    def _offset(self, block: int) -> int:
        return self._layout.refcount_blocks_offset + block * self._layout.cluster_size


def _pwrite(file: BinaryIO, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


def _pread(file: BinaryIO, length: int, offset: int) -> bytes:
    """Exactly `length` bytes of what was written before."""
    pieces = []
    while length:
        piece = os.pread(file.fileno(), length, offset)
        if not piece:
            raise EOFError(f"the spool file ends before {offset + length}")
        pieces.append(piece)
        length, offset = length - len(piece), offset + len(piece)
    return b"".join(pieces)
