"""The barrier: no snapshot before all are frozen, no thaw before all have a snapshot, and all are thawed always."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest

from raksha.errors import CaptureFailed, QuiesceFailed
from raksha.virt.capture import Capture, Prepared
from raksha.virt.group import freeze_together


class Member:
    """A VM that notes what is done to it, and fails where told."""

    def __init__(self, name: str, log: list[tuple[str, str]], fails: str = "", slow: float = 0) -> None:
        self.vm_name = name
        self._log = log
        self._fails = fails
        self._slow = slow
        self.taken_at = 0.0

    def _step(self, step: str) -> None:
        if step == "freeze":
            time.sleep(self._slow)
        self._log.append((step, self.vm_name))
        if self._fails == step:
            raise QuiesceFailed(vm=self.vm_name, detail=step)

    def freeze(self) -> None:
        self._step("freeze")

    def snapshot(self) -> None:
        self.taken_at = 100.0 if self.vm_name == "a" else 100.25
        self._step("snapshot")

    def thaw(self) -> None:
        self._step("thaw")

    def cancel(self) -> None:
        self._step("cancel")

    def abandon(self) -> None:
        self._step("abandon")

    def capture(self) -> Capture:
        self._step("capture")
        return cast(Capture, self)


def members(log: list[tuple[str, str]], **second: Any) -> list[Prepared]:
    return [cast(Prepared, Member("a", log)), cast(Prepared, Member("b", log, **second))]


def steps(log: list[tuple[str, str]]) -> list[str]:
    return [step for step, _ in log]


def test_barrier() -> None:
    log: list[tuple[str, str]] = []
    group = freeze_together(members(log, slow=0.1), 5.0)
    assert steps(log) == ["freeze"] * 2 + ["snapshot"] * 2 + ["thaw"] * 2 + ["capture"] * 2
    assert group.skew_seconds == pytest.approx(0.25) and 0.1 <= group.window_seconds < 5
    assert [cast(Any, capture).vm_name for capture in group.captures] == ["a", "b"]


@pytest.mark.parametrize("step", ["freeze", "snapshot"])
def test_one_fails(step: str) -> None:
    log: list[tuple[str, str]] = []
    with pytest.raises(QuiesceFailed, match="VM b"):
        freeze_together(members(log, fails=step), 5.0)
    assert {("thaw", "a"), ("thaw", "b"), ("cancel", "a"), ("cancel", "b")} <= set(log)
    assert steps(log).index("cancel") > steps(log).index("thaw") and "capture" not in steps(log)
    if step == "freeze":
        assert "snapshot" not in steps(log)


def test_capture_fails() -> None:
    log: list[tuple[str, str]] = []
    with pytest.raises(QuiesceFailed):
        freeze_together(members(log, fails="capture"), 5.0)
    assert log[-2:] == [("abandon", "a"), ("cancel", "b")]


def test_late() -> None:
    log: list[tuple[str, str]] = []
    with pytest.raises(CaptureFailed, match="longer than"):
        freeze_together(members(log, slow=0.2), 0.1)
    assert "snapshot" not in steps(log) and steps(log).count("thaw") == 2


def test_members_are_worked_on_at_once() -> None:
    log: list[tuple[str, str]] = []
    meet = threading.Barrier(3, timeout=5)
    group = [Member(name, log) for name in "abc"]
    for member in group:
        member.freeze = meet.wait  # type: ignore[assignment]
    freeze_together([cast(Prepared, member) for member in group], 5.0)


def test_empty() -> None:
    with pytest.raises(ValueError, match="at least one"):
        freeze_together([], 1.0)
