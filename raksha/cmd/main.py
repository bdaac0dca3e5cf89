"""`raksha`: the entry point. It listens for signals before it brings in the rest of Raksha, which takes a moment."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: docs/cli.md."""
    cancel = threading.Event()
    _on_signals(cancel)
    from raksha.cmd.call import call

    code = call(arguments, cancel)
    # it is done: what comes while Python clears up must not make it look otherwise
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return code


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
    sys.exit(main())
