"""`usage`: what a project has. How much it may have stands in `limits`."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields

from raksha.api.nouns import Noun
from raksha.api.policy import Allow
from raksha.api.services import services
from raksha.db import restores, usage

NOUN = Noun("usage", "/v1/<project:tenant_id>/usage", "What a project has.")


class Usage(Schema):
    jobs = fields.Integer(required=True, metadata={"description": "Backup jobs"})
    runs = fields.Integer(required=True, metadata={"description": "Restore points"})
    runs_under_way = fields.Integer(required=True, metadata={"description": "Runs that have not ended"})
    restores_under_way = fields.Integer(required=True, metadata={"description": "Restores that have not ended"})
    stored_bytes = fields.Integer(
        required=True, metadata={"description": "That its restore points refer to; what is shared counts for each"}
    )


class UsageShown(Schema):
    usage = fields.Nested(Usage, required=True)


@NOUN.operation(
    "GET", "", rule="show", allow=Allow.READER_OR_ADMIN, does="Show what the project has.", returns=UsageShown
)
def show(tenant_id: str) -> Any:
    with services().database.reading() as session:
        has = usage.usage(session, tenant_id)
        restoring = restores.under_way(session, tenant_id)
    names = ("jobs", "runs", "runs_under_way", "stored_bytes")
    return {"usage": {**{name: getattr(has, name) for name in names}, "restores_under_way": restoring}}
