"""What a person or a program sees: steps and progress on standard error, results on standard output.

On a terminal a transfer is a bar with rate and time left; elsewhere it is one line at its end. With `--json`,
standard output carries exactly one JSON document, also for an error, and standard error stays silent.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from raksha.errors import RakshaError
from raksha.progress import Progress, human

if TYPE_CHECKING:
    from tqdm import tqdm


class Output(Progress):
    """One per command."""

    def __init__(self, *, as_json: bool, quiet: bool = False) -> None:
        self._json = as_json
        self._silent = as_json or quiet
        self._lock = threading.Lock()
        self._bar: tqdm[NoReturn] | None = None
        self._label = ""
        self._started = 0.0
        self._done = self._sent = 0

    # -- while it works ---------------------------------------------------------------------------

    def step(self, text: str) -> None:
        if not self._silent:
            with self._lock:
                # beside a bar it is the bar that knows where lines go
                write = print if self._bar is None else self._bar.write
                write(plain(text), file=sys.stderr)

    def begin(self, label: str, total: int) -> None:
        self._label, self._started, self._done, self._sent = label, time.monotonic(), 0, 0
        if not self._silent and sys.stderr.isatty():
            from tqdm import tqdm  # a tenth of the start of a command, and most of them draw no bar

            self._bar = tqdm(desc=label, total=total, unit="B", unit_scale=True, unit_divisor=1024, leave=False)

    def advance(self, done: int, sent: int = 0) -> None:
        with self._lock:
            self._done += done
            self._sent += sent
            if self._bar is not None:
                self._bar.update(done)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif not self._silent and self._done:
            seconds = max(time.monotonic() - self._started, 1e-3)
            rate = human(self._done / seconds)
            self.step(f"{self._label}: {human(self._done)} in {seconds:.1f} s ({rate}/s)")

    # -- results ----------------------------------------------------------------------------------

    def result(self, document: Any, lines: Iterable[str]) -> None:
        """The one result of a command: a JSON document, or lines for a person."""
        if self._json:
            print(json.dumps(document, indent=1, default=str))
        else:
            for line in lines:
                print(plain(line))

    def warning(self, text: str) -> None:
        """Something is not as it should be: told even if nothing else is."""
        if not self._json:
            print(f"warning: {plain(text)}", file=sys.stderr)

    def error(self, error: RakshaError) -> None:
        """One line, and what to do next."""
        if self._json:
            about = {"code": error.code, "message": str(error), "hint": error.advice()}
            print(json.dumps({"error": about, "fields": error.fields}, indent=1, default=str))
            return
        advice = f" {error.advice()}" if error.advice() else ""
        print(f"raksha: {plain(f'{error}{advice}')}", file=sys.stderr)


def plain(text: str) -> str:
    """One line without anything that a terminal would obey: names come from vaults, guests and other programs."""
    return "".join(each if each.isprintable() else " " for each in text).rstrip()


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Columns as wide as they need to be."""
    cells = [list(headings), *[["-" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
