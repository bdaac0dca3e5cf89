"""Bytes a second, over all threads together."""

from __future__ import annotations

import threading
import time

import pytest

from raksha.backup.throttle import Bucket, ThrottledStore
from raksha.errors import Interrupted
from raksha.vault.memory import MemoryStore


def test_many_threads_share_one_speed() -> None:
    store = MemoryStore()
    store.prepare()
    throttled = ThrottledStore(store, Bucket(200_000, threading.Event()))

    def put(number: int) -> None:
        for part in range(5):
            throttled.put(f"backupjobs_segments/aa/{number}-{part}", bytes(20_000))

    began = time.monotonic()
    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # 400 000 bytes at 200 000 a second; the last of them waits for those before it, one second is given in advance
    assert 0.8 <= time.monotonic() - began < 4
    assert len(list(store.names("backupjobs_segments"))) == 20


def test_reading_is_not_slowed_down() -> None:
    store = MemoryStore()
    store.prepare()
    store.put("backupjobs/a", bytes(1_000_000))
    throttled = ThrottledStore(store, Bucket(1, threading.Event()))
    began = time.monotonic()
    assert len(throttled.get("backupjobs/a")) == throttled.head("backupjobs/a").size == 1_000_000
    assert time.monotonic() - began < 0.5


def test_whoever_wants_the_end_does_not_wait() -> None:
    cancel = threading.Event()
    bucket = Bucket(10, cancel)
    bucket.take(1000)
    threading.Timer(0.1, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        bucket.take(10)
    assert time.monotonic() - began < 5
