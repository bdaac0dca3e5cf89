"""Every line of the log says of which task, run and request it is, as far as it is of one.

Threads that read and send data for a task are not known to be of it: what fails there is logged by the task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

FORMAT = "%(asctime)s %(levelname)s %(name)s [%(task_id)s %(run_id)s %(request_id)s] %(message)s"

_NONE = ("-", "-", "-")
_about: ContextVar[tuple[str, str, str]] = ContextVar("about", default=_NONE)


@contextmanager
def about(task_id: str, run_id: str | None, request_id: str | None) -> Iterator[None]:
    token = _about.set((task_id, run_id or "-", request_id or "-"))
    try:
        yield
    finally:
        _about.reset(token)


def name_tasks(handler: logging.Handler) -> None:
    """Give a handler's records `task_id`, `run_id` and `request_id`."""
    handler.addFilter(_add)


def _add(record: logging.LogRecord) -> bool:
    record.task_id, record.run_id, record.request_id = _about.get()
    return True
