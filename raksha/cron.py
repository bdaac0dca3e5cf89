"""Cron expressions as cron means them: five fields, Sunday is 0 and 7, names in English, `@daily` and its like.

A record of plain numbers, and its words. Not here: time zones and fire times (`raksha.schedule`).

Day of month and day of week are crontab(5)'s: where both are restricted (neither has a `*`), a day that fits either
fires; otherwise it has to fit both. What crons disagree about is refused: `5/15` without a range, `?`, `L`, `W`, `#`,
six fields, ranges that run backwards. A range of week days may end with Sunday: `5-7`, `fri-sun`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from msgspec import Struct

from raksha.errors import BadCron

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
#: by cron's number
WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
#: the longest that each month can be
MONTH_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_PART = re.compile(r"(?:(?P<all>\*)|(?P<first>[a-z]+|\d+)(?:-(?P<last>[a-z]+|\d+))?)(?:/(?P<step>\d+))?", re.ASCII)


class Cron(Struct, frozen=True):
    """When it fires on the wall clock. Each field: its numbers in ascending order."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    #: of the month, 1-31
    days: tuple[int, ...]
    months: tuple[int, ...]
    #: 0-6, 0 is Sunday
    weekdays: tuple[int, ...]
    #: a day fires that fits `days` or `weekdays`; else it must fit both
    either_day: bool

    @property
    def has_month_day(self) -> bool:
        """Some month of `months` can have a day of `days`: not so for February 30."""
        return self.days[0] <= max(MONTH_DAYS[month - 1] for month in self.months)

    @property
    def can_fire(self) -> bool:
        return self.either_day or self.has_month_day


class _Field(Struct, frozen=True):
    name: str
    low: int
    high: int
    #: short names, the first stands for `low`
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, tuple(month[:3].lower() for month in MONTHS)),
    _Field("day of week", 0, 7, tuple(day[:3].lower() for day in WEEKDAYS)),
)


@lru_cache(maxsize=4096)
def parse(text: str) -> Cron:
    """The expression's numbers. Raises `BadCron`."""
    fields = MACROS.get(text.strip().lower(), text).lower().split()
    if len(fields) != len(_FIELDS):
        raise BadCron(cron=text, detail=f"it has {len(fields)} fields instead of 5")
    minutes, hours, days, months, weekdays = (
        _numbers(text, field, part) for field, part in zip(_FIELDS, fields, strict=True)
    )
    return Cron(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=tuple(sorted(days)),
        months=tuple(sorted(months)),
        weekdays=tuple(sorted({day % 7 for day in weekdays})),
        either_day="*" not in fields[2] and "*" not in fields[4],
    )


def _numbers(text: str, field: _Field, content: str) -> set[int]:
    found: set[int] = set()
    for part in content.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise BadCron(cron=text, detail=f"{field.name} {part!r} is no number, name, range, step or list of these")
        found.update(_range(text, field, match))
    return found


def _range(text: str, field: _Field, match: re.Match[str]) -> range:
    step = int(match["step"] or 1)
    if step == 0:
        raise BadCron(cron=text, detail=f"{field.name} {match[0]!r} has a step of 0")
    if match["all"]:
        return range(field.low, field.high + 1, step)
    first = _number(text, field, match["first"])
    if match["last"] is None:
        if match["step"]:
            raise BadCron(cron=text, detail=f"{field.name} {match[0]!r}: a step needs a range or *")
        return range(first, first + 1)
    last = _number(text, field, match["last"])
    if match["last"] == "sun" and first > 0:
        last = 7
    if last < first:
        raise BadCron(cron=text, detail=f"{field.name} {match[0]!r} runs backwards")
    return range(first, last + 1, step)


def _number(text: str, field: _Field, word: str) -> int:
    if word in field.names:
        return field.low + field.names.index(word)
    if not word.isdigit() or not field.low <= int(word[:9]) <= field.high:
        raise BadCron(cron=text, detail=f"{field.name} {word!r} is not in {field.low}-{field.high}")
    return int(word)


# -- words ------------------------------------------------------------------------------------------


def words(cron: Cron) -> str:
    """Plain English without an end, such as `at 22:30 from Monday to Friday`."""
    times, days = _times(cron), _days(cron)
    return times + (days.removeprefix(" every day") if times.startswith("every") else days)


def listed(items: list[str], last: str = "and") -> str:
    """`a, b and c`"""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def _times(cron: Cron) -> str:
    minutes, hours = cron.minutes, cron.hours
    if len(minutes) * len(hours) <= 6:
        return "at " + listed([f"{hour:02}:{minute:02}" for hour in hours for minute in minutes])
    every_hours = _step(hours, 24)
    if len(minutes) == 1 and every_hours:
        start = "on the hour" if minutes == (0,) else f"at minute {minutes[0]}"
        return f"every hour, {start}" if every_hours == 1 else f"every {every_hours} hours from 00:{minutes[0]:02}"
    every = _step(minutes, 60)
    if every:
        pace = "every minute" if every == 1 else f"every {every} minutes"
        return pace if every_hours == 1 else f"{pace} in the hours {_runs(hours)}"
    pace = f"at minute{'s' if len(minutes) > 1 else ''} {_runs(minutes)} of "
    return pace + ("every hour" if every_hours == 1 else f"the hours {_runs(hours)}")


def _step(values: tuple[int, ...], whole: int) -> int:
    """What lies between all values around the clock, 0 if they are not evenly spread from 0 on."""
    step = whole // len(values)
    return step if values == tuple(range(0, whole, step)) and whole % step == 0 else 0


def _days(cron: Cron) -> str:
    any_day, any_weekday = len(cron.days) == 31, len(cron.weekdays) == 7
    months = "" if len(cron.months) == 12 else f" in {_runs(cron.months, dict(enumerate(MONTHS, 1)))}"
    month_days = f"day{'s' if len(cron.days) > 1 else ''} {_runs(cron.days)} of the month"
    # the week ends with Sunday: "Saturday and Sunday", not "Sunday and Saturday"
    week = tuple(day or 7 for day in (*cron.weekdays[1:], 0)) if 0 in cron.weekdays else cron.weekdays
    names = {number: WEEKDAYS[number % 7] for number in range(1, 8)}
    if (any_day and any_weekday) or (cron.either_day and (any_day or any_weekday)):
        return f" every day{months}"
    if cron.either_day:
        return f" on {month_days} and on every {_runs(week, names)}{months}"
    if any_weekday:
        return f" on {month_days}{months}"
    if any_day:
        return f" every {_runs(week, names)}{months}"
    return f" on {month_days}{months} if it is a {_runs(week, names, last='or')}"


def _runs(values: tuple[int, ...], names: dict[int, str] | None = None, last: str = "and") -> str:
    """`1, 3 and 5 to 9`: three or more in a row become a range."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    items: list[str] = []
    for run in runs:
        spelled = [names[value] if names else str(value) for value in run]
        items += [f"{spelled[0]} to {spelled[-1]}"] if len(run) > 2 else spelled
    return listed(items, last)
