"""Crash points around everything that changes a vault, each attempt by itself. See `raksha.crash`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

from raksha import crash
from raksha.types import Buffer
from raksha.vault import names
from raksha.vault.store import SEGMENTS, ObjectInfo, Part, Store, split_name


def with_crash_points(store: Store) -> Store:
    """The store itself, unless this process passes crash points."""
    return CrashStore(store) if crash.ON else store


def kind(name: str) -> str:
    """What an object is: the word for it in the name of a crash point."""
    container, key = split_name(name)
    if container == SEGMENTS:
        return "segment"
    for folder, word in ((names.KEYS, "key"), (names.EPOCHS, "epoch")):
        if name.startswith(folder):
            return word
    leaf = key.rpartition("/")[2]
    return names.MAP_PREFIX.rstrip("-") if leaf.startswith(names.MAP_PREFIX) else leaf


def _around(action: str, name: str) -> AbstractContextManager[None]:
    return crash.around(f"vault.{action}.{kind(name)}")


class CrashStore:
    """Fulfils `Store` by asking another one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url = store.url
        self.manifest_limit = store.manifest_limit

    def prepare(self) -> None:
        with crash.around("vault.prepare"):
            self._store.prepare()

    def put(self, name: str, data: Buffer, *, create_only: bool = False) -> None:
        with _around("put", name):
            self._store.put(name, data, create_only=create_only)

    def put_file(self, name: str, source: BinaryIO, size: int) -> None:
        with _around("put_file", name):
            self._store.put_file(name, source, size)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._store.get(name, offset, length)

    def head(self, name: str) -> ObjectInfo:
        return self._store.head(name)

    def delete(self, name: str) -> None:
        with _around("delete", name):
            self._store.delete(name)

    def names(self, container: str, prefix: str = "") -> Iterator[str]:
        return self._store.names(container, prefix)

    def put_manifest(self, name: str, parts: Sequence[Part]) -> None:
        with _around("put_manifest", name):
            self._store.put_manifest(name, parts)

    def parts(self, name: str) -> list[Part]:
        return self._store.parts(name)

    def close(self) -> None:
        self._store.close()
