"""Small news that is repeated until a scheduler has heard it, for as long as this process lives.

What must not be lost with the process (the end of a claim) is in the journal instead: `outbox`.
"""

from __future__ import annotations

import threading
from typing import Any

from msgspec import Struct

from raksha.rpc import Verb


class Saying(Struct, frozen=True):
    verb: Verb[Any, Any]
    question: Struct


class Said:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Saying] = []

    def say(self, verb: Verb[Any, Any], question: Struct) -> None:
        with self._lock:
            self._waiting.append(Saying(verb, question))

    def waiting(self) -> list[Saying]:
        """The oldest first."""
        with self._lock:
            return list(self._waiting)

    def heard(self, saying: Saying) -> None:
        with self._lock:
            self._waiting.remove(saying)
