"""`limits`: how much a project and its requests may ask for; operators give a project limits of its own."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields
from sqlalchemy.orm import Session

from raksha.api import allowed, etag
from raksha.api.bodies import Body, Whole
from raksha.api.nouns import Noun
from raksha.api.policy import Allow
from raksha.api.services import services, settings
from raksha.db import usage

NOUN = Noun("limits", "/v1/<project:tenant_id>/limits", "How much a project and its requests may ask for.")

#: of each request, and of every project alike
_GENERAL = ("max_body_bytes", "max_page_size", "max_vms_per_job", "min_schedule_interval", "max_preview_times",
            "max_runs_under_way", "max_restores_under_way")  # fmt: skip


class Limits(Schema):
    """-1: any number."""

    max_body_bytes = fields.Integer(required=True, metadata={"description": "Bytes of a request's body"})
    max_page_size = fields.Integer(required=True, metadata={"description": "Entries of one page of a list"})
    max_vms_per_job = fields.Integer(required=True, metadata={"description": "VMs of one backup job"})
    min_schedule_interval = fields.Integer(required=True, metadata={"description": "Seconds between two runs"})
    max_preview_times = fields.Integer(required=True, metadata={"description": "Fire times in one preview"})
    max_runs_under_way = fields.Integer(required=True, metadata={"description": "Runs that have not ended"})
    max_restores_under_way = fields.Integer(required=True, metadata={"description": "Restores that have not ended"})
    max_jobs = fields.Integer(required=True, metadata={"description": "Backup jobs of the project"})
    max_runs = fields.Integer(required=True, metadata={"description": "Its restore points"})
    max_stored_bytes = fields.Integer(required=True, metadata={"description": "That its restore points refer to"})
    max_concurrent_runs = fields.Integer(required=True, metadata={"description": "Its runs at once; more wait"})


class LimitsShown(Schema):
    limits = fields.Nested(Limits, required=True)


@NOUN.operation("GET", "", rule="show", allow=Allow.READER_OR_ADMIN, does="Show the limits.", returns=LimitsShown)
def show(tenant_id: str) -> Any:
    with services().database.reading() as session:
        may = allowed.of(session, tenant_id)
    return _shown(may), etag.headers(_version(may))


class LimitsChanged(Body):
    """What the project may have, in place of the default. -1: any number; null: the default again."""

    max_jobs = Whole(least=-1, allow_none=True)
    max_runs = Whole(least=-1, allow_none=True)
    max_stored_bytes = Whole(least=-1, allow_none=True)
    max_concurrent_runs = Whole(least=-1, allow_none=True)


@NOUN.operation(
    "PUT", "", rule="update", allow=Allow.ADMIN, does="Give a project limits of its own.", body=LimitsChanged,
    returns=LimitsShown, if_match=True,
)  # fmt: skip
def update(tenant_id: str, body: dict[str, Any]) -> Any:
    def work(session: Session) -> allowed.Allowed:
        etag.require(_version(allowed.of(session, tenant_id)), "limits of project", tenant_id)
        for field, value in body.items():
            usage.set_limit(session, tenant_id, allowed.OF_A_PROJECT[field], value)
        return allowed.of(session, tenant_id)

    may = services().database.run(work)
    return _shown(may), etag.headers(_version(may))


def _shown(may: allowed.Allowed) -> dict[str, Any]:
    general = {name: getattr(settings().limits, name) for name in _GENERAL}
    return {"limits": {**general, **{name: getattr(may, name) for name in allowed.OF_A_PROJECT}}}


def _version(may: allowed.Allowed) -> str:
    return etag.digest(*(getattr(may, name) for name in allowed.OF_A_PROJECT))
