"""Which restore points to keep. Pure: it looks at nothing but what it is given, and deletes nothing.

`decide` is grandfather-father-son: of each of the newest N hours, days, weeks … that have a restorable point, the
newest point stays. It promises:

- the newest restorable point and protected points stay; where nothing is restorable, everything stays
- points that cannot be restored take no place of one that can
- the order of `points` does not matter; asked again about what it kept, it keeps all of it
- a newer point never brings back one that was not kept before

Not here: chains. A point that is deleted while others build upon it is consolidated first, by whoever deletes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from msgspec import Struct

from raksha.errors import RetentionInvalid
from raksha.zones import zone

T = TypeVar("T")
#: id of a point, whether one rule keeps it, the reason
Verdict = tuple[str, bool, str]


def beyond_last(points: Sequence[T], keep: int) -> list[T]:
    """What is left over when only the last `keep` of `points` (oldest first) stay.

    Raises `ValueError` for less than one: a policy never leaves a job without a restore point.
    """
    if keep < 1:
        raise ValueError("at least one restore point stays")
    return list(points[: max(0, len(points) - keep)])


class Retention(Struct, frozen=True, kw_only=True):
    """How many to keep of each kind. A point may serve several kinds."""

    keep_last: int = 0
    hourly: int = 0
    daily: int = 0
    #: ISO weeks, from Monday on
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    #: IANA name: whose hours, days, … are meant
    zone: str = "UTC"


class Point(Struct, frozen=True):
    """A run that has ended, well or not."""

    id: str
    #: epoch seconds
    taken_at: int
    #: by its owner: never deleted
    protected: bool = False
    #: complete and available
    restorable: bool = True


class Decision(Struct, frozen=True):
    point: Point
    kept: bool
    #: why; never empty. `daily 2026-11-20`, `protected`; deleted: `daily 2026-11-20: run-7 is newer`
    reasons: tuple[str, ...]


#: what a point belongs to, by the local time at which it was taken. Two hours of the same name differ by their offset
PERIODS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda local: f"{local:%Y-%m-%d %H:00 %z}",
    "daily": lambda local: f"{local:%Y-%m-%d}",
    "weekly": lambda local: f"{local:%G-W%V}",
    "monthly": lambda local: f"{local:%Y-%m}",
    "yearly": lambda local: f"{local:%Y}",
}


def check(retention: Retention) -> None:
    """Raises `ZoneUnknown`, and `RetentionInvalid` for a number below 0 or when nothing would be kept."""
    zone(retention.zone)
    kinds = ("keep_last", *PERIODS)
    for kind in kinds:
        if getattr(retention, kind) < 0:
            raise RetentionInvalid(field=kind, detail="it is below 0")
    if not any(getattr(retention, kind) for kind in kinds):
        raise RetentionInvalid(field="numbers", detail="all of them are 0")


def decide(points: Iterable[Point], retention: Retention) -> list[Decision]:
    """What becomes of each point, oldest first. Leave out runs that are still under way.

    Raises what `check` raises.
    """
    check(retention)
    ordered = sorted(points, key=lambda point: (point.taken_at, point.id))
    restorable = [point for point in reversed(ordered) if point.restorable]
    if not restorable:
        return [Decision(point, True, ("nothing is restorable: all stay",)) for point in ordered]
    kept: dict[str, list[str]] = {point.id: ["protected"] if point.protected else [] for point in ordered}
    deleted: dict[str, list[str]] = {point.id: [] if point.restorable else ["not restorable"] for point in ordered}
    kept[restorable[0].id].append("newest restorable")
    for id, stays, reason in (*_last(restorable, retention), *_newest_of_periods(restorable, retention)):
        (kept if stays else deleted)[id].append(reason)
    return [Decision(point, bool(kept[point.id]), tuple(kept[point.id] or deleted[point.id])) for point in ordered]


def _last(newest_first: list[Point], retention: Retention) -> Iterator[Verdict]:
    count = retention.keep_last
    for number, point in enumerate(newest_first if count else (), 1):
        stays = number <= count
        yield point.id, stays, f"last {number} of {count}" if stays else f"not among the last {count}"


def _newest_of_periods(newest_first: list[Point], retention: Retention) -> Iterator[Verdict]:
    clock = zone(retention.zone)
    wanted = [(kind, name_of, count) for kind, name_of in PERIODS.items() if (count := getattr(retention, kind))]
    for kind, name_of, count in wanted:
        served: dict[str, str] = {}
        for point in newest_first:
            name = name_of(datetime.fromtimestamp(point.taken_at, clock))
            if name in served:
                yield point.id, False, f"{kind} {name}: {served[name]} is newer"
            elif len(served) < count:
                served[name] = point.id
                yield point.id, True, f"{kind} {name}"
            else:
                yield point.id, False, f"{kind} {name}: beyond the newest {count}"
