"""Places at which a process may be made to die, so that tests can walk over all of them.

A point is passed before and after everything that changes the world outside this process: journal, libvirt, images,
vault, restored files. The wrappers around those calls make the points (`around`), so nobody has to remember them;
tests/unit/test_crash_points.py finds calls that go past the wrappers.

    RAKSHA_CRASH_AT=name[:n]    end this process with SIGKILL at the n-th passing (default: the first) of a point
    RAKSHA_CRASH_SIGNAL=STOP    or any other signal instead of KILL: then the world can change before it goes on
    RAKSHA_CRASH_TRACE=FILE     append the name of every point that is passed

`name` is passed before the call, `name.done` after one that succeeded. Without these variables nothing is done here.
Not promised: the same order of points from run to run, where several threads pass them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_AT, _, _NUMBER = os.environ.get("RAKSHA_CRASH_AT", "").partition(":")
_SIGNAL = signal.Signals[f"SIG{os.environ.get('RAKSHA_CRASH_SIGNAL', 'KILL')}"]
_TRACE = os.environ.get("RAKSHA_CRASH_TRACE", "")

#: whether this process passes points at all
ON = bool(_AT or _TRACE)

_NOTHING: AbstractContextManager[None] = nullcontext()
_mutex = threading.Lock()
_left = int(_NUMBER or 1)


def around(name: str) -> AbstractContextManager[None]:
    """The points `name` and `name.done` around what is done in the context."""
    return _around(name) if ON else _NOTHING


@contextmanager
def _around(name: str) -> Iterator[None]:
    _pass(name)
    yield
    _pass(f"{name}.done")


def _pass(name: str) -> None:
    global _left
    with _mutex:
        if _TRACE:
            descriptor = os.open(_TRACE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(descriptor, f"{name}\n".encode())
            os.close(descriptor)
        if name == _AT:
            _left -= 1
            if _left == 0:
                os.kill(os.getpid(), _SIGNAL)
