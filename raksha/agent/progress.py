"""How far a task is, in bytes of each disk, kept until somebody asks."""

from __future__ import annotations

import threading

from msgspec import Struct

from raksha.progress import Progress
from raksha.tasks import DiskProgress


class _Counted(Struct):
    size: int
    total: int = 0
    done: int = 0
    sent: int = 0


class TaskProgress(Progress):
    """For one transfer at a time; `disk` is for those that go on side by side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._step = "claimed"
        self._disks: dict[str, _Counted] = {}
        self._current: str | None = None
        self._changes = 0

    def seen(self) -> tuple[str, tuple[DiskProgress, ...]]:
        """What is done now, and the disks so far."""
        with self._lock:
            disks = tuple(
                DiskProgress(resource=name, size=disk.size, total=disk.total, done=disk.done, sent=disk.sent)
                for name, disk in self._disks.items()
            )
            return self._step, disks

    @property
    def changes(self) -> int:
        """Grows with every change."""
        with self._lock:
            return self._changes

    def step(self, text: str) -> None:
        with self._lock:
            self._step = text
            self._changes += 1

    def expect(self, disk: str, size: int) -> None:
        """There is this disk, of so many bytes; its transfer begins later, if it does."""
        with self._lock:
            self._disks[disk] = _Counted(size)
            self._changes += 1

    def begin(self, label: str, total: int) -> None:
        name = label.rpartition(":")[2]
        self._begin(name, total)
        self._current = name

    def advance(self, done: int, sent: int = 0) -> None:
        if self._current is not None:
            self._advance(self._current, done, sent)

    def end(self) -> None:
        self._current = None

    def disk(self, name: str) -> Progress:
        """For the transfer of one disk, beside others."""
        return _OfDisk(self, name)

    def _begin(self, name: str, total: int) -> None:
        with self._lock:
            disk = self._disks.setdefault(name, _Counted(total))
            disk.total, disk.done, disk.sent = total, 0, 0
            self._changes += 1

    def _advance(self, name: str, done: int, sent: int) -> None:
        with self._lock:
            disk = self._disks[name]
            disk.done += done
            disk.sent += sent
            self._changes += 1


class _OfDisk(Progress):
    def __init__(self, task: TaskProgress, name: str) -> None:
        self._task = task
        self._name = name

    def step(self, text: str) -> None:
        self._task.step(text)

    def begin(self, label: str, total: int) -> None:  # noqa: ARG002
        self._task._begin(self._name, total)

    def advance(self, done: int, sent: int = 0) -> None:
        self._task._advance(self._name, done, sent)
