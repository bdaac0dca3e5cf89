"""`limits`: how much a project and its requests may ask for."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields

from raksha.api.nouns import Noun
from raksha.api.policy import Allow
from raksha.api.services import settings

NOUN = Noun("limits", "/v1/<project:tenant_id>/limits", "How much a project and its requests may ask for.")


class Limits(Schema):
    """The settings of the service, the same for every project."""

    max_body_bytes = fields.Integer(required=True, metadata={"description": "Bytes of a request's body"})
    max_page_size = fields.Integer(required=True, metadata={"description": "Entries of one page of a list"})
    max_jobs = fields.Integer(required=True, metadata={"description": "Backup jobs of the project"})
    max_vms_per_job = fields.Integer(required=True, metadata={"description": "VMs of one backup job"})
    min_schedule_interval = fields.Integer(required=True, metadata={"description": "Seconds between two runs"})
    max_preview_times = fields.Integer(required=True, metadata={"description": "Fire times in one preview"})


class LimitsShown(Schema):
    limits = fields.Nested(Limits, required=True)


@NOUN.operation("GET", "", rule="show", allow=Allow.READER_OR_ADMIN, does="Show the limits.", returns=LimitsShown)
def show(tenant_id: str) -> Any:  # noqa: ARG001 admitted already, and the same for all
    return {"limits": settings().limits}
