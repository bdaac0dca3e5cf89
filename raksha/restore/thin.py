"""Thin restore: a qcow2 image that holds only what an image at hand, its base, does not.

The base is read and every cluster hashed with the map's key::

    same hash, or both read as zeroes      left to the base
    the disk has other data                written
    the disk reads as zeroes, the base not a zero cluster

So the result is right whatever the base holds, also if it is not the image that the VM once started from; it is only
small if it is. It stays right as long as nobody writes to the base.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from msgspec import Struct

from raksha.errors import TargetExists
from raksha.qcow2.header import Backing
from raksha.restore.base import Base
from raksha.restore.context import Context
from raksha.restore.disk import DiskJob, DiskResult, losing, restore_disks
from raksha.restore.fetch import in_parallel
from raksha.restore.source import DiskSource, Pages
from raksha.restore.targets import Qcow2File
from raksha.types import Extent, ExtentKind, Geometry
from raksha.vault.chain import ChainPage
from raksha.vault.map_page import ABSENT, DATA, ZERO
from raksha.vault.segment import HASH_BYTES
from raksha.virt.capture import DiskReader

#: clusters that are read from the base at once
_STRETCH = 64
#: of the data of a disk: if the base has less, it is hardly the right one
_LITTLE = 0.05


class ThinResult(Struct, frozen=True):
    """A thin restore and what it saved. All in bytes."""

    restored: DiskResult
    base: Path
    #: data of the disk that the base has
    shared: int
    #: data of the base that the disk does not have
    blanked: int

    @property
    def shares_little(self) -> bool:
        """The base is probably not the image that this disk was made from."""
        return self.shared < _LITTLE * (self.shared + self.restored.written)


class ThinJob(Struct, frozen=True):
    """A disk compared with a base: what is left to restore."""

    job: DiskJob
    _base: Path
    _difference: _Difference

    def result(self, restored: DiskResult) -> ThinResult:
        difference = self._difference
        size = difference.geometry.cluster_size
        return ThinResult(restored, self._base, difference.shared * size, difference.blanked * size)


@contextmanager
def thin_job(source: DiskSource, target: Path, base: Base, context: Context, vm: str = "") -> Iterator[ThinJob]:
    """Compare; then `job` may be given to `restore_disks`.

    Raises `TargetExists`, `DiskLost`, `DiskReadFailed`, `Interrupted`.
    """
    if os.path.lexists(target):
        # restoring would find that out too, after a long comparison
        raise TargetExists(target=target)
    with ExitStack() as stack:
        with losing(source):
            difference = stack.enter_context(_Difference(source, base, context))
        image = Qcow2File(target, Backing(str(base.path.absolute()), base.format), vm)
        yield ThinJob(DiskJob(source, image, difference), base.path, difference)


def restore_thin(source: DiskSource, target: Path, base: Base, context: Context) -> ThinResult:
    """`target` becomes a qcow2 image on top of `base`. Raises as `restore_disks` does, and `DiskReadFailed`."""
    with thin_job(source, target, base, context) as thin:
        return thin.result(restore_disks([thin.job], context)[0])


class _Difference:
    """The pages of a disk without what a base has: kinds as an image above the base needs them. Fulfils `Pages`."""

    def __init__(self, source: DiskSource, base: Base, context: Context) -> None:
        self._source = source
        self._chain: Pages = source.pages()
        self._base = base
        self._context = context
        self._lock = threading.Lock()
        self._touched: set[int] = set()
        #: clusters
        self.shared = 0
        self.blanked = 0

    def __enter__(self) -> _Difference:
        self._stack = ExitStack()
        with ExitStack() as stack:
            #: a byte for each cluster
            self._kinds: IO[bytes] = stack.enter_context(tempfile.TemporaryFile(dir=self._context.spool_dir))
            self._compare()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def geometry(self) -> Geometry:
        return self._chain.geometry

    def page_numbers(self) -> list[int]:
        return sorted(self._touched)

    def page(self, number: int) -> ChainPage:
        page = self._chain.page(number)
        width = self.geometry.page_clusters
        kinds = os.pread(self._kinds.fileno(), width, number * width)
        page.kinds[:] = kinds.ljust(width, bytes([ABSENT]))
        return page

    def _compare(self) -> None:
        readers = _Readers(self._base)
        self._context.progress.begin(f"{self._base.path}", min(self._base.size, self.geometry.size))
        try:
            in_parallel(self._stretches(), lambda stretch: self._one(stretch, readers), self._context)
        finally:
            self._context.progress.end()
            readers.close()

    def _stretches(self) -> Iterator[_Stretch]:
        """All of the disk that the base or the chain has anything of."""
        geometry = self.geometry
        width, size = geometry.page_clusters, geometry.cluster_size
        filled = _Filled(self._base.extents())
        in_base = range(-(-min(self._base.size, geometry.size) // (width * size)))
        for number in sorted({*in_base, *self._chain.page_numbers()}):
            page = self._chain.page(number)
            for start in range(0, min(width, geometry.clusters - number * width), _STRETCH):
                first = number * width + start
                stop = min(first + _STRETCH, geometry.clusters)
                has_data = filled.any(first * size, stop * size)
                if has_data or any(page.kinds[start : start + _STRETCH]):
                    yield _Stretch(page, number, start, stop - first, has_data)

    def _one(self, stretch: _Stretch, readers: _Readers) -> None:
        size = self.geometry.cluster_size
        first = stretch.number * self.geometry.page_clusters + stretch.start
        data = self._read(readers, first, stretch.count) if stretch.has_data else b""
        zero = bytes(size)
        kinds = bytearray(stretch.count)
        shared = 0
        for at in range(stretch.count):
            cluster = data[at * size : (at + 1) * size] or zero
            kinds[at] = self._kind(stretch.page, stretch.start + at, cluster, zero)
            shared += not kinds[at] and stretch.page.kinds[stretch.start + at] == DATA
        with self._lock:
            self.shared += shared
            self.blanked += kinds.count(ZERO)
            if any(kinds):
                self._touched.add(stretch.number)
        os.pwrite(self._kinds.fileno(), kinds, first)
        self._context.progress.advance(len(data))

    def _kind(self, page: ChainPage, position: int, cluster: bytes | bytearray, zero: bytes) -> int:
        if page.kinds[position] != DATA:
            return ABSENT if cluster == zero else ZERO
        known = page.hashes[position * HASH_BYTES : (position + 1) * HASH_BYTES]
        same = cluster != zero and self._source.hashers[page.layers[position]].hash(cluster) == known
        return ABSENT if same else DATA

    def _read(self, readers: _Readers, first: int, count: int) -> bytes | bytearray:
        """Clusters of the base, with zeroes beyond its end and beyond the end of the disk."""
        size = self.geometry.cluster_size
        end = min((first + count) * size, self._base.size, self.geometry.size)
        start = first * size
        return readers.get().pread(start, end - start).ljust(count * size, b"\0") if end > start else b""


class _Stretch(Struct, frozen=True):
    page: ChainPage
    #: of the page
    number: int
    #: position in the page, and clusters
    start: int
    count: int
    #: the base may hold something there
    has_data: bool


class _Filled:
    """Answers, for stretches in ascending order, whether extents hold data in them."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._extents = (each for each in extents if each.kind is ExtentKind.DATA)
        self._current = next(self._extents, None)

    def any(self, start: int, stop: int) -> bool:
        while self._current is not None and self._current.end <= start:
            self._current = next(self._extents, None)
        return self._current is not None and self._current.start < stop


class _Readers:
    """A reader of the base for each thread."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[DiskReader] = []

    def get(self) -> DiskReader:
        found: DiskReader | None = getattr(self._local, "reader", None)
        if found is None:
            found = self._local.reader = self._base.open()
            with self._lock:
                self._all.append(found)
        return found

    def close(self) -> None:
        for reader in self._all:
            reader.close()
