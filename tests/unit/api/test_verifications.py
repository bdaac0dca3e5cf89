"""Verifications over REST: who may begin one, on what, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import Session

from raksha.db import verifications
from raksha.db.models import BackupJobRun, Verification
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.states import RunState, VerificationState
from tests.unit.api import world
from tests.unit.api.conftest import Api, error
from tests.unit.api.world import WEB

VERIFICATIONS = "/v1/p1/verifications"


@pytest.fixture
def made(api: Api, database: Database) -> dict[str, Any]:
    world.agents(database)
    return world.job(api, vms=[{"id": WEB}])


@pytest.fixture
def point(made: dict[str, Any], database: Database) -> BackupJobRun:
    return world.point(database, made["id"])


def at(run: BackupJobRun) -> str:
    return f"/v1/p1/backupjobs/{run.backupjob_id}/backupjobruns/{run.id}"


def test_of_a_restore_point(api: Api, point: BackupJobRun) -> None:
    answer = api("POST", f"{at(point)}/verify")
    assert answer.status_code == 202, answer.data
    made = answer.json
    path = f"{VERIFICATIONS}/{made['id']}"
    assert answer.headers["Location"] == f"http://localhost{path}"
    assert api("GET", path, "reader").json == made
    assert (made["state"], made["data"], made["percent"], made["trigger"]) == ("queued", True, 100, "request")
    assert (made["backupjob_id"], made["backupjobrun_id"]) == (point.backupjob_id, point.id)
    assert (made["user_id"], made["progress"]["percent"], made["findings"]) == ("member", None, [])
    assert api("GET", at(point)).json["verified_at"] is None
    # again, while it is under way
    assert made["id"] in error(api("POST", f"{at(point)}/verify"), 409, "state_conflict")


def test_of_a_job_with_less_data(api: Api, point: BackupJobRun) -> None:
    path = f"/v1/p1/backupjobs/{point.backupjob_id}/verify"
    made = api("POST", path, json={"percent": 10}).json
    assert (made["backupjobrun_id"], made["percent"]) == (None, 10)
    assert api("POST", f"{at(point)}/verify", json={"data": False}).json["data"] is False, "that is another"
    listed = api("GET", f"{VERIFICATIONS}?backupjobrun_id={point.id}").json["verifications"]
    assert [each["data"] for each in listed] == [False]
    assert len(api("GET", f"{VERIFICATIONS}?state=queued&limit=1").json["verifications"]) == 1
    assert api("GET", f"{VERIFICATIONS}?state=done").json["verifications"] == []


@pytest.mark.parametrize("body", [{"percent": 0}, {"percent": 101}, {"percent": "1"}, {"data": 1}, {"heal": True}])
def test_what_it_does_not_take(api: Api, point: BackupJobRun, body: dict[str, Any]) -> None:
    error(api("POST", f"{at(point)}/verify", json=body), 400, "request_invalid")


def test_only_restore_points_and_only_ones_own(api: Api, point: BackupJobRun, database: Database) -> None:
    error(api("POST", f"{at(point)}/verify", "reader"), 403, "not_allowed")
    made = api("POST", f"{at(point)}/verify").json["id"]
    error(api("GET", f"/v1/p2/verifications/{made}", "stranger"), 404, "not_found")
    error(api("POST", f"/v1/p2/verifications/{made}/cancel", "stranger"), 404, "not_found")
    database.run(lambda s: transition(s, BackupJobRun, point.id, RunState.DELETING))
    error(api("POST", f"{at(point)}/verify"), 409, "state_conflict")


def test_cancelled_and_told_in_the_end(api: Api, point: BackupJobRun, database: Database) -> None:
    made = api("POST", f"{at(point)}/verify").json["id"]
    assert api("POST", f"{VERIFICATIONS}/{made}/cancel").json["cancel_requested_at"] is not None
    hit = {"backupjob": point.backupjob_id, "backupjobrun": point.id, "vm": WEB, "resource": "vda"}
    finding = {"object": "backupjobs_segments/ab/ab-1", "code": "object_missing", "detail": "gone", "hits": [hit]}

    def done(session: Session) -> None:
        transition(session, Verification, made, VerificationState.RUNNING)
        verifications.end(session, made, VerificationState.DONE, copies=1, findings=[finding], healed=["x"])

    database.run(done)
    shown = api("GET", f"{VERIFICATIONS}/{made}", "reader").json
    assert (shown["state"], shown["copies"], shown["findings"], shown["healed"]) == ("done", 1, [finding], ["x"])
    error(api("POST", f"{VERIFICATIONS}/{made}/cancel"), 409, "state_conflict")
