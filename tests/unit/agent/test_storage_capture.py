"""How a volume from storage is read, and what is said of it."""

from __future__ import annotations

import pytest

from raksha.agent.storage_capture import Decision, decide
from raksha.states import ReadMode, Reason
from raksha.types import Extent, ExtentKind
from raksha.virt.capture import Parent

SIZE = 1 << 30
CHANGED = [Extent(65536, 65536, ExtentKind.DATA)]


@pytest.mark.parametrize(
    ("parent", "changed", "wanted"),
    [
        (None, None, Decision(ReadMode.FULL, Reason.ASKED)),
        (None, CHANGED, Decision(ReadMode.FULL, Reason.ASKED)),
        (Parent("run", SIZE // 2), CHANGED, Decision(ReadMode.FULL, Reason.DISK_RESIZED)),
        (Parent("run", SIZE), None, Decision(ReadMode.COMPARE, Reason.NO_TRACKER)),
        (Parent("run", SIZE), CHANGED, Decision(ReadMode.DELTA, None, tuple(CHANGED))),
        # that nothing has changed is known, too
        (Parent("run", SIZE), [], Decision(ReadMode.DELTA, None, ())),
    ],
)
def test_decisions(parent: Parent | None, changed: list[Extent] | None, wanted: Decision) -> None:
    assert decide(parent, SIZE, Reason.ASKED, changed) == wanted
