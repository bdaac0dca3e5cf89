"""`retention-preview`: what a retention would keep of a job's runs, and why. Nothing is deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, fields

from raksha.api.answers import Instant
from raksha.api.bodies import Body
from raksha.api.job_body import RetentionBody, retention
from raksha.api.nouns import Noun
from raksha.api.policy import Allow
from raksha.api.services import services, settings
from raksha.db import jobs, points, rows, runs
from raksha.db.columns import SECOND
from raksha.retention import Decision

NOUN = Noun(
    "retention-preview", "/v1/<project:tenant_id>/backupjobs/<id:backupjob_id>/retention-preview",
    "What a retention would keep, and why.",
)  # fmt: skip


class RetentionAsked(Body):
    """No retention: that of the job."""

    retention = fields.Nested(RetentionBody)


class DecisionShown(Schema):
    """What would become of one run."""

    backupjobrun_id = fields.String(required=True)
    taken_at = Instant(required=True)
    protected = fields.Boolean(required=True)
    restorable = fields.Boolean(required=True)
    kept = fields.Boolean(required=True)
    reasons = fields.List(fields.String(), required=True)


class RetentionPreview(Schema):
    """Runs that have ended, oldest first."""

    kept = fields.Integer(required=True)
    deleted = fields.Integer(required=True)
    decisions = fields.List(fields.Nested(DecisionShown), required=True)


@NOUN.operation(
    "POST", "", rule="create", allow=Allow.READER, does="Tell what a retention would keep of a job's runs, and why.",
    body=RetentionAsked, body_optional=True, returns=RetentionPreview,
)  # fmt: skip
def create(tenant_id: str, backupjob_id: str, body: dict[str, Any]) -> Any:
    with services().database.reading() as session:
        job = jobs.get(session, tenant_id, backupjob_id)
        policy = retention(body["retention"]) if "retention" in body else points.policy(job)
        found, now = points.of_job(session, job.id), rows.clock(session) // SECOND
        owned = runs.restore_points(session, job.id)
    decisions = points.decided(found, policy, now, settings().keep_failed)
    counted = Counter(decision.kept for decision in decisions)
    return {"kept": counted[True], "deleted": counted[False], "decisions": [_shown(each, owned) for each in decisions]}


def _shown(decision: Decision, owned: Mapping[str, bool]) -> dict[str, Any]:
    """`owned`: restore points, and whether their owner has protected them. Degraded ones are so by themselves."""
    point = decision.point
    protected = owned.get(point.id, point.protected)
    by_itself = point.protected and not protected
    reasons = ["degraded: it stays until somebody has looked" if by_itself and each == "protected" else each
               for each in decision.reasons]  # fmt: skip
    return {
        "backupjobrun_id": point.id,
        "taken_at": datetime.fromtimestamp(point.taken_at, UTC),
        "protected": protected,
        "restorable": point.restorable,
        "kept": decision.kept,
        "reasons": reasons,
    }
