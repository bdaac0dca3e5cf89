"""Work beside the loop: one of a key at a time, and a fault of one piece ends nothing else."""

from __future__ import annotations

import logging
import threading
from contextlib import closing

import pytest

from raksha.errors import DatabaseUnavailable
from raksha.scheduler.background import Background


def test_one_of_a_key_at_a_time() -> None:
    ended, done = threading.Event(), []
    background = Background(2)
    with closing(background):
        assert background.submit("commit 1", lambda: ended.wait(20))
        assert not background.submit("commit 1", lambda: done.append("twice"))
        assert background.submit("commit 2", lambda: done.append("other"))
        ended.set()
    assert done == ["other"]


@pytest.mark.parametrize(("fault", "traceback"), [(DatabaseUnavailable(detail="gone"), False), (ValueError("!"), True)])
def test_a_fault_is_told_and_the_key_is_free_again(
    fault: Exception, traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise fault

    background = Background(1)
    with closing(background), caplog.at_level(logging.ERROR):
        assert background.submit("retain all", fail)
        told = threading.Event()
        assert background.submit("told", told.set)  # the one thread has come to it
        assert told.wait(20)
        assert background.submit("retain all", lambda: None)
    (record,) = caplog.records
    assert record.getMessage().startswith("retain all")
    assert bool(record.exc_info) == traceback
