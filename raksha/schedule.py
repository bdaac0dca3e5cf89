"""When a job runs: cron, interval, window, jitter, catch-up. Pure arithmetic on UTC epoch seconds.

    schedule = Schedule(cron="30 22 * * 1-5", zone="Europe/Paris", seed=job_id)
    check(schedule, now, least_seconds=900)
    next_after(schedule, now)             # the next fire time, strictly later
    due(schedule, last, now)              # what to run now, and what was missed

A cron expression speaks of the wall clock. A time that the clock skips fires once, at the moment at which it would have
come had the clock not been moved; a time that comes twice fires at its first coming. An interval is real elapsed time.
APScheduler walks the calendar as if it were UTC and never sees a time zone: in a zone it fires twice when the clock
goes back, and what it returns can repeat for ever.

Every function but `check` takes a schedule that `check` has accepted, and raises what it raises for wrong zones and
expressions. Nothing here knows the time, a database or a job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from itertools import islice, takewhile

from apscheduler.triggers.cron import CronTrigger
from msgspec import Struct

from raksha import cron as crontab
from raksha.cron import Cron
from raksha.errors import ScheduleInvalid, ScheduleNeverFires, ScheduleTooOften
from raksha.zones import clock_time, zone

DAY = 86400
#: no time zone skips more than a day (Samoa, 2011)
LONGEST_GAP = timedelta(hours=25)
#: days, or intervals, without a fire inside the window after which an interval counts as one that never meets it
TRIES = 1000
#: fires that `check` looks at; missed fires that `due` counts
LOOKED_AT = 1000
#: no time of a schedule lies beyond the year 3000
LATEST = 32503680000
#: seconds; `due` looks for the latest fire in the last hour, day, week, … so that a long downtime costs little
SPANS = (3600, DAY, 7 * DAY, 31 * DAY, 366 * DAY)


class CatchUp(StrEnum):
    """What happens to fires that nobody was there for."""

    #: the latest of them runs once
    LATEST = "latest"
    SKIP = "skip"


class Window(Struct, frozen=True):
    """When fires are allowed, on the wall clock; may cross midnight."""

    #: minutes after midnight, first allowed
    opens: int
    #: minutes after midnight, first not allowed
    closes: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """Of `22:00-06:00`. Raises `ScheduleInvalid`."""
        match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text, re.ASCII)
        if match is None:
            raise ScheduleInvalid(field="window", detail=f"{text!r} is not of the form 22:00-06:00")
        hour, minute, to_hour, to_minute = map(int, match.groups())
        return cls(hour * 60 + minute, to_hour * 60 + to_minute)

    def __str__(self) -> str:
        return f"{self.opens // 60:02}:{self.opens % 60:02}-{self.closes // 60:02}:{self.closes % 60:02}"

    def allows(self, minute: int) -> bool:
        if self.opens < self.closes:
            return self.opens <= minute < self.closes
        return minute >= self.opens or minute < self.closes


class Schedule(Struct, frozen=True, kw_only=True):
    """What a job says about its times. Exactly one of `cron` and `every`."""

    #: five fields, see `raksha.cron`
    cron: str | None = None
    #: seconds between two fires, real elapsed time
    every: int | None = None
    #: the first fire of `every`, from which all others count; epoch seconds
    anchor: int = 0
    #: IANA name; the clock of `cron`, `full_cron` and `window`
    zone: str = "UTC"
    #: epoch seconds, inclusive: scheduled times lie between them
    start: int | None = None
    end: int | None = None
    #: seconds by which a fire is put off at most
    jitter: int = 0
    #: spreads the jitter of many jobs: the id of the job
    seed: str = ""
    window: Window | None = None
    #: fires of its own, which are full
    full_cron: str | None = None
    #: every N-th run is full: 1 is each
    full_every: int | None = None
    catch_up: CatchUp = CatchUp.LATEST


class Fire(Struct, frozen=True):
    """One time at which a job runs. Epoch seconds."""

    #: what the schedule says
    scheduled: int
    #: with its jitter
    at: int
    #: a time of `full_cron`
    full: bool


class Due(Struct, frozen=True):
    """What is to be done now."""

    #: run, for this fire time; None: nothing now
    at: int | None
    #: fires that were passed over, at most `LOOKED_AT` are counted
    missed: int
    #: one of them, or the one to run, was of `full_cron`
    full: bool
    #: everything up to here is dealt with: the next `last`
    upto: int
    #: when to look again, None: never
    again: int | None


# -- fires ------------------------------------------------------------------------------------------


def next_after(schedule: Schedule, instant: int) -> int | None:
    """The first fire later than `instant`, jitter included; None: there is none."""
    fire = next(fires(schedule, instant), None)
    return fire.at if fire else None


def preview(schedule: Schedule, after: int, count: int) -> tuple[Fire, ...]:
    """The next `count` fires later than `after`, or as many as there are."""
    return tuple(islice(fires(schedule, after), count))


def fires(schedule: Schedule, after: int) -> Iterator[Fire]:
    """All fires later than `after`, in order. They may be without end."""
    # a fire that was put off to later than `after` may have been scheduled before it
    scheduled = _scheduled_after(schedule, after - schedule.jitter)
    while scheduled is not None:
        at = scheduled + _delay(schedule, scheduled)
        if at > after:
            yield Fire(scheduled, at, _full_after(schedule, scheduled - 1) == scheduled)
        scheduled = _scheduled_after(schedule, scheduled)


def wants_full(schedule: Schedule, on_full_cron: bool, since_full: int | None) -> bool:
    """Is the next run full? `since_full`: runs after the last full one, None if there was none."""
    if on_full_cron or since_full is None:
        return True
    return schedule.full_every is not None and since_full + 1 >= schedule.full_every


def due(schedule: Schedule, last: int, now: int, grace: int = 300) -> Due:
    """What to run at `now`, when all fires up to `last` have been dealt with. At most one: runs of a job add nothing to
    each other.

    A fire is missed when a later one is due as well, or, with `skip`, when it is more than `grace` seconds late. With
    `latest` it waits for the window instead when it is that late and the window is closed: then `upto` is `last`.
    """
    first = next(fires(schedule, last), None)
    if first is None or first.at > now:
        return Due(None, 0, False, last, first.at if first else None)
    latest = _latest(schedule, first, now)
    passed = takewhile(lambda fire: fire.at <= now, fires(schedule, last))
    count = sum(1 for _ in islice(passed, LOOKED_AT))
    if now - latest.at > grace:
        if schedule.catch_up == CatchUp.SKIP:
            return Due(None, count, False, latest.at, next_after(schedule, now))
        opens = _opens_after(schedule, now)
        if opens is not None:
            return Due(None, 0, False, last, opens)
    full = _full_after(schedule, first.scheduled - 1)
    return Due(
        latest.at, count - 1, full is not None and full <= latest.scheduled, latest.at, next_after(schedule, now)
    )


def _latest(schedule: Schedule, first: Fire, now: int) -> Fire:
    """The last fire up to `now`; `first` is one of them."""
    for span in SPANS:
        if now - span <= first.at:
            break
        found = _last_of(schedule, now - span, now)
        if found:
            return found
    return _last_of(schedule, first.at, now) or first


def _last_of(schedule: Schedule, after: int, upto: int) -> Fire | None:
    found = None
    for fire in fires(schedule, after):
        if fire.at > upto:
            break
        found = fire
    return found


# -- what the schedule says, without jitter ------------------------------------------------------------


def _scheduled_after(schedule: Schedule, instant: int) -> int | None:
    if schedule.start is not None:
        instant = max(instant, schedule.start - 1)
    found = _every_after(schedule, instant) if schedule.every else _cron_times(schedule, schedule.cron, instant)
    found = min((time for time in (found, _full_after(schedule, instant)) if time is not None), default=None)
    return None if found is None or (schedule.end is not None and found > schedule.end) else found


def _full_after(schedule: Schedule, instant: int) -> int | None:
    return _cron_times(schedule, schedule.full_cron, instant)


def _every_after(schedule: Schedule, instant: int) -> int | None:
    every = schedule.every or 1

    def following(after: int) -> int:
        return schedule.anchor + max(0, (after - schedule.anchor) // every + 1) * every

    time = following(instant)
    limit = min(LATEST, time + TRIES * max(DAY, every))
    while time <= limit:
        opens = _opens_after(schedule, time)
        if opens is None:
            return time
        # a clock that goes back can open the window without showing when it opens
        time = following(opens - 1 if _offset(schedule, opens) == _offset(schedule, time) else time)
    return None


def _offset(schedule: Schedule, instant: int) -> timedelta | None:
    return datetime.fromtimestamp(instant, zone(schedule.zone)).utcoffset()


def _cron_times(schedule: Schedule, text: str | None, instant: int) -> int | None:
    return None if text is None else _cron_after(text, schedule.zone, schedule.window, instant)


@lru_cache(maxsize=8192)
def _cron_after(text: str, zone_name: str, window: Window | None, instant: int) -> int | None:
    """The first of the instants later than `instant` that the expression's wall times stand for.

    A skipped wall time stands for a moment after the gap, so later wall times may come before it.
    """
    clock = zone(zone_name)
    moment = datetime.fromtimestamp(instant, UTC)
    # what the clock skipped lately may be yet to come
    wall = min(moment.astimezone(clock).replace(tzinfo=None), _shifted(moment, clock))
    best: int | None = None
    until = datetime.max
    while True:
        following = _wall_after(text, window, wall)
        if following is None or following >= until:
            return best
        wall = following
        time = _instant(wall, clock)
        if time > instant and (best is None or time < best):
            best = time
            skipped = datetime.fromtimestamp(time, clock).replace(tzinfo=None) - wall
            until = min(until, wall + max(skipped, timedelta()))


def _shifted(moment: datetime, clock: tzinfo) -> datetime:
    """The wall time of `moment` by the offset that was in force before a gap that may just have been."""
    offset = (moment - LONGEST_GAP).astimezone(clock).utcoffset() or timedelta()
    return moment.replace(tzinfo=None) + offset


def _instant(wall: datetime, clock: tzinfo) -> int:
    """Of two that the clock shows alike the first; of one that it skips, by the offset before the gap."""
    return int(wall.replace(tzinfo=clock, fold=0).timestamp())


def _wall_after(text: str, window: Window | None, wall: datetime) -> datetime | None:
    """The first wall time later than `wall` that fits expression and window."""
    if window and not _meets(crontab.parse(text), window):
        return None
    while True:
        start = wall.replace(tzinfo=UTC) + timedelta(seconds=1)
        times = [trigger.get_next_fire_time(None, start) for trigger in _triggers(text)]
        found = min((time for time in times if time is not None), default=None)
        if found is None:
            return None
        wall = found.replace(tzinfo=None)
        if window is None or window.allows(wall.hour * 60 + wall.minute):
            return wall
        opens = wall.replace(hour=window.opens // 60, minute=window.opens % 60)
        wall = (opens if opens > wall else opens + timedelta(days=1)) - timedelta(seconds=1)


def _meets(cron: Cron, window: Window) -> bool:
    return any(window.allows(hour * 60 + minute) for hour in cron.hours for minute in cron.minutes)


@lru_cache(maxsize=4096)
def _triggers(text: str) -> tuple[CronTrigger, ...]:
    """Together they fire when the expression does; none: never. One that never fires would search up to year 9999."""
    cron = crontab.parse(text)
    days = _listed(cron.days, 31)
    # by name: APScheduler's 0 is Monday
    weekdays = ",".join(crontab.WEEKDAYS[day][:3].lower() for day in cron.weekdays)
    pairs = [(days, weekdays)] if not cron.either_day else [(days, "*"), ("*", weekdays)]
    return tuple(
        CronTrigger(
            month=_listed(cron.months, 12),
            day=day,
            day_of_week=weekday,
            hour=_listed(cron.hours, 24),
            minute=_listed(cron.minutes, 60),
            second="0",
            timezone=UTC,
        )
        for day, weekday in pairs
        if day != days or cron.has_month_day
    )


def _listed(values: tuple[int, ...], whole: int) -> str:
    return "*" if len(values) == whole else ",".join(map(str, values))


# -- window and jitter --------------------------------------------------------------------------------


def _opens_after(schedule: Schedule, instant: int) -> int | None:
    """When the window opens that is closed at `instant`; None: it is open, or there is none."""
    window = schedule.window
    if window is None:
        return None
    clock = zone(schedule.zone)
    wall = datetime.fromtimestamp(instant, clock).replace(tzinfo=None, second=0)
    if window.allows(wall.hour * 60 + wall.minute):
        return None
    return _instant_of_minute(wall, window.opens, clock, instant)


def _instant_of_minute(wall: datetime, minute: int, clock: tzinfo, after: int) -> int:
    """When the clock next shows `minute` after midnight, or skips it, later than `after`."""
    midnight = wall.replace(hour=0, minute=0, second=0)
    times = (time for day in range(4) for time in _instants(midnight + timedelta(days=day - 1, minutes=minute), clock))
    return next(time for time in times if time > after)


def _instants(wall: datetime, clock: tzinfo) -> tuple[int, ...]:
    """When the clock shows `wall`: once or twice; of one that it skips, when it skips it."""
    first = _instant(wall, clock)
    second = int(wall.replace(tzinfo=clock, fold=1).timestamp())
    if second < first:
        while datetime.fromtimestamp(first - 60, clock).replace(tzinfo=None) > wall:
            first -= 60
    return (first, second) if second > first else (first,)


def _delay(schedule: Schedule, scheduled: int) -> int:
    """The same for the same fire. It never reaches the next fire or leaves the window, nor passes the end."""
    if not schedule.jitter:
        return 0
    bounds = [scheduled + schedule.jitter + 1]
    following = _scheduled_after(schedule, scheduled)
    if following is not None:
        bounds.append(following)
    if schedule.end is not None:
        bounds.append(schedule.end + 1)
    if schedule.window is not None:
        clock = zone(schedule.zone)
        if _opens_after(schedule, scheduled) is not None:
            return 0
        wall = datetime.fromtimestamp(scheduled, clock).replace(tzinfo=None)
        bounds.append(_instant_of_minute(wall, schedule.window.closes, clock, scheduled))
    drawn = blake2b(f"{schedule.seed}:{scheduled}".encode(), digest_size=8).digest()
    delay = int.from_bytes(drawn, "big") % (min(bounds) - scheduled)
    # a clock that goes back can close the window as well
    return 0 if _opens_after(schedule, scheduled + delay) is not None else delay


# -- what is refused ----------------------------------------------------------------------------------


def check(schedule: Schedule, now: int, least_seconds: int) -> None:
    """Refuse what cannot be meant.

    Raises `ZoneUnknown`, `BadCron`, `ScheduleInvalid`, `ScheduleNeverFires` (from `now` on), and `ScheduleTooOften` if
    two of the next fires, without jitter, are less than `least_seconds` apart.
    """
    zone(schedule.zone)
    _check_fields(schedule)
    for text in (schedule.cron, schedule.full_cron):
        if text is not None:
            _check_cron(text, schedule.window)
    if schedule.end is not None and schedule.start is not None and schedule.end < schedule.start:
        raise ScheduleNeverFires(detail="its end is before its start")
    if schedule.every and schedule.every < least_seconds:
        raise ScheduleTooOften(seconds=schedule.every, least=least_seconds, at="every time")
    before = _scheduled_after(schedule, now)
    if before is None:
        raise ScheduleNeverFires(detail=_why_never(schedule, now))
    for _ in range(LOOKED_AT):
        time = _scheduled_after(schedule, before)
        if time is None:
            break
        if time - before < least_seconds:
            raise ScheduleTooOften(seconds=time - before, least=least_seconds, at=clock_time(before, schedule.zone))
        before = time


def _check_fields(schedule: Schedule) -> None:
    if (schedule.cron is None) == (schedule.every is None):
        raise ScheduleInvalid(field="cron", detail="a schedule has either a cron expression or an interval")
    if schedule.full_cron is not None and schedule.full_every is not None:
        raise ScheduleInvalid(field="full_cron", detail="full runs have either times of their own or a number")
    limits = {
        "every": (schedule.every, 1, LATEST),
        "anchor": (schedule.anchor, 0, LATEST),
        "start": (schedule.start, 0, LATEST),
        "end": (schedule.end, 0, LATEST),
        "jitter": (schedule.jitter, 0, DAY),
        "full_every": (schedule.full_every, 1, 1_000_000),
    }
    for field, (value, low, high) in limits.items():
        if value is not None and not low <= value <= high:
            raise ScheduleInvalid(field=field, detail=f"{value} is not between {low} and {high}")
    window = schedule.window
    if window and not (window.opens != window.closes and all(0 <= m < 1440 for m in (window.opens, window.closes))):
        raise ScheduleInvalid(field="window", detail=f"{window} is no part of a day")


def _check_cron(text: str, window: Window | None) -> None:
    cron = crontab.parse(text)
    if not cron.can_fire:
        raise ScheduleNeverFires(detail=f"no month of {text!r} has such a day")
    if window and not _meets(cron, window):
        raise ScheduleNeverFires(detail=f"every time of {text!r} is outside of the window {window}")


def _why_never(schedule: Schedule, now: int) -> str:
    if schedule.end is not None and schedule.end <= now:
        return f"it ended at {clock_time(schedule.end, schedule.zone)}"
    if schedule.end is not None:
        return f"no time comes before its end at {clock_time(schedule.end, schedule.zone)}"
    return f"its interval never meets the window {schedule.window}"
