"""Where a restored disk goes: a raw file or a qcow2 file. For a block device see `device`.

The life of a target::

    target.claim()                          # nobody else has it, or gets it; a file has a hidden name so far
    target.prepare(pages, context)          # tables, zeroes
    target.write(cluster, data) ...         # any thread, any order, each data cluster once
    target.finish()                         # durable; a file gets its name
    target.settle()                         # the restore is done: it is no leftover any more
    target.discard()                        # instead of that, or after it: nothing of a file is left

A file holds holes where the disk has no data. A device had content before, so its zeroes are written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from raksha.errors import TargetUnusable
from raksha.qcow2.header import Backing
from raksha.qcow2.plain import PlainImage
from raksha.restore.context import Context
from raksha.restore.fetch import Sink
from raksha.restore.files import PartFile, writing
from raksha.restore.source import Pages
from raksha.types import Geometry
from raksha.vault.map_page import ABSENT, DATA

#: the place of a cluster in an entry of an L2 table
_PLACE = (1 << 56) - 1 & ~511
_ONLY_DATA = bytes(kind if kind == DATA else ABSENT for kind in range(256))


class Target(Sink, Protocol):
    """See the head of this module."""

    path: Path
    #: old content is gone and the new one is not whole, which nothing can undo
    spoiled: bool

    #: bytes of a file system that a data cluster takes besides its own; None where space is no question
    overhead: int | None

    def claim(self) -> None:
        """Changes nothing that is there. Raises `TargetExists`, `TargetUnusable`."""

    def prepare(self, pages: Pages, context: Context) -> None:
        """Raises `Refused` errors, `TargetFailed`, `Interrupted`."""

    def finish(self) -> None:
        """Raises `TargetFailed`, `TargetExists` if something took the name meanwhile."""

    def settle(self) -> None:
        """Raises `TargetFailed`."""

    def discard(self) -> None:
        """May be called in every state, and twice."""


def cut(data: Sequence[bytes | memoryview], cluster: int, cluster_size: int, size: int) -> Sequence[bytes | memoryview]:
    """`data` without what lies beyond byte `size` of the disk: the padding of its last cluster."""
    over = cluster * cluster_size + len(data) * cluster_size - size
    return data if over <= 0 else [*data[:-1], memoryview(data[-1])[:-over]]


class RawFile:
    """A sparse file with exactly the disk's bytes."""

    spoiled = False
    overhead: int | None = 0

    def __init__(self, path: Path, vm: str = "") -> None:
        self.path = path
        self._vm = vm
        self._geometry = Geometry(0)
        self._file: PartFile | None = None

    def claim(self) -> None:
        self._file = PartFile(self.path, self._vm)

    def prepare(self, pages: Pages, context: Context) -> None:
        assert self._file is not None
        context.check()
        self._geometry = pages.geometry
        self._file.truncate(self._geometry.size)

    def write(self, cluster: int, data: Sequence[bytes | memoryview]) -> None:
        assert self._file is not None
        size = self._geometry.cluster_size
        self._file.write(cut(data, cluster, size, self._geometry.size), cluster * size)

    def finish(self) -> None:
        assert self._file is not None
        self._file.publish()

    def settle(self) -> None:
        assert self._file is not None
        self._file.settle()

    def discard(self) -> None:
        if self._file is not None:
            self._file.discard()


class Qcow2File:
    """An uncompressed qcow2 image, with or without an image below it. Its tables are written before its data.

    qcow2 counts in sectors: a disk that ends within one is rounded up with zeroes.
    """

    spoiled = False
    #: its entry in an L2 table, and its refcount
    overhead: int | None = 8 + 2

    def __init__(self, path: Path, backing: Backing | None = None, vm: str = "") -> None:
        self.path = path
        self._vm = vm
        self._backing = backing
        self._geometry = Geometry(0)
        #: where the L2 table of each page is in the file; the tables tell where clusters go
        self._tables: dict[int, int] = {}
        self._file: PartFile | None = None

    def claim(self) -> None:
        self._file = PartFile(self.path, self._vm)

    def prepare(self, pages: Pages, context: Context) -> None:
        assert self._file is not None
        self._geometry = pages.geometry
        try:
            image = PlainImage(self._geometry, self._counts(pages), self._backing)
        except ValueError as error:
            raise TargetUnusable(target=self.path, detail=str(error)) from error
        self._file.truncate(image.layout.file_size)
        for offset, data in image.fixed():
            self._file.write([data], offset)
        for number, kinds in self._kinds(pages):
            context.check()
            placed = image.place(number, kinds)
            self._file.write([placed.table], placed.table_offset)
            self._tables[number] = placed.table_offset

    def _kinds(self, pages: Pages) -> Iterator[tuple[int, bytes]]:
        """What the image says of each page. Without an image below, absent reads as zero already."""
        for number in pages.page_numbers():
            page = pages.page(number)
            kinds = bytes(page.kinds) if self._backing else bytes(page.kinds).translate(_ONLY_DATA)
            if any(kinds):
                yield number, kinds

    def _counts(self, pages: Pages) -> Iterator[tuple[int, int]]:
        return ((number, kinds.count(DATA)) for number, kinds in self._kinds(pages))

    def write(self, cluster: int, data: Sequence[bytes | memoryview]) -> None:
        # data stands in guest order, so clusters that follow each other on the disk do so in the file
        assert self._file is not None
        self._file.write(data, self._place(cluster))

    def _place(self, cluster: int) -> int:
        assert self._file is not None
        page, position = divmod(cluster, self._geometry.page_clusters)
        with writing(self.path):
            entry = os.pread(self._file.fd, 8, self._tables[page] + 8 * position)
        return int.from_bytes(entry, "big") & _PLACE

    def finish(self) -> None:
        assert self._file is not None
        self._file.publish()

    def settle(self) -> None:
        assert self._file is not None
        self._file.settle()

    def discard(self) -> None:
        if self._file is not None:
            self._file.discard()
