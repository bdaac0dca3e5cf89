"""Waiting for what the service does, by asking again: every answer that differs from the one before is given on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from raksha.client import errors

#: seconds between two looks, and for how long the service may be out of reach
INTERVAL = 1.0
_PATIENCE = 300.0


class _Going(Protocol):
    @property
    def ended(self) -> bool: ...


T = TypeVar("T", bound=_Going)


def changes(
    look: Callable[[], T], interval: float, patience: float = _PATIENCE, sleep: Callable[[float], None] = time.sleep
) -> Iterator[T]:
    """Until it has ended. That the service does not answer for a while, or is started anew, ends nothing.

    Raises what `look` raises, after `patience` seconds of `Unreachable` and `ServiceFailed`.
    """
    last: T | None = None
    silent_since: float | None = None
    while True:
        try:
            found = look()
        except (errors.Unreachable, errors.ServiceFailed):
            now = time.monotonic()
            silent_since = now if silent_since is None else silent_since
            if now - silent_since > patience:
                raise
        else:
            silent_since = None
            if found != last:
                yield found
            if found.ended:
                return
            last = found
        sleep(interval)
