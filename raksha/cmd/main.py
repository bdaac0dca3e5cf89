"""`raksha`: the entry point. It listens for signals before it brings in the rest of Raksha, which takes a moment."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Never returns. Exit codes: docs/cli.md."""
    cancel = threading.Event()
    _on_signals(cancel)
    gc.disable()  # nothing of what is brought in now is garbage; to look for some takes a tenth of the time
    from raksha.cmd.call import call

    gc.freeze()
    gc.enable()
    _leave(call(arguments, cancel))


def _leave(code: int) -> NoReturn:
    """It is done. Python's own clearing up takes a tenth of a short command, and nothing of it is needed: whatever must
    be closed was closed where it was used."""
    # what comes now must not make it look otherwise
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # the reader of our output has seen enough
        pass
    except OSError:  # nobody got the result
        code = code or 1
    os._exit(code)


def _on_signals(cancel: threading.Event) -> None:
    """The first SIGINT or SIGTERM asks for an orderly end: no exception in the middle of a step."""

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not cancel.is_set():
            cancel.set()
            if sys.stderr.isatty():  # past whatever is being drawn there, and without a lock
                os.write(2, b"\nending at the next safe moment ...\n")

    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)


if __name__ == "__main__":
    main()
