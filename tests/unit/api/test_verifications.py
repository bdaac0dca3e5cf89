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


def test_a_test_restore(api: Api, point: BackupJobRun) -> None:
    body = {"boot": True, "vms": [WEB], "marker": "login:", "timeout": 60}
    made = api("POST", f"{at(point)}/verify", json=body).json
    assert (made["boot"], made["data"], made["percent"], made["marker"], made["timeout"]) == (
        True,
        False,
        0,
        "login:",
        60,
    )
    untried = {"id": WEB, "name": None, "outcome": None, "proven_by": None, "reason": None, "seconds": None}
    assert made["vms"] == [untried]
    assert made["id"] in error(api("POST", f"{at(point)}/verify", json={"boot": True}), 409, "state_conflict")
    assert api("POST", f"{at(point)}/verify").json["boot"] is False, "that looks at other things"


def test_of_a_job_its_newest_whole_restore_point_is_booted(api: Api, made: dict[str, Any], database: Database) -> None:
    path = f"/v1/p1/backupjobs/{made['id']}/verify"
    error(api("POST", path, json={"boot": True}), 409, "state_conflict")
    _, newest, damaged = (world.point(database, made["id"], commit_number=number) for number in (1, 2, 3))
    database.run(lambda s: transition(s, BackupJobRun, damaged.id, RunState.DEGRADED))
    begun = api("POST", path, json={"boot": True}).json
    assert (begun["backupjobrun_id"], begun["marker"], begun["timeout"]) == (newest.id, None, None)
    assert (begun["boot"], begun["vms"]) == (True, [])


@pytest.mark.parametrize(
    "body",
    [
        {"boot": True, "data": True}, {"boot": True, "percent": 10}, {"marker": "x"}, {"timeout": 60}, {"vms": [WEB]},
        {"boot": True, "timeout": 9}, {"boot": True, "marker": ""}, {"boot": True, "marker": "\0"},
        {"boot": True, "vms": ["no id"]}, {"boot": True, "vms": ["00000000-0000-4000-8000-000000000000"]}, {"boot": 1},
    ],
)  # fmt: skip
def test_what_a_test_restore_does_not_take(api: Api, point: BackupJobRun, body: dict[str, Any]) -> None:
    error(api("POST", f"{at(point)}/verify", json=body), 400, "request_invalid")


def test_a_job_says_how_often_and_what_was_proven(api: Api, made: dict[str, Any], database: Database) -> None:
    path = f"/v1/p1/backupjobs/{made['id']}"
    assert (made["test_restore"], made["proven_restorable_at"], made["proven_run_id"]) == (None, None, None)
    etag = api("GET", path).headers["ETag"]
    wanted = {"every": 604800, "marker": "up", "timeout": 300}
    changed = api("PUT", path, json={"test_restore": wanted}, headers={"If-Match": etag})
    assert changed.json["test_restore"] == wanted
    for body in ({"every": 59}, {"every": -1}, {"timeout": 1}, {"every": 60, "kind": "x"}):
        etag = api("GET", path).headers["ETag"]
        error(api("PUT", path, json={"test_restore": body}, headers={"If-Match": etag}), 400, "request_invalid")
    changed = api("PUT", path, json={"test_restore": {"every": 0}}, headers={"If-Match": etag}).json
    assert changed["test_restore"] == {"every": 0, "marker": None, "timeout": None}
    point = world.point(database, made["id"])
    run = api("GET", at(point)).json
    assert (run["proven_restorable_at"], run["vms"][0]["proven_by"], run["vms"][0]["unproven_reason"]) == (None,) * 3
