"""What a person sees while a run or a restore is under way: a bar on a terminal, plain lines elsewhere.

On standard error, so that standard output holds the result alone. A line is written when the state changes, and each
time that a tenth of the bytes is done; a bar has bytes, rate and time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from raksha.client import words
from raksha.client.records import Progress, Said

if TYPE_CHECKING:
    from tqdm import tqdm

_STEP = 10


class Watched(Protocol):
    """A run or a restore."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def error(self) -> Said | None: ...


class Lines:
    """Elsewhere than on a terminal."""

    def __init__(self, label: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._stream, self._clock = label, stream, clock
        self._state = ""
        self._told = 0
        self._rate = Rate(clock)

    def show(self, found: Watched) -> None:
        state = stated(found)
        self._rate.see(found.progress.bytes_done)
        if state != self._state:
            self._state = state
            self._write(state)
        percent = found.progress.percent or 0
        if percent >= self._told + _STEP:
            self._told = percent - percent % _STEP
            self._write(told(found.progress, self._rate))

    def _write(self, text: str) -> None:
        print(f"{self._label}: {words.plain(text)}", file=self._stream, flush=True)

    def close(self) -> None:
        """There is nothing to put away."""


class Bar:
    """On a terminal."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label, self._stream = label, stream
        self._bar: tqdm[Any] | None = None
        self._state = ""

    def show(self, found: Watched) -> None:
        state = stated(found)
        if state != self._state:
            self._state = state
            self._write(f"{self._label}: {words.plain(state)}")
        total, done = found.progress.bytes_total, found.progress.bytes_done
        if total and self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._label, total=total, initial=done, unit="B", unit_scale=True, unit_divisor=1024, leave=False,
                file=self._stream, mininterval=0,
            )  # fmt: skip
        elif self._bar is not None:
            self._bar.total = max(total, done)
            self._bar.update(done - self._bar.n)

    def _write(self, text: str) -> None:
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Rate:
    """Bytes per second since the first look."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] = (0.0, 0)

    def see(self, done: int) -> None:
        self._last = self._clock(), done
        if self._first is None or done < self._first[1]:
            self._first = self._last

    @property
    def now(self) -> float | None:
        if self._first is None or self._last[0] <= self._first[0] or self._last[1] <= self._first[1]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])


def told(progress: Progress, rate: Rate) -> str:
    """`40 %, 4 GiB of 10 GiB, 30 MiB/s, 3 min 24 s left`."""
    parts = [f"{progress.percent} %"]
    parts.append(f"{words.human_size(progress.bytes_done)} of {words.human_size(progress.bytes_total)}")
    if rate.now:
        parts.append(f"{words.human_size(rate.now)}/s")
        left = max(0, progress.bytes_total - progress.bytes_done) / rate.now
        if left >= 1:
            parts.append(f"{words.human_length(left)} left")
    return ", ".join(parts)


def stated(found: Watched) -> str:
    """The state, and what it waits for or failed at."""
    why: Said | None = found.error or getattr(found, "queued_reason", None)
    return f"{found.state} ({why.message})" if why is not None and why.message else found.state


def display(label: str, stream: TextIO) -> Lines | Bar:
    return Bar(label, stream) if stream.isatty() else Lines(label, stream)
