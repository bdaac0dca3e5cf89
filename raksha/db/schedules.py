"""How a job's row holds its schedule. Whoever changes a schedule sets all columns that `columns` gives."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from raksha.db.columns import SECOND
from raksha.db.models import BackupJob
from raksha.errors import ScheduleInvalid
from raksha.schedule import CatchUp, Schedule, Window, next_after

#: columns of their own: what is left stands in the document
_OWN = ("seed", "window", "full_cron", "full_every", "catch_up")


def of(job: BackupJob) -> Schedule | None:
    """What the row says; None: it runs by hand only. Raises `ScheduleInvalid` for a row that cannot be read."""
    if job.schedule is None:
        return None
    document = dict(job.schedule)
    window = document.pop("window", None)
    try:
        schedule = msgspec.convert(document, Schedule)
        catch_up = CatchUp(job.catch_up)
    except (msgspec.ValidationError, ValueError) as error:
        raise ScheduleInvalid(field="row", detail=error) from error
    return replace(
        schedule,
        window=Window.parse(window) if window else None,
        full_cron=job.full_schedule["cron"] if job.full_schedule else None,
        full_every=job.full_every,
        catch_up=catch_up,
        seed=job.id,
    )


def columns(schedule: Schedule | None, job_id: str, now: int) -> dict[str, Any]:
    """Columns of a job with this schedule, for `jobs.create` and `jobs.change`. `now`: epoch seconds, by the database.

    Also when a paused job goes on: what went by meanwhile was not missed.
    """
    if schedule is None:
        nothing: dict[str, Any] = dict.fromkeys(
            ("schedule", "full_schedule", "full_every", "next_run_at", "fired_upto", "next_full_at")
        )
        return {**nothing, "catch_up": CatchUp.LATEST.value}
    document = {key: value for key, value in msgspec.to_builtins(schedule).items() if key not in _OWN}
    if schedule.window is not None:
        document["window"] = str(schedule.window)
    first = next_after(replace(schedule, seed=job_id), now)
    return {
        "schedule": document,
        "full_schedule": {"cron": schedule.full_cron} if schedule.full_cron else None,
        "full_every": schedule.full_every,
        "catch_up": schedule.catch_up.value,
        "next_run_at": None if first is None else first * SECOND,
        "fired_upto": now * SECOND,
        "next_full_at": None,
    }
