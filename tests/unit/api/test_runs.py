"""`backupjobruns`: runs by hand, what is shown of a run, protecting, cancelling and deleting it; retention preview."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from raksha.config_api import Limits
from raksha.db import runs
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobRun
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.states import JobState, RunState, Trigger
from tests.unit.api import world
from tests.unit.api.conftest import Api, error
from tests.unit.api.world import DB, NOBODY, WEB

ANY = {"If-Match": "*"}


@pytest.fixture
def seen(api: Api, database: Database) -> Api:
    world.agents(database)
    return api


@pytest.fixture
def made(seen: Api) -> dict[str, Any]:
    return world.job(seen)


@pytest.fixture
def path(made: dict[str, Any]) -> str:
    return f"/v1/p1/backupjobs/{made['id']}"


def row(database: Database, id: str) -> BackupJobRun:
    with database.reading() as session:
        return runs.get(session, None, id)


# -- runs by hand -----------------------------------------------------------------------------------


def test_a_full_run_is_queued(seen: Api, path: str, database: Database) -> None:
    body = {"description": "before the upgrade", "protected": True}
    answer = seen("POST", f"{path}/full", json=body)
    assert answer.status_code == 202, answer.data
    run = answer.json
    assert answer.headers["Location"] == f"http://localhost{path}/backupjobruns/{run['id']}"
    told = ("state", "kind", "trigger", "description", "protected", "user_id", "request_id")
    assert [run[name] for name in told] == [
        "queued", "full", "request", "before the upgrade", True, "member", answer.headers["X-Openstack-Request-Id"]
    ]  # fmt: skip
    shown = seen("GET", answer.headers["Location"].removeprefix("http://localhost"))
    assert shown.json == {**run, "vms": []}
    assert shown.headers["ETag"] == answer.headers["ETag"]
    assert row(database, run["id"]).trigger == Trigger.REQUEST


def test_no_body_is_an_empty_one(seen: Api, path: str) -> None:
    for how in ({}, {"json": {}}, {"content_type": "application/json"}):
        assert seen("POST", f"{path}/full", **how).status_code == 202, how
    error(seen("POST", f"{path}/full", data=b"x"), 415, "not_json")
    error(seen("POST", f"{path}/full", json={"kind": "full"}), 400, "request_invalid")
    error(seen("POST", f"{path}/full", json={"protected": "yes"}), 400, "request_invalid")


def kinds(api: Api, path: str, *verbs: str) -> list[str]:
    found = []
    for verb in verbs:
        answer = api("POST", f"{path}/{verb}")
        assert answer.status_code == 202, answer.data
        found.append(answer.json["kind"])
    return found


def test_an_increment_needs_something_to_build_on(seen: Api, path: str) -> None:
    assert kinds(seen, path, "incremental", "incremental", "full", "incremental") == [
        "full", "incremental", "full", "incremental"
    ]  # fmt: skip


def test_a_failed_full_run_is_nothing_to_build_on(
    seen: Api, made: dict[str, Any], path: str, database: Database
) -> None:
    world.run(database, made["id"], RunState.ERROR)
    assert kinds(seen, path, "incremental") == ["full"]


def test_a_run_as_the_policy_says(seen: Api, database: Database) -> None:
    weekly = world.job(seen, schedule={"every": 3600, "full_every": 3})
    path = f"/v1/p1/backupjobs/{weekly['id']}"
    verbs = ["backupjobruns"] * 5
    assert kinds(seen, path, *verbs) == ["full", "incremental", "incremental", "full", "incremental"]
    for_ever = world.job(seen)
    path = f"/v1/p1/backupjobs/{for_ever['id']}"
    assert kinds(seen, path, *verbs) == ["full"] + ["incremental"] * 4
    # a full one that is owed is paid, once
    world.set_job(database, for_ever["id"], next_full_at=5)
    assert seen("GET", path).json["full_owed_since"] is not None
    assert kinds(seen, path, "incremental", "backupjobruns", "backupjobruns") == ["incremental", "full", "incremental"]
    assert seen("GET", path).json["full_owed_since"] is None


def test_a_paused_job_runs_by_hand_a_suspended_one_does_not(
    seen: Api, made: dict[str, Any], path: str, database: Database
) -> None:
    seen("PUT", path, json={"enabled": False}, headers=ANY)
    assert seen("POST", f"{path}/full").status_code == 202
    database.run(lambda s: transition(s, BackupJob, made["id"], JobState.SUSPENDED))
    for verb in ("full", "incremental", "backupjobruns"):
        assert "is suspended" in error(seen("POST", f"{path}/{verb}"), 409, "state_conflict")


def test_a_repeated_post_starts_one_run(seen: Api, path: str) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first, again = (seen("POST", f"{path}/full", headers=headers) for _ in range(2))
    assert (first.json, first.headers["Location"]) == (again.json, again.headers["Location"])
    assert len(seen("GET", f"{path}/backupjobruns").json["backupjobruns"]) == 1
    error(seen("POST", f"{path}/incremental", headers=headers), 409, "idempotency_key_reused")


def test_limits_of_runs(make_api: Callable[..., Api], database: Database) -> None:
    world.agents(database)
    api = make_api(limits=Limits(max_runs_under_way=1))
    made = world.job(api)
    path = f"/v1/p1/backupjobs/{made['id']}"
    assert kinds(api, path, "full") == ["full"]
    assert "runs that have not ended is 1" in error(api("POST", f"{path}/full"), 403, "limit_exceeded")
    for limits, what in ((Limits(max_runs=1), "restore points is 1"),
                         (Limits(max_stored_bytes=1000), "stored bytes is 1000")):  # fmt: skip
        other = make_api(limits=limits)
        assert other("POST", f"{path}/full").status_code == (202 if "points" in what else 403)
        if "points" in what:
            world.point(database, made["id"])
        assert what in error(other("POST", f"{path}/full"), 403, "limit_exceeded")


# -- what is shown ----------------------------------------------------------------------------------


def test_a_run_in_full_detail(seen: Api, made: dict[str, Any], path: str, database: Database) -> None:
    base = world.point(database, made["id"], disks=("vda", "vdb"), vms=(WEB, DB))
    point = world.point(database, made["id"], parent=base, disks=("vda",), vms=(WEB,))
    first = seen("GET", f"{path}/backupjobruns/{base.id}").json
    run = seen("GET", f"{path}/backupjobruns/{point.id}").json
    told = {
        "state": "available", "kind": "incremental", "consistency": "quiesced", "group_consistent": True,
        "skew_seconds": 0.004, "skew_error_seconds": 0.001, "frozen_seconds": 0.25, "trigger": "schedule",
        "progress": {"bytes_total": 1000, "bytes_done": 500, "bytes_sent": 0, "percent": 50},
    }  # fmt: skip
    assert {name: run[name] for name in told} == told
    (vm,) = run["vms"]
    assert (vm["vm_id"], vm["name"], vm["host"], vm["engine"], vm["state"]) == (
        WEB, "web", "host-a", "overlay", "stored"
    )  # fmt: skip
    (disk,) = vm["resources"]
    assert (disk["resource"], disk["size"], disk["kind"], disk["mode"], disk["reason"]) == (
        "vda", 1 << 30, "incremental", "delta", None
    )  # fmt: skip
    assert disk["progress"] == {"bytes_total": 100, "bytes_done": 40, "bytes_sent": 0, "percent": 40}
    assert [vm["vm_id"] for vm in first["vms"]] == [WEB, DB]
    below = first["vms"][0]["resources"][0]
    assert (below["reason"], below["backup"]["vm_resource_backup_backing_id"]) == ("first_run", None)
    assert disk["backup"]["vm_resource_backup_backing_id"] == below["backup"]["id"]
    assert (disk["backup"]["status"], disk["backup"]["bytes_stored"]) == ("available", 1000)


def test_what_a_queued_run_waits_for_and_why_one_failed(
    seen: Api, made: dict[str, Any], path: str, database: Database
) -> None:
    reason = {"code": "vm_busy", "message": "VM x is in use", "slot": ["vm", "x"]}
    queued = world.run(database, made["id"], queued_reason=reason)
    failed = world.run(database, made["id"], RunState.ERROR, error={"code": "c", "message": "m", "fields": {"p": "/x"}})

    def show(id: str) -> Any:
        return seen("GET", f"{path}/backupjobruns/{id}").json

    assert show(queued.id)["queued_reason"] == {"code": "vm_busy", "message": "VM x is in use"}
    assert (show(failed.id)["error"], show(failed.id)["queued_reason"]) == ({"code": "c", "message": "m"}, None)
    assert show(queued.id)["progress"]["percent"] is None


def test_both_spellings_are_the_same(seen: Api, made: dict[str, Any], path: str, database: Database) -> None:
    point = world.point(database, made["id"])
    listed = seen("GET", f"{path}/backupjobsruns")
    assert listed.json == seen("GET", f"{path}/backupjobruns").json
    assert [run["id"] for run in listed.json["backupjobruns"]] == [point.id]
    assert seen("GET", f"{path}/backupjobsruns/{point.id}").json == seen("GET", f"{path}/backupjobruns/{point.id}").json
    assert seen("POST", f"{path}/backupjobsruns").status_code == 202
    change = seen("PUT", f"{path}/backupjobsruns/{point.id}", json={"protected": True}, headers=ANY)
    assert change.json["protected"] is True
    body = {"target": {"kind": "files"}}
    assert seen("POST", f"{path}/backupjobsruns/{point.id}", json=body).status_code == 202
    error(seen("DELETE", f"{path}/backupjobsruns/{point.id}"), 409, "protected")


def test_runs_are_filtered_and_sorted(seen: Api, made: dict[str, Any], path: str, database: Database) -> None:
    world.run(database, made["id"], RunState.ERROR)
    world.point(database, made["id"], protected=True)
    other = world.job(seen)
    world.point(database, other["id"])

    def states(query: str) -> list[str]:
        answer = seen("GET", f"{path}/backupjobruns?{query}")
        assert answer.status_code == 200, answer.data
        return [run["state"] for run in answer.json["backupjobruns"]]

    assert states("sort=state:asc") == ["available", "error"]
    assert states("sort_key=state&sort_dir=desc") == ["error", "available"]
    assert states("state=error") == ["error"]
    assert states("state=in:error,available&sort=state") == ["available", "error"]
    assert states("protected=true") == ["available"]
    assert states("protected=false") == ["error"]
    assert states("kind=incremental") == []
    assert states("trigger=in:schedule&sort=state") == ["available", "error"]
    assert states("created_at=gt:2001-01-01T00:00:00Z&limit=1&sort=state") == ["available"]
    for wrong in ("state=x", "protected=1", "kind=in:full,", "marker=x", "sort=description"):
        assert seen("GET", f"{path}/backupjobruns?{wrong}").status_code == 400


def test_a_run_is_found_under_its_own_job_only(seen: Api, made: dict[str, Any], database: Database) -> None:
    other = world.job(seen)
    point = world.point(database, made["id"])
    theirs = world.job(seen, "stranger", "p2")
    foreign = world.point(database, theirs["id"])
    for job_id, run_id in ((other["id"], point.id), (made["id"], foreign.id), (made["id"], NOBODY),
                           (theirs["id"], foreign.id)):  # fmt: skip
        path = f"/v1/p1/backupjobs/{job_id}/backupjobruns/{run_id}"
        for method, more in (("GET", {}), ("PUT", {"json": {}, "headers": ANY}), ("DELETE", {}),
                             ("POST", {"json": {"target": {"kind": "files"}}})):  # fmt: skip
            assert error(seen(method, path, **more), 404, "not_found") == f"There is no backup job run {run_id}."
        error(seen("POST", f"{path}/cancel"), 404, "not_found")


# -- changing, cancelling, deleting -----------------------------------------------------------------


def test_description_and_protection_can_be_changed(
    seen: Api, made: dict[str, Any], path: str, database: Database
) -> None:
    at = f"{path}/backupjobruns/{world.point(database, made['id']).id}"
    tag = seen("GET", at).headers["ETag"]
    error(seen("PUT", at, json={"protected": True}), 428, "condition_missing")
    changed = seen("PUT", at, json={"protected": True}, headers={"If-Match": tag})
    assert (changed.status_code, changed.json["protected"], changed.json["description"]) == (200, True, "")
    error(seen("PUT", at, json={"description": "x"}, headers={"If-Match": tag}), 412, "condition_failed")
    again = seen("PUT", at, json={"description": "x"}, headers={"If-Match": changed.headers["ETag"]})
    assert (again.json["description"], again.json["protected"]) == ("x", True)
    for wrong in ({"state": "available"}, {"protected": 1}, {"description": None}, {"taken_at": None}):
        error(seen("PUT", at, json=wrong, headers=ANY), 400, "request_invalid")


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.READY, RunState.RUNNING])
def test_a_run_that_is_not_durable_yet_can_be_cancelled(
    seen: Api, made: dict[str, Any], path: str, database: Database, state: RunState
) -> None:
    run = world.run(database, made["id"], state)
    at = f"{path}/backupjobruns/{run.id}"
    answer = seen("POST", f"{at}/cancel")
    assert (answer.status_code, answer.headers["Location"]) == (202, f"http://localhost{at}")
    first = row(database, run.id).cancel_requested_at
    assert first is not None
    # again is no harm, and no later time
    assert seen("POST", f"{at}/cancel").status_code == 202
    assert row(database, run.id).cancel_requested_at == first


@pytest.mark.parametrize(
    "state", [RunState.COMMITTING, RunState.AVAILABLE, RunState.DEGRADED, RunState.CANCELLED, RunState.ERROR,
              RunState.NEEDS_ATTENTION, RunState.DELETING],
)  # fmt: skip
def test_what_is_over_cannot_be_cancelled(
    seen: Api, made: dict[str, Any], path: str, database: Database, state: RunState
) -> None:
    run = world.run(database, made["id"], state)
    assert f"is {state};" in error(seen("POST", f"{path}/backupjobruns/{run.id}/cancel"), 409, "state_conflict")


def test_what_is_being_cancelled_is_so_already(seen: Api, made: dict[str, Any], path: str, database: Database) -> None:
    run = world.run(database, made["id"], RunState.CANCELLING)
    assert seen("POST", f"{path}/backupjobruns/{run.id}/cancel").json["state"] == "cancelling"


@pytest.mark.parametrize("state", [RunState.AVAILABLE, RunState.DEGRADED, RunState.CANCELLED, RunState.ERROR])
def test_a_run_that_has_ended_can_be_deleted(
    seen: Api, made: dict[str, Any], path: str, database: Database, state: RunState
) -> None:
    run = world.run(database, made["id"], state)
    at = f"{path}/backupjobruns/{run.id}"
    answer = seen("DELETE", at)
    assert (answer.status_code, answer.headers["Location"]) == (202, f"http://localhost{at}")
    assert seen("GET", at).json["state"] == "deleting"
    assert "is deleting" in error(seen("DELETE", at), 409, "state_conflict")
    assert "is deleting" in error(seen("PUT", at, json={"protected": True}, headers=ANY), 409, "state_conflict")


def test_one_that_others_build_on_can_be_deleted(
    seen: Api, made: dict[str, Any], path: str, database: Database
) -> None:
    base = world.point(database, made["id"])
    child = world.point(database, made["id"], parent=base)
    assert seen("DELETE", f"{path}/backupjobruns/{base.id}").status_code == 202
    assert seen("GET", f"{path}/backupjobruns/{child.id}").json["state"] == "available"


@pytest.mark.parametrize(
    "state", [RunState.QUEUED, RunState.READY, RunState.RUNNING, RunState.COMMITTING, RunState.CANCELLING,
              RunState.NEEDS_ATTENTION],
)  # fmt: skip
def test_a_run_under_way_is_not_deleted(
    seen: Api, made: dict[str, Any], path: str, database: Database, state: RunState
) -> None:
    run = world.run(database, made["id"], state)
    assert f"is {state};" in error(seen("DELETE", f"{path}/backupjobruns/{run.id}"), 409, "state_conflict")


def test_a_protected_run_is_not_deleted(seen: Api, made: dict[str, Any], path: str, database: Database) -> None:
    point = world.point(database, made["id"], protected=True)
    at = f"{path}/backupjobruns/{point.id}"
    error(seen("DELETE", at), 409, "protected")
    seen("PUT", at, json={"protected": False}, headers=ANY)
    assert seen("DELETE", at).status_code == 202


# -- retention preview --------------------------------------------------------------------------------


def test_a_preview_tells_what_would_be_deleted_and_why(seen: Api, database: Database) -> None:
    made = world.job(seen, retention={"keep_last": 1})
    day = 86400
    old, degraded, kept, newest = (
        world.point(database, made["id"], taken_at=at, state=state, protected=protected)
        for at, state, protected in ((day, RunState.AVAILABLE, False), (2 * day, RunState.DEGRADED, False),
                                     (3 * day, RunState.AVAILABLE, True), (4 * day, RunState.AVAILABLE, False))
    )  # fmt: skip
    failed = world.run(database, made["id"], RunState.ERROR, finished_at=5 * day * SECOND)
    lately = world.run(database, made["id"], RunState.ERROR)
    world.run(database, made["id"], RunState.RUNNING)
    path = f"/v1/p1/backupjobs/{made['id']}/retention-preview"
    answer = seen("POST", path, "reader")
    assert answer.status_code == 200, answer.data
    found = {each["backupjobrun_id"]: (each["kept"], each["reasons"]) for each in answer.json["decisions"]}
    assert found == {
        old.id: (False, ["not among the last 1"]),
        degraded.id: (True, ["degraded: it stays until somebody has looked"]),
        kept.id: (True, ["protected"]),
        newest.id: (True, ["newest restorable", "last 1 of 1"]),
        failed.id: (False, ["not restorable, and older than 30 days"]),
        lately.id: (True, ["not restorable; it is kept for 30 days, for who wants to know why"]),
    }
    assert (answer.json["kept"], answer.json["deleted"]) == (4, 2)
    assert answer.json["decisions"][0]["taken_at"] == "1970-01-02T00:00:00+00:00"
    other = seen("POST", path, json={"retention": {"daily": 9}}).json
    assert {each["backupjobrun_id"] for each in other["decisions"] if not each["kept"]} == {failed.id}
    # nothing was done
    assert row(database, old.id).state == RunState.AVAILABLE
    error(seen("POST", path, json={"retention": {"daily": 0}}), 400, "retention_invalid")
    error(seen("POST", path, json={"retention": None}), 400, "request_invalid")


def test_without_a_retention_everything_stays(seen: Api, made: dict[str, Any], path: str, database: Database) -> None:
    world.point(database, made["id"], taken_at=1)
    answer = seen("POST", f"{path}/retention-preview").json
    assert (answer["kept"], answer["deleted"]) == (1, 0)
    assert answer["decisions"][0]["reasons"] == ["the job has no retention: all stay"]


# -- schedulers are told ----------------------------------------------------------------------------


def test_what_schedulers_should_notice_is_told_to_them(make_api: Callable[..., Api], database: Database) -> None:
    told: list[int] = []
    lock = threading.Lock()

    def wake() -> None:
        with lock:
            told.append(1)

    world.agents(database)
    api = make_api(wake=wake)

    def tells(method: str, path: str, **more: Any) -> bool:
        before = len(told)
        assert api(method, path, **more).status_code < 300, path
        return len(told) > before

    made = world.job(api)
    assert told
    path = f"/v1/p1/backupjobs/{made['id']}"
    assert tells("PUT", path, json={"enabled": False}, headers=ANY)
    assert tells("POST", f"{path}/full")
    run = runs_of(database)[0]
    assert tells("POST", f"{path}/backupjobruns/{run.id}/cancel")
    assert not tells("GET", path)
    point = world.point(database, made["id"])
    assert tells("POST", f"{path}/backupjobruns/{point.id}", json={"target": {"kind": "files"}})
    assert not tells("POST", f"{path}/backupjobruns/{point.id}", json={"target": {"kind": "files"}, "dry_run": True})
    assert tells("DELETE", f"{path}/backupjobruns/{point.id}")
    assert tells("DELETE", path)
    before = len(told)
    error(api("DELETE", path), 409, "state_conflict")
    assert len(told) == before


def runs_of(database: Database) -> list[BackupJobRun]:
    with database.reading() as session:
        return list(session.query(BackupJobRun).all())
