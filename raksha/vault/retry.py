"""Patience around any store: what may succeed later is tried again until a deadline.

Only errors that say so of themselves (`retryable`) are repeated. A refusal, a full vault or a missing object is
passed on at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar

from raksha.errors import Interrupted, ObjectExists, ObjectMissing, RakshaError
from raksha.types import Buffer
from raksha.vault.store import ObjectInfo, Part, Store

T = TypeVar("T")


class RetryStore:
    """Fulfils `Store` by asking another one, more than once.

    `deadline` is in seconds and counts for each call by itself; no attempt is begun after it, and one that is under
    way ends by the time-out of the store below. Waits are random up to a bound that doubles from `first_wait` to
    `longest_wait` seconds, so that threads that failed together do not come back together.

    When `cancel` is set, waiting ends at once and `Interrupted` is raised in place of another attempt; calls that
    succeed are not disturbed.
    """

    def __init__(
        self,
        store: Store,
        *,
        deadline: float = 300.0,
        first_wait: float = 0.2,
        longest_wait: float = 20.0,
        cancel: threading.Event | None = None,
    ) -> None:
        self._store = store
        self._cancel = cancel or threading.Event()
        self._deadline = deadline
        self._first_wait = first_wait
        self._longest_wait = longest_wait
        self.url = store.url
        self.manifest_limit = store.manifest_limit

    def prepare(self) -> None:
        self._repeat(self._store.prepare)

    def put(self, name: str, data: Buffer, *, create_only: bool = False) -> None:
        if create_only:
            self._repeat(_CreateOnce(self._store, name, data))
        else:
            self._repeat(lambda: self._store.put(name, data))

    def put_file(self, name: str, source: BinaryIO, size: int) -> None:
        start = source.tell()

        def attempt() -> None:
            source.seek(start)
            self._store.put_file(name, source, size)

        self._repeat(attempt)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._repeat(lambda: self._store.get(name, offset, length))

    def head(self, name: str) -> ObjectInfo:
        return self._repeat(lambda: self._store.head(name))

    def delete(self, name: str) -> None:
        self._repeat(lambda: self._store.delete(name))

    def names(self, container: str, prefix: str = "") -> Iterator[str]:
        """A listing that breaks off is begun anew, without what was already given out."""
        given = b""
        found = self._store.names(container, prefix)

        def following() -> str | None:
            nonlocal found
            try:
                return next((name for name in found if name.encode() > given), None)
            except RakshaError:
                found = self._store.names(container, prefix)
                raise

        while (name := self._repeat(following)) is not None:
            given = name.encode()
            yield name

    def put_manifest(self, name: str, parts: Sequence[Part]) -> None:
        self._repeat(lambda: self._store.put_manifest(name, parts))

    def parts(self, name: str) -> list[Part]:
        return self._repeat(lambda: self._store.parts(name))

    def close(self) -> None:
        self._store.close()

    def _repeat(self, call: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return call()
        except RakshaError as error:
            if not error.retryable:
                raise
            return self._again(call, error, self._deadline - (time.monotonic() - began))

    def _again(self, call: Callable[[], T], failed: RakshaError, left: float) -> T:
        import tenacity  # most calls succeed at once, and most commands need none of this

        failures = [failed]

        def attempt() -> T:
            if failures:
                raise failures.pop()
            return call()

        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_succeed_later),
            stop=tenacity.stop_before_delay(left),
            wait=tenacity.wait_random_exponential(multiplier=self._first_wait, max=self._longest_wait),
            sleep=self._sleep,
            reraise=True,
        )
        return attempts(attempt)

    def _sleep(self, seconds: float) -> None:
        if self._cancel.wait(seconds):
            raise Interrupted


class _CreateOnce:
    """A create-only put whose earlier attempt may have succeeded without our hearing of it."""

    def __init__(self, store: Store, name: str, data: Buffer) -> None:
        self._store = store
        self._name = name
        self._data = data
        self._uncertain = False

    def __call__(self) -> None:
        try:
            self._store.put(self._name, self._data, create_only=True)
        except ObjectExists:
            if not (self._uncertain and self._is_ours()):
                raise
            # perhaps on one server only: the same bytes again, this time until enough of them have it
            self._store.put(self._name, self._data)
        except RakshaError as error:
            self._uncertain = self._uncertain or error.retryable
            raise

    def _is_ours(self) -> bool:
        try:
            return self._store.get(self._name) == self._data
        except ObjectMissing:
            return False


def _may_succeed_later(error: BaseException) -> bool:
    return isinstance(error, RakshaError) and error.retryable
