"""Pictures of a job as plain SVG: geometry is computed here, templates draw it.

bars   one pair of bars for each run: bytes sent, and what of them was stored
chain  each restore point as a circle (full) or a square (incremental) behind the one that it builds on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.utils.translation import gettext as _
from msgspec import Struct

from raksha.client.records import Run
from raksha_dashboard import words

WIDTH, HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 190, 72, 26, 12
#: runs that fit
MOST_BARS, MOST_POINTS = 24, 16
_STEP = 42


class Bar(Struct, frozen=True):
    x: float
    width: float
    sent_y: float
    sent_height: float
    stored_y: float
    stored_height: float
    label: str
    title: str


class Line(Struct, frozen=True):
    y: float
    text: str


class Bars(Struct, frozen=True):
    bars: tuple[Bar, ...]
    lines: tuple[Line, ...]
    #: the same for who cannot see it
    rows: tuple[tuple[str, str, str, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    base: int = HEIGHT - _BOTTOM


class Point(Struct, frozen=True):
    run: Any
    x: int
    full: bool
    title: str
    label: str
    look: str
    #: where the one before it is; None: it builds on nothing
    before: int | None


class Chain(Struct, frozen=True):
    points: tuple[Point, ...]
    width: int
    left_out: int


def bars(runs: Sequence[Run]) -> Bars | None:
    """`runs`: newest first. None: there is nothing to show."""
    shown = [run for run in reversed(runs) if run.state in words.RESTORABLE][-MOST_BARS:]
    if not shown:
        return None
    top = _round_up(max(max(run.progress.bytes_sent, run.bytes_stored) for run in shown) or 1)
    space = HEIGHT - _BOTTOM - _TOP
    step = (WIDTH - _LEFT - 8) / max(len(shown), 8)
    width = min(step * 0.36, 22)
    made = []
    for number, run in enumerate(shown):
        sent, stored = (max(space * count / top, 1.0) for count in (run.progress.bytes_sent, run.bytes_stored))
        base = HEIGHT - _BOTTOM
        label = words.moment(run.taken_at or run.created_at)
        title = _("%(when)s, %(kind)s: %(sent)s sent, %(stored)s stored") % {
            "when": label, "kind": words.KINDS.get(run.kind, run.kind), "sent": words.size(run.progress.bytes_sent),
            "stored": words.size(run.bytes_stored),
        }  # fmt: skip
        x = _LEFT + step * number + (step - 2 * width - 2) / 2
        every = max(1, -(-len(shown) // 8))
        text = label[5:] if number % every == 0 else ""
        made.append(Bar(_r(x), _r(width), _r(base - sent), _r(sent), _r(base - stored), _r(stored), text, title))
    lines = tuple(
        Line(_r(HEIGHT - _BOTTOM - space * part / 4), words.size(int(top * part / 4))) for part in range(0, 5, 2)
    )
    rows = tuple(
        (words.moment(run.taken_at or run.created_at), str(words.KINDS.get(run.kind, run.kind)),
         words.size(run.progress.bytes_sent), words.size(run.bytes_stored))
        for run in shown
    )  # fmt: skip
    return Bars(tuple(made), lines, rows)


def chain(runs: Sequence[Run]) -> Chain | None:
    """`runs`: newest first. Points are shown as they were taken; a full one begins anew."""
    points = [run for run in reversed(runs) if run.state in words.RESTORABLE]
    shown = points[-MOST_POINTS:]
    if not shown:
        return None
    made: list[Point] = []
    for number, run in enumerate(shown):
        full = run.kind == "full"
        label = words.moment(run.taken_at or run.created_at)
        title = _("%(kind)s of %(when)s, %(stored)s stored") % {
            "kind": words.KINDS.get(run.kind, run.kind), "when": label, "stored": words.size(run.bytes_stored),
        }  # fmt: skip
        if run.protected:
            title = _("%s, protected") % title
        before = None if full or number == 0 else made[-1].x
        x = 30 + _STEP * number
        made.append(Point(run, x, full, title, label[5:10], words.look(run.state), before))
    return Chain(tuple(made), 60 + _STEP * (len(shown) - 1), len(points) - len(shown))


def _round_up(count: int) -> int:
    """To a number that is easy to read: 1, 2 or 5 of a power of 1024 or of ten of it."""
    unit = 1
    while unit * 1024 <= count:
        unit *= 1024
    for factor in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        if unit * factor >= count:
            return unit * factor
    return count


def _r(number: float) -> float:
    return round(number, 1)
