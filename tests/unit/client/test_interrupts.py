"""An interrupt that Python loses on its way is not lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from raksha.client import interrupts


@pytest.fixture(autouse=True)
def as_programs_begin() -> Iterator[None]:
    """Whoever runs the tests may ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Clearing:
    """An interrupt comes while it is cleared up."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # Python looks for signals between its steps
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_comes_while_an_object_goes() -> None:
    with interrupts.noted() as noted:
        assert not noted()
        gone = Clearing()
        del gone
        assert noted()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_as_ever() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.noted():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_and_where_others_deal_with_it() -> None:
    found = []

    def look() -> None:
        with interrupts.noted() as noted:
            found.append(noted())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.noted() as noted:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            found.append(noted())
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [False, False]
