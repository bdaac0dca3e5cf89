"""Every line of the log says of which task, run and request it is, as far as it is of one.

Threads that read and send data for a task are not known to be of it: what fails there is logged by the task.

Names of VMs, answers of other services and what stands in vaults may hold anything. A line of the log is one line all
the same, and a terminal that shows it does nothing else (`OneLine`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

FORMAT = "%(asctime)s %(levelname)s %(name)s [%(task_id)s %(run_id)s %(request_id)s] %(message)s"

_NONE = "-"
#: ends a line, moves what follows it, or speaks to the terminal
_UNSAFE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff]")
_about: ContextVar[tuple[str, str, str]] = ContextVar("about", default=(_NONE, _NONE, _NONE))


class OneLine(logging.Formatter):
    """Escapes what would make more of a line. Lines of a traceback are indented: none passes for one of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return harmless(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"    {harmless(line)}" for line in super().formatException(ei).split("\n"))


def harmless(text: str) -> str:
    """With escapes in place of what `OneLine` lets nobody say."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


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
    handler.setFormatter(OneLine(FORMAT))
    handler.addFilter(_add)
    return handler


def _add(record: logging.LogRecord) -> bool:
    record.task_id, run_id, record.request_id = _about.get()
    # some lines of schedulers are of a run beside what their thread is at
    record.run_id = getattr(record, "backupjobrun", run_id)
    return True
