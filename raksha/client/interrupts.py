"""Ctrl-C while something is watched. Python loses an interrupt that comes while it clears up an object, or is inside a
callback: the exception is told and passed over there. So that one came is noted beside it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT has come since; it raises `KeyboardInterrupt` as ever. In other threads than the main one, which
    get none, and where others deal with it, never."""
    came = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and before is signal.default_int_handler

    def note(_number: int, _frame: FrameType | None) -> None:
        came.set()
        raise KeyboardInterrupt

    if not ours:
        yield came.is_set
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before)
