"""Every line of the log says of which task, run and request it is, as far as it is of one.

Threads that read and send data for a task are not known to be of it: what fails there is logged by the task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)s %(name)s [%(task_id)s %(run_id)s %(request_id)s] %(message)s"

_NONE = "-"
_about: ContextVar[tuple[str, str, str]] = ContextVar("about", default=(_NONE, _NONE, _NONE))


@contextmanager
def about(task_id: str | None, run_id: str | None, request_id: str | None) -> Iterator[None]:
    """What this thread logs is of these."""
    token = _about.set((task_id or _NONE, run_id or _NONE, request_id or _NONE))
    try:
        yield
    finally:
        _about.reset(token)


def named() -> logging.StreamHandler[TextIO]:
    """A handler whose lines on standard error say what they are about."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.addFilter(_add)
    return handler


def _add(record: logging.LogRecord) -> bool:
    record.task_id, run_id, record.request_id = _about.get()
    # some lines of schedulers are of a run beside what their thread is at
    record.run_id = getattr(record, "backupjobrun", run_id)
    return True
