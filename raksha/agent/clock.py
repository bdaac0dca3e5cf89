"""The database's clock, as far as round trips tell it.

An answer that carries the time was made somewhere between the question and its arrival: the middle of that is taken,
and half of it is how wrong that may be. The quickest round trip counts. From there on the monotonic clock of this host
tells the time, which nobody sets.
"""

from __future__ import annotations

import time

from msgspec import Struct

#: µs
_SECOND = 1_000_000
#: seconds by which a second of the monotonic clock may be wrong: crystals are a tenth as bad
_DRIFT = 1e-4


class Reading(Struct, frozen=True):
    """µs since 1970 UTC of the database's clock, and how wrong that may be, in seconds."""

    at: int
    error: float


class DatabaseClock:
    """One thread's."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._error: float | None = None
        self._taken = 0.0

    def sample(self, before: float, after: float, told: int) -> None:
        """Question and answer by the monotonic clock; what the answer says."""
        error = (after - before) / 2
        if self._error is None or error <= self._error_at(after):
            self._offset = told / _SECOND - (before + after) / 2
            self._error, self._taken = error, after

    def at(self, monotonic: float) -> Reading:
        """A moment of the monotonic clock. Only after a sample."""
        return Reading(round((monotonic + self._offset) * _SECOND), self._error_at(monotonic))

    def now(self) -> Reading:
        return self.at(time.monotonic())

    def _error_at(self, monotonic: float) -> float:
        assert self._error is not None
        return self._error + abs(monotonic - self._taken) * _DRIFT
