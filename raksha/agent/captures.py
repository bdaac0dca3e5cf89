"""Captures that stay open from the moment their disks are stored until it is known what became of their run."""

from __future__ import annotations

import threading
from collections.abc import Callable

from msgspec import Struct

from raksha.virt.capture import Capture
from raksha.virt.libvirt.engines import LibvirtEngines


class OpenCapture(Struct, frozen=True):
    """It holds the VM's lock."""

    task_id: str
    backupjobrun: str
    vm: str
    capture: Capture
    #: whose connection it uses; None: it is of no hypervisor
    engine: LibvirtEngines | None

    def finish(self) -> list[str]:
        """The run is a restore point. Returns what a person should know."""
        try:
            return self.capture.finish()
        finally:
            self._close()

    def abandon(self) -> None:
        """The run is none."""
        try:
            self.capture.abandon()
        finally:
            self._close()

    def let_go(self) -> None:
        """Nobody knows yet."""
        try:
            self.capture.let_go()
        finally:
            self._close()

    def _close(self) -> None:
        if self.engine is not None:
            self.engine.close()


class OpenCaptures:
    """For any thread. What is taken from here is the taker's to end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], OpenCapture] = {}

    def keep(self, capture: OpenCapture) -> None:
        with self._lock:
            self._open[capture.backupjobrun, capture.vm] = capture

    def take(self, backupjobrun: str, vm: str) -> OpenCapture | None:
        with self._lock:
            return self._open.pop((backupjobrun, vm), None)

    def take_of_task(self, task_id: str) -> OpenCapture | None:
        return self._take(lambda each: each.task_id == task_id)

    def take_of_vm(self, vm: str) -> OpenCapture | None:
        return self._take(lambda each: each.vm == vm)

    def count(self) -> int:
        with self._lock:
            return len(self._open)

    def take_any(self) -> OpenCapture | None:
        return self._take(lambda _each: True)

    def _take(self, fits: Callable[[OpenCapture], bool]) -> OpenCapture | None:
        with self._lock:
            for key, each in self._open.items():
                if fits(each):
                    return self._open.pop(key)
        return None
