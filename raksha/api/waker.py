"""Tells schedulers that there is something to look at, without keeping a request waiting for the message bus.

Hints are gathered: a thousand of them while the bus is slow are one more. None is ever needed: schedulers look by
themselves as well.
"""

from __future__ import annotations

import logging
import threading

from raksha.errors import RakshaError
from raksha.rpc import Bus
from raksha.wake import SCHEDULERS, WAKE, Wake

LOG = logging.getLogger(__name__)


class Waker:
    """`Services.wake`. Its thread begins with the first hint, so in the process that gives it: servers fork."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._wanted = threading.Event()
        self._begin = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self) -> None:
        self._wanted.set()
        with self._begin:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="waker", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while self._wanted.wait():
            self._wanted.clear()
            try:
                heard = self._bus.to(SCHEDULERS).cast(WAKE, Wake())
            except RakshaError as error:
                LOG.warning("no scheduler was told: %s", error, extra={"action": "wake"})
                continue
            if not heard:
                LOG.info("no scheduler was told: the bus is away", extra={"action": "wake"})
