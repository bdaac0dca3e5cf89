"""Patience, tried on a store that fails on command; the time is real, so waits are kept short."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raksha.errors import Interrupted, ObjectExists, ObjectMissing, VaultFull, VaultUnavailable
from raksha.vault.memory import MemoryStore
from raksha.vault.retry import RetryStore

NAME = "backupjobs/x"
DOWN = VaultUnavailable(url="memory://", detail="down")


class Flaky(MemoryStore):
    """Before (or after) doing its work, the next calls raise what is in `faults`."""

    def __init__(self) -> None:
        super().__init__()
        self.prepare()
        self.before: list[Exception] = []
        self.after: list[Exception] = []
        self.calls: list[str] = []

    def _do(self, what: str, work: Callable[[], Any]) -> Any:
        self.calls.append(what)
        if self.before:
            raise self.before.pop(0)
        result = work()
        if self.after:
            raise self.after.pop(0)
        return result

    def put(self, name: str, data: bytes, *, create_only: bool = False) -> None:
        self._do("put", lambda: MemoryStore.put(self, name, data, create_only=create_only))

    def put_file(self, name: str, source: Any, size: int) -> None:
        self._do("put_file", lambda: MemoryStore.put_file(self, name, source, size))

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        found: bytes = self._do("get", lambda: MemoryStore.get(self, name, offset, length))
        return found

    def names(self, container: str, prefix: str = "") -> Iterator[str]:
        self.calls.append("names")
        for number, name in enumerate(MemoryStore.names(self, container, prefix)):
            if number == 3 and self.before:
                raise self.before.pop(0)
            yield name


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


def patient(store: Flaky, **options: Any) -> RetryStore:
    return RetryStore(store, **{"deadline": 5, "first_wait": 0.001, **options})


def test_what_may_succeed_later_is_tried_again(flaky: Flaky) -> None:
    flaky.before = [DOWN, DOWN]
    patient(flaky).put(NAME, b"x")
    assert flaky.calls == ["put"] * 3
    assert flaky.get(NAME) == b"x"


@pytest.mark.parametrize("error", [VaultFull(url="u", detail="d"), ObjectMissing(name=NAME), ZeroDivisionError()])
def test_other_errors_are_passed_on_at_once(flaky: Flaky, error: Exception) -> None:
    flaky.before = [error]
    with pytest.raises(type(error)) as caught:
        patient(flaky).get(NAME)
    assert caught.value is error
    assert flaky.calls == ["get"]


def test_after_the_deadline_the_last_error_is_raised(flaky: Flaky) -> None:
    flaky.before = [DOWN] * 1000
    start = time.monotonic()
    with pytest.raises(VaultUnavailable) as caught:
        patient(flaky, deadline=0.3, longest_wait=0.05).get(NAME)
    assert caught.value is DOWN
    assert time.monotonic() - start < 0.5
    assert len(flaky.calls) > 3


def test_each_call_has_a_deadline_of_its_own(flaky: Flaky) -> None:
    store = patient(flaky, deadline=0.2, longest_wait=0.01)
    for _ in range(3):
        flaky.before = [DOWN] * 3
        store.put(NAME, b"x")
        time.sleep(0.1)
    assert len(flaky.calls) == 12


def test_waits_grow(flaky: Flaky) -> None:
    flaky.before = [DOWN] * 1000
    with pytest.raises(VaultUnavailable):
        patient(flaky, deadline=1, first_wait=0.1, longest_wait=10).get(NAME)
    # with a constant wait of 0.05 on average there would be some twenty
    assert len(flaky.calls) < 14


def test_cancelling_ends_a_wait_at_once(flaky: Flaky) -> None:
    flaky.before = [DOWN] * 1000
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    start = time.monotonic()
    with pytest.raises(Interrupted):
        patient(flaky, deadline=60, first_wait=30, longest_wait=60, cancel=cancel).get(NAME)
    assert time.monotonic() - start < 5


def test_a_cancelled_store_still_does_what_succeeds(flaky: Flaky) -> None:
    cancel = threading.Event()
    cancel.set()
    store = patient(flaky, cancel=cancel)
    store.put(NAME, b"x")
    assert store.get(NAME) == b"x"


def test_a_file_is_sent_from_its_first_position_again(flaky: Flaky) -> None:
    source = io.BytesIO(b"before-content-after")
    source.seek(7)
    flaky.after = [DOWN]
    patient(flaky).put_file(NAME, source, 7)
    assert flaky.calls == ["put_file"] * 2
    assert flaky.get(NAME) == b"content"


def test_a_listing_that_breaks_goes_on_where_it_was(flaky: Flaky) -> None:
    wanted = [f"backupjobs/{number}" for number in range(8)]
    for name in wanted:
        MemoryStore.put(flaky, name, b"")
    flaky.before = [DOWN, DOWN]
    assert list(patient(flaky).names("backupjobs")) == wanted
    assert flaky.calls == ["names"] * 3


def test_a_create_that_went_through_unheard_is_recognised(flaky: Flaky) -> None:
    flaky.after = [DOWN]
    patient(flaky).put(NAME, b"mine", create_only=True)
    # what is there may be on one server only, so the same bytes are put again, without the condition
    assert flaky.calls == ["put", "put", "get", "put"]
    assert flaky.get(NAME) == b"mine"


def test_a_create_that_was_cut_off_and_then_lost_to_another_is_told(flaky: Flaky) -> None:
    MemoryStore.put(flaky, NAME, b"theirs")
    flaky.before = [DOWN]
    with pytest.raises(ObjectExists):
        patient(flaky).put(NAME, b"mine", create_only=True)
    assert flaky.get(NAME) == b"theirs"


def test_the_same_content_at_the_first_attempt_is_anothers(flaky: Flaky) -> None:
    """Nothing was uncertain: what is there was there before us."""
    MemoryStore.put(flaky, NAME, b"same")
    with pytest.raises(ObjectExists):
        patient(flaky).put(NAME, b"same", create_only=True)
