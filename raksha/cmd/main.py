"""`raksha`: the entry point. `local` and `serve` are work on this host; everything else asks a service, which
`raksha.client` does by itself: neither needs what the other is made of.

For work on this host it listens for signals before it brings in the rest of Raksha, which takes a moment.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import raksha


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Never returns. Exit codes: docs/cli.md, docs/commands.md."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"raksha {raksha.__version__}")
        _leave(0)
    if words[:1] not in _HERE:
        sys.exit(_ask_service(words))
    cancel = threading.Event()
    _on_signals(cancel)
    gc.disable()  # nothing of what is brought in now is garbage; to look for some takes a tenth of the time
    try:
        from raksha.cmd.call import call
    except ImportError as error:  # only the client was installed
        if str(error.name).startswith("raksha"):
            raise
        told = f"{error.name} is not installed, which `raksha {words[0]}` needs. README.md says how to set up a host."
        print(f"raksha: {told}", file=sys.stderr)
        _leave(2)

    gc.freeze()
    gc.enable()
    _leave(call(words, cancel))


#: what is done on this host
_HERE = (["local"], ["serve"])


def _ask_service(words: list[str]) -> int:
    try:
        from raksha.client.shell import main as ask
    except ImportError as error:
        if not str(error.name).startswith(("cliff", "keystoneauth1", "openstack")):
            raise
        told = "`raksha local` and `raksha serve` work here; for anything else: pip install 'raksha[client]'."
        print(f"raksha: {error.name} is not installed. {told}", file=sys.stderr)
        return 2
    try:
        code = ask(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("raksha: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


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
