"""Images at hand that a thin restore can build on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from raksha.errors import DiskReadFailed
from raksha.types import Extent, ExtentKind
from raksha.virt.capture import DiskReader


class Base(Protocol):
    """An image that is at hand."""

    path: Path
    #: "raw" or "qcow2": as recorded or as the user says, never guessed
    format: str
    #: bytes
    size: int

    def open(self) -> DiskReader:
        """A reader for one thread."""

    def extents(self) -> Iterable[Extent]:
        """Ascending; what none of them names reads as zeroes."""


class RawBase:
    """A raw file or block device as a base. Fulfils `Base`."""

    format = "raw"

    def __init__(self, path: Path) -> None:
        """Raises `DiskReadFailed`."""
        self.path = path
        with self.open() as reader:
            self.size = reader.size

    def open(self) -> RawReader:
        return RawReader(self.path)

    def extents(self) -> Iterator[Extent]:
        with self.open() as reader:
            yield from reader.extents()


class RawReader:
    """Fulfils `DiskReader`; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise self._failed(0, error) from error

    def __enter__(self) -> RawReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pread(self, offset: int, length: int) -> bytes:
        pieces = []
        try:
            while length and (piece := os.pread(self._fd, length, offset)):
                pieces.append(piece)
                offset, length = offset + len(piece), length - len(piece)
        except OSError as error:
            raise self._failed(offset, error) from error
        if length:
            raise self._failed(offset, EOFError("the file ends there"))
        return b"".join(pieces)

    def extents(self) -> Iterator[Extent]:
        """Data as the file system tells; a device is all data."""
        start = 0
        while start < self.size:
            try:
                start = os.lseek(self._fd, start, os.SEEK_DATA)
                end = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # a device does not tell
                    yield Extent(start, self.size - start, ExtentKind.DATA)
                return
            yield Extent(start, end - start, ExtentKind.DATA)
            start = end

    def _failed(self, offset: int, error: Exception) -> DiskReadFailed:
        return DiskReadFailed(disk=self._path, vm="(base image)", offset=offset, detail=str(error))

    def close(self) -> None:
        os.close(self._fd)
