"""A schedule as one plain English sentence, for the command line and the dashboard."""

from __future__ import annotations

from raksha.cron import listed, parse
from raksha.cron import words as cron_words
from raksha.schedule import DAY, CatchUp, Schedule
from raksha.zones import clock_time


def in_words(schedule: Schedule) -> str:
    """One plain English sentence. Raises `BadCron` and `ZoneUnknown`."""
    if schedule.every:
        parts = [f"Every {_duration(schedule.every)}, counted from {clock_time(schedule.anchor, schedule.zone)}"]
    else:
        said = cron_words(parse(schedule.cron or ""))
        parts = [f"{said[0].upper()}{said[1:]} ({schedule.zone})"]
    if schedule.window:
        parts.append("only " + "between {} and {}".format(*str(schedule.window).split("-")))
    if schedule.jitter:
        parts.append(f"put off by up to {_duration(schedule.jitter)}")
    if schedule.start is not None:
        parts.append(f"from {clock_time(schedule.start, schedule.zone)} on")
    if schedule.end is not None:
        parts.append(f"until {clock_time(schedule.end, schedule.zone)}")
    if schedule.full_cron is not None:
        parts.append(f"full {cron_words(parse(schedule.full_cron))}")
    if schedule.full_every is not None:
        parts.append("always full" if schedule.full_every == 1 else f"full once in {schedule.full_every} runs")
    missed = "a missed run is made up for once" if schedule.catch_up == CatchUp.LATEST else "missed runs are skipped"
    return "; ".join([", ".join(parts), missed]) + "."


def _duration(seconds: int) -> str:
    """In the largest units that are exact: `1 day and 6 hours`."""
    items = []
    for unit, size in (("day", DAY), ("hour", 3600), ("minute", 60), ("second", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            items.append(f"{number} {unit}{'s' if number > 1 else ''}")
    return listed(items)
