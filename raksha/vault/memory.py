"""A store in the memory of this process: complete, thread-safe, and gone with it.

For tests of the layers above and for trying things out. Holds every byte it is given.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from raksha.errors import ObjectCorrupt, ObjectExists, ObjectMissing, ObjectTruncated, VaultNotFound
from raksha.types import Buffer
from raksha.vault import partlist
from raksha.vault.store import CONTAINERS, ObjectInfo, Part, check_range, split_name


class MemoryStore:
    """Fulfils `Store`."""

    def __init__(self, url: str = "memory://", *, manifest_limit: int = 1000) -> None:
        self.url = url
        self.manifest_limit = manifest_limit
        self._prepared = False
        self._objects: dict[str, bytes | tuple[Part, ...]] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        with self._lock:
            self._prepared = True

    def put(self, name: str, data: Buffer, *, create_only: bool = False) -> None:
        self._set(name, bytes(data), create_only)

    def put_file(self, name: str, source: BinaryIO, size: int) -> None:
        data = source.read(size)
        if len(data) != size:
            raise ObjectTruncated(name=name, wanted=size, got=len(data))
        self._set(name, data, False)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        return self._read(name, offset, length, 0)

    def head(self, name: str) -> ObjectInfo:
        found = self._find(name)
        if isinstance(found, bytes):
            return ObjectInfo(len(found))
        return ObjectInfo(partlist.total(found), manifest=True)

    def delete(self, name: str) -> None:
        split_name(name)
        with self._lock:
            self._objects.pop(name, None)

    def names(self, container: str, prefix: str = "") -> Iterator[str]:
        if container not in CONTAINERS:
            raise ValueError(f"no container of a vault: {container}")
        start = f"{container}/{prefix}"
        with self._lock:
            found = [name for name in self._objects if name.startswith(start)]
        yield from sorted(found, key=str.encode)

    def put_manifest(self, name: str, parts: Sequence[Part]) -> None:
        partlist.check(parts, self.manifest_limit)
        for part in parts:
            partlist.same_size(part, self.head(part.name).size)
        self._set(name, tuple(parts), False)

    def parts(self, name: str) -> list[Part]:
        found = self._find(name)
        if isinstance(found, bytes):
            raise ObjectCorrupt(name=name, detail="it is no manifest")
        return list(found)

    def close(self) -> None:
        """Nothing to let go: a closed store still answers, like the others."""

    def _set(self, name: str, value: bytes | tuple[Part, ...], create_only: bool) -> None:
        split_name(name)
        with self._lock:
            if not self._prepared:
                raise VaultNotFound(url=self.url)
            if create_only and name in self._objects:
                raise ObjectExists(name=name)
            self._objects[name] = value

    def _find(self, name: str) -> bytes | tuple[Part, ...]:
        split_name(name)
        with self._lock:
            try:
                return self._objects[name]
            except KeyError:
                raise ObjectMissing(name=name) from None

    def _read(self, name: str, offset: int, length: int | None, depth: int) -> bytes:
        if depth > partlist.MAX_DEPTH:
            raise ObjectCorrupt(name=name, detail="its manifests are nested too deep")
        found = self._find(name)
        if isinstance(found, bytes):
            return found[offset : offset + partlist.clip(name, len(found), offset, length)]
        length = partlist.clip(name, partlist.total(found), offset, length)
        return b"".join(self._read_part(*each, depth + 1) for each in partlist.slices(found, offset, length))

    def _read_part(self, part: Part, offset: int, length: int, depth: int) -> bytes:
        partlist.same_size(part, self.head(part.name).size)
        return self._read(part.name, offset, length, depth)
