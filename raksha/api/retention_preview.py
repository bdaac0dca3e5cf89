"""`retention-preview`: what a retention would keep of a job's runs, and why. Nothing is deleted."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, fields

from raksha.api.answers import Instant
from raksha.api.bodies import Body
from raksha.api.job_body import RetentionBody, retention
from raksha.api.nouns import Noun
from raksha.api.policy import Allow
from raksha.api.services import services
from raksha.db import jobs, points
from raksha.retention import Decision, Point, Retention, decide

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
        found = points.of_job(session, job.id)
    decisions = _decided(found, policy)
    counted = Counter(decision.kept for decision in decisions)
    return {"kept": counted[True], "deleted": counted[False], "decisions": [_shown(each) for each in decisions]}


def _decided(found: list[Point], policy: Retention | None) -> list[Decision]:
    if policy is None:
        return [Decision(point, True, ("the job has no retention: all stay",)) for point in found]
    return decide(found, policy)


def _shown(decision: Decision) -> dict[str, Any]:
    point = decision.point
    return {
        "backupjobrun_id": point.id,
        "taken_at": datetime.fromtimestamp(point.taken_at, UTC),
        "protected": point.protected,
        "restorable": point.restorable,
        "kept": decision.kept,
        "reasons": decision.reasons,
    }
