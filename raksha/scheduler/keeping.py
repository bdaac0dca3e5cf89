"""Keeps a lease while something long is done, of which nobody knows how long it takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raksha.errors import EpochStale, RakshaError, RowNotFound, StateConflict

_log = logging.getLogger(__name__)


@contextmanager
def kept(renew: Callable[[], object], seconds: float) -> Iterator[None]:
    """Calls `renew` three times in `seconds`, the length of the lease, from a thread of its own.

    An error of it is logged and tells nobody: what is done at the end is fenced by itself.
    """
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(seconds / 3):
            try:
                renew()
            except (EpochStale, RowNotFound, StateConflict):  # it is done, or another has it: its end will tell
                return
            except RakshaError as error:
                _log.warning("a lease could not be kept: %s", error)

    thread = threading.Thread(target=go_on, name="scheduler-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
