"""Schedules and retentions as people say them on a command line, and as the API wants them.

    --every day --at 02:00 --timezone Europe/Paris      {"cron": "0 2 * * *", "zone": "Europe/Paris"}
    --every week --on sun --at 22:30                    {"cron": "30 22 * * 0"}
    --every hour --at :15                               {"cron": "15 * * * *"}
    --every 6h                                          {"every": 21600}

Pure: what the API refuses (a zone that does not exist, an interval that is too short), it refuses by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from raksha.client import words
from raksha.client.errors import WrongUse
from raksha.client.records import Schedule

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NAMES = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_PERIODS = ("hour", "day", "weekday", "week", "month")
_CLOCK = re.compile(r"(\d{1,2})?:(\d{2})")
_INTERVAL = re.compile(r"\d+\s*[smhdw]")


def schedule(
    every: str | None = None, at: str | None = None, on: str | None = None, cron: str | None = None
) -> dict[str, Any]:
    """`cron` or `every` of a schedule; empty: nothing of it was said. Raises `WrongUse`."""
    if cron is not None:
        if every or at or on:
            raise WrongUse("--cron says it all by itself", "Leave --every, --at and --on out, or leave --cron out.")
        return {"cron": cron}
    if every is None:
        if at or on:
            raise WrongUse("--at and --on need --every", "Such as: --every day --at 02:00.")
        return {}
    period = every.strip().lower()
    if _INTERVAL.fullmatch(period):
        if at or on:
            raise WrongUse(
                f"--every {every} is counted from run to run, so --at and --on mean nothing",
                "For a time of the day: --every day --at 02:00; for anything else: --cron.",
            )
        return {"every": words.length(period, "--every")}
    if (day := _day(period)) is not None:
        period, on = "week", on or DAYS[day]
    if period not in _PERIODS:
        raise WrongUse(
            f"--every {every} is not understood",
            f"One of {', '.join(_PERIODS)}, a day such as sunday, or a length of time such as 6h.",
        )
    return {"cron": _cron(period, at, on)}


def _cron(period: str, at: str | None, on: str | None) -> str:
    hour, minute = _clock(at, needs_hour=period != "hour")
    if period in ("hour", "day", "weekday") and on:
        raise WrongUse(f"--on does not go with --every {period}", "It goes with week and month.")
    if period == "hour":
        return f"{minute} * * * *"
    if period in ("day", "weekday"):
        return f"{minute} {hour} * * {'1-5' if period == 'weekday' else '*'}"
    if not on:
        example = "sun" if period == "week" else "1"
        raise WrongUse(f"--every {period} needs --on", f"Such as: --every {period} --on {example} --at 02:00.")
    if period == "week":
        days = {_day(part) for part in on.split(",")}
        named = sorted(day for day in days if day is not None)
        if len(named) != len(days):
            raise WrongUse(f"--on {on} is no day of the week", f"One of {', '.join(DAYS)}, or several with commas.")
        return f"{minute} {hour} * * {','.join(map(str, named))}"
    if not all(part.isdigit() and 1 <= int(part) <= 31 for part in on.split(",")):
        raise WrongUse(f"--on {on} is no day of the month", "A number of 1 to 31, or several with commas.")
    return f"{minute} {hour} {on} * *"


def _clock(at: str | None, *, needs_hour: bool) -> tuple[int, int]:
    if at is None:
        if needs_hour:
            raise WrongUse("At what time? --at is missing", "Such as: --at 02:00.")
        return 0, 0
    found = _CLOCK.fullmatch(at.strip())
    if found is None or (found[1] is None) == needs_hour or int(found[1] or 0) > 23 or int(found[2]) > 59:
        form = "02:00" if needs_hour else ":15 (minutes past the hour)"
        raise WrongUse(f"--at {at} is no such time", f"Write it as {form}.")
    return int(found[1] or 0), int(found[2])


def _day(text: str) -> int | None:
    """`sun`, `sunday`: 0."""
    text = text.strip().lower()
    for number, name in enumerate(_NAMES):
        if len(text) >= 3 and name.lower().startswith(text):
            return number
    return None


def merged(before: Mapping[str, Any] | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule with what was said anew; the API replaces it as a whole. None takes a value away."""
    kept = dict(before or {})
    if {"cron", "every"} & changes.keys():
        for name in ("cron", "every", "anchor"):
            kept.pop(name, None)
    return {name: value for name, value in {**kept, **changes}.items() if value is not None}


def brief(found: Schedule | None) -> str:
    """In a column; whatever is not simple, as it stands there."""
    if found is None:
        return "by hand"
    if found.every:
        return f"every {words.human_length(found.every)}"
    return f"{_brief_cron(found.cron or '')} {found.zone}"


def _brief_cron(cron: str) -> str:
    parts = cron.split()
    simple = len(parts) == 5 and parts[3] == "*" and parts[0].isdigit()
    if simple and parts[1:3] == ["*", "*"] and parts[4] == "*":
        return f"every hour at :{int(parts[0]):02}"
    if not simple or not parts[1].isdigit():
        return cron
    clock = f"{int(parts[1]):02}:{int(parts[0]):02}"
    if parts[2] == "*":
        days = {"*": "day", "1-5": "weekday", **{str(number): name for number, name in enumerate(_NAMES)}}
        return f"every {days[parts[4]]} at {clock}" if parts[4] in days else cron
    return f"every month on {parts[2]} at {clock}" if parts[4] == "*" and parts[2].isdigit() else cron
