"""A store that takes, or gives, no more than so many bytes a second, however many threads use it.

What goes the other way goes at once. A pause is no burden: what was not sent in a second
of waiting for the disk may be sent in the next, but not what was not sent an hour ago.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from raksha.errors import Interrupted
from raksha.types import Buffer
from raksha.vault.store import ObjectInfo, Part, Store

#: seconds that may be caught up with
_BURST = 1.0


class Bucket:
    """For any thread."""

    def __init__(self, rate: int, cancel: threading.Event) -> None:
        """`rate`: bytes a second."""
        self._rate = rate
        self._cancel = cancel
        self._lock = threading.Lock()
        #: by the monotonic clock: when all that was let through would have been sent at the right speed
        self._paid_at = time.monotonic()

    def take(self, size: int) -> None:
        """Wait until so many bytes may go. Raises `Interrupted`."""
        with self._lock:
            now = time.monotonic()
            begin = max(self._paid_at, now - _BURST)
            self._paid_at = begin + size / self._rate
        if self._cancel.wait(max(0.0, begin - now)):
            raise Interrupted()


class ThrottledStore:
    """Fulfils `Store` by asking another one."""

    def __init__(self, store: Store, bucket: Bucket) -> None:
        self._store = store
        self._bucket = bucket
        self.url = store.url
        self.manifest_limit = store.manifest_limit

    def prepare(self) -> None:
        self._store.prepare()

    def put(self, name: str, data: Buffer, *, create_only: bool = False) -> None:
        self._bucket.take(len(data))
        self._store.put(name, data, create_only=create_only)

    def put_file(self, name: str, source: BinaryIO, size: int) -> None:
        self._bucket.take(size)
        self._store.put_file(name, source, size)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._store.get(name, offset, length)

    def head(self, name: str) -> ObjectInfo:
        return self._store.head(name)

    def delete(self, name: str) -> None:
        self._store.delete(name)

    def names(self, container: str, prefix: str = "") -> Iterator[str]:
        return self._store.names(container, prefix)

    def put_manifest(self, name: str, parts: Sequence[Part]) -> None:
        self._store.put_manifest(name, parts)

    def parts(self, name: str) -> list[Part]:
        return self._store.parts(name)

    def close(self) -> None:
        self._store.close()


class ThrottledReads(ThrottledStore):
    """The other way round: what is read is limited, and paid for when it is there."""

    def put(self, name: str, data: Buffer, *, create_only: bool = False) -> None:
        self._store.put(name, data, create_only=create_only)

    def put_file(self, name: str, source: BinaryIO, size: int) -> None:
        self._store.put_file(name, source, size)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._store.get(name, offset, length)
        self._bucket.take(len(data))
        return data
