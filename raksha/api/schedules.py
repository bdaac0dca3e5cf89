"""Schedules as clients write them: for jobs and for the preview."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from marshmallow import fields

from raksha.api.bodies import Body, Moment, Text, Whole
from raksha.schedule import CatchUp, Schedule, Window


class ScheduleBody(Body):
    """When a job runs. Either `cron` or `every`."""

    cron = Text(least=1, most=200, metadata={"example": "30 22 * * 1-5", "description": "Five fields; 0 is Sunday"})
    every = Whole(least=1, metadata={"description": "Seconds between two runs, counted from anchor"})
    anchor = Moment(metadata={"description": "First run of every"})
    zone = Text(least=1, most=64, metadata={"example": "Europe/Paris", "description": "IANA time zone; default UTC"})
    start = Moment(metadata={"description": "No run before"})
    end = Moment(metadata={"description": "No run after"})
    jitter = Whole(metadata={"description": "Seconds by which a run is put off at most"})
    window = Text(most=11, metadata={"example": "22:00-06:00", "description": "Runs start inside of it"})
    full_cron = Text(least=1, most=200, metadata={"description": "Runs of its own, which are full"})
    full_every = Whole(least=1, metadata={"description": "Every so many runs one is full"})
    catch_up = fields.Enum(CatchUp, by_value=True, metadata={"description": "Runs missed in a downtime"})


def schedule(body: Mapping[str, Any], seed: str = "") -> Schedule:
    """Of what `ScheduleBody` has read. Raises `ScheduleInvalid` for a window that is none."""
    values: dict[str, Any] = {}
    for name, value in body.items():
        values[name] = int(value.timestamp()) if isinstance(value, datetime) else value
    if "window" in values:
        values["window"] = Window.parse(values["window"])
    return Schedule(**values, seed=seed)
