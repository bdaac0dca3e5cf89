"""`schedule-preview`: what a schedule would do, before a job has it. Nothing is stored."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, fields
from msgspec.structs import replace

from raksha.api.bodies import Body, Moment, Whole
from raksha.api.nouns import Noun
from raksha.api.policy import Allow
from raksha.api.schedules import ScheduleBody, schedule
from raksha.api.services import settings
from raksha.errors import RequestInvalid
from raksha.schedule import Fire, check, preview
from raksha.schedule_words import in_words

NOUN = Noun("schedule-preview", "/v1/<project:tenant_id>/schedule-preview", "When a schedule would fire.")


class PreviewAsked(Body):
    """A schedule, and how much of it is wanted."""

    schedule = fields.Nested(ScheduleBody, required=True)
    count = Whole(least=1, load_default=10, metadata={"description": "Fire times, up to limits.max_preview_times"})
    after = Moment(metadata={"description": "Fire times later than this; default: now"})


class FireTime(Schema):
    scheduled_at = fields.DateTime(required=True, metadata={"description": "Without jitter"})
    full = fields.Boolean(required=True, metadata={"description": "A time of full_cron"})


class PreviewShown(Schema):
    """The next fire times, fewer if the schedule ends."""

    in_words = fields.String(required=True, metadata={"description": "The schedule as a sentence"})
    fire_times = fields.List(fields.Nested(FireTime), required=True)


@NOUN.operation(
    "POST",
    "",
    rule="create",
    allow=Allow.READER,
    does="Tell when a schedule would fire.",
    body=PreviewAsked,
    returns=PreviewShown,
)
def create(tenant_id: str, body: dict[str, Any]) -> Any:  # noqa: ARG001 nothing here is a project's
    limits = settings().limits
    if body["count"] > limits.max_preview_times:
        raise RequestInvalid(problems=[("count", f"At most {limits.max_preview_times}.")])
    now = int(time.time())
    # who gets which jitter is known once there is a job
    wanted = replace(schedule(body["schedule"]), jitter=0)
    check(replace(wanted, jitter=body["schedule"].get("jitter", 0)), now, limits.min_schedule_interval)
    after = int(body["after"].timestamp()) if "after" in body else now
    times = [_shown(fire) for fire in preview(wanted, after, body["count"])]
    return {"in_words": in_words(schedule(body["schedule"])), "fire_times": times}


def _shown(fire: Fire) -> dict[str, Any]:
    return {"scheduled_at": datetime.fromtimestamp(fire.scheduled, UTC), "full": fire.full}
