"""`backupjobs`: what may be written, what becomes of it, and what is refused."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from raksha.config_api import Limits
from raksha.db import jobs, rows, schedules, services
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.schedule import next_after
from raksha.states import JobState, RunState
from tests.unit.api import world
from tests.unit.api.conftest import Api, error
from tests.unit.api.world import DB, FOREIGN, NOBODY, UNOWNED, WEB

JOBS = "/v1/p1/backupjobs"
ANY = {"If-Match": "*"}

EVERYTHING = {
    "name": "Nächtlich",
    "description": "two lines\nof it",
    "enabled": True,
    "vms": [
        {"id": WEB, "excluded_disks": ["vdb"], "source": "hypervisor", "force": False},
        {"id": DB, "excluded_disks": [], "source": "hypervisor", "force": False},
    ],
    "vm_selector": {"tags": ["gold"], "metadata": {"tier": "1"}},
    "schedule": {
        "cron": "30 22 * * 1-5", "zone": "Europe/Paris", "start": "2027-01-01T00:00:00+00:00",
        "end": "2127-01-01T00:00:00+00:00", "jitter": 600, "window": "22:00-06:00", "full_cron": "30 22 * * 0",
        "catch_up": "skip",
    },
    "quiesce": "require",
    "engine": "pull",
    "consistency_group": False,
    "on_vm_failure": "degrade",
    "retention": {"keep_last": 3, "hourly": 0, "daily": 7, "weekly": 4, "monthly": 12, "yearly": 1, "zone": "UTC"},
    "retry": {"retries": 3, "delay": 60},
    "max_parallel_disks": 2,
    "bandwidth_limit": 10_000_000,
    "placement": {"hosts": ["host-a"], "zones": ["east"]},
    "metadata": {"cost-center": "4711", "owner": "Zoë"},
}  # fmt: skip


@pytest.fixture
def seen(api: Api, database: Database) -> Api:
    world.agents(database)
    return api


def row(database: Database, id: str) -> BackupJob:
    with database.reading() as session:
        return jobs.get(session, None, id)


def clock(database: Database) -> int:
    with database.reading() as session:
        return rows.clock(session) // SECOND


def test_everything_that_a_job_can_say_is_kept_and_shown(seen: Api, database: Database) -> None:
    vault = world.vault(database)
    wanted = {**EVERYTHING, "vault_service_id": vault.id}
    answer = seen("POST", JOBS, json=wanted)
    assert answer.status_code == 201, answer.data
    assert answer.headers["Location"] == f"http://localhost{JOBS}/{answer.json['id']}"
    shown = seen("GET", f"{JOBS}/{answer.json['id']}")
    assert shown.json == answer.json
    assert shown.headers["ETag"] == answer.headers["ETag"]
    for name, value in wanted.items():
        assert shown.json[name] == value, name
    assert (shown.json["state"], shown.json["project_id"], shown.json["user_id"]) == ("active", "p1", "member")
    assert seen("GET", JOBS).json["backupjobs"] == [shown.json]


def test_the_row_is_what_schedulers_read(seen: Api, database: Database) -> None:
    before = clock(database)
    made = world.job(seen, **{**EVERYTHING, "schedule": {"every": 3600, "jitter": 60, "full_every": 7}})
    job = row(database, made["id"])
    schedule = schedules.of(job)
    assert schedule is not None
    assert (schedule.every, schedule.full_every, schedule.seed, job.full_every) == (3600, 7, made["id"], 7)
    assert job.next_run_at in {next_after(schedule, at) * SECOND for at in range(before, clock(database) + 1)}
    assert datetime.fromisoformat(made["next_run_at"]).timestamp() * SECOND == job.next_run_at
    assert (job.retry_policy, job.hints) == ({"retries": 3, "delay": 60}, EVERYTHING["metadata"])
    assert job.retention["daily"] == 7


def test_what_is_left_out_has_its_default(seen: Api) -> None:
    made = world.job(seen)
    expected = {
        "description": "", "enabled": True, "vm_selector": None, "schedule": None, "next_run_at": None,
        "quiesce": "auto", "engine": "auto", "consistency_group": True, "on_vm_failure": "abort", "retention": None,
        "retry": None, "max_parallel_disks": None, "bandwidth_limit": None, "placement": None, "metadata": {},
        "vault_service_id": None, "missed_runs": 0, "state_reason": None,
    }  # fmt: skip
    assert {name: made[name] for name in expected} == expected


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "name"),
    ({"name": "x" * 256}, "name"),
    ({"name": "two\nlines"}, "name"),
    ({"name": None}, "name"),
    ({"description": "x" * 4001}, "description"),
    ({"enabled": "yes"}, "enabled"),
    ({"vms": []}, "vms"),
    ({"vms": [{"id": WEB}, {"id": WEB}]}, "vms"),
    ({"vms": [{"id": "web"}]}, "vms.0.id"),
    ({"vms": [{"id": WEB}, {"id": NOBODY}]}, "vms.1.id"),
    ({"vms": [{"id": FOREIGN}]}, "vms.0.id"),
    ({"vms": [{"id": UNOWNED}]}, "vms.0.id"),
    ({"vms": [{"id": WEB, "excluded_disks": ["../x"]}]}, "vms.0.excluded_disks.0"),
    ({"vms": [{"id": WEB, "host": "x"}]}, "vms.0.host"),
    ({"vms": [], "vm_selector": None}, "vms"),
    ({"vm_selector": {}}, "vm_selector"),
    ({"vm_selector": {"tags": [], "metadata": {}}}, "vm_selector"),
    ({"vm_selector": {"tags": ["x"], "sql": "y"}}, "vm_selector.sql"),
    ({"quiesce": "sometimes"}, "quiesce"),
    ({"engine": "magic"}, "engine"),
    ({"on_vm_failure": "shrug"}, "on_vm_failure"),
    ({"retention": {"keep_last": -1}}, "retention.keep_last"),
    ({"retention": {"keep_last": 10001}}, "retention.keep_last"),
    ({"retention": {"fortnightly": 1}}, "retention.fortnightly"),
    ({"retry": {"retries": 21}}, "retry.retries"),
    ({"retry": {"delay": -1}}, "retry.delay"),
    ({"max_parallel_disks": 0}, "max_parallel_disks"),
    ({"bandwidth_limit": 1}, "bandwidth_limit"),
    ({"bandwidth_limit": 1e6}, "bandwidth_limit"),
    ({"placement": {"hosts": [""]}}, "placement.hosts.0"),
    ({"placement": {"racks": ["a"]}}, "placement.racks"),
    ({"metadata": {"a key": "x"}}, "metadata"),
    ({"metadata": {"k": "a\nb"}}, "metadata"),
    ({"metadata": {f"k{n}": "v" * 255 for n in range(12)}}, "metadata"),
    ({"metadata": {"k": 1}}, "metadata.k.value"),
    ({"vault_service_id": "main"}, "vault_service_id"),
    ({"vault_service_id": NOBODY}, "vault_service_id"),
    ({"schedule": {"cron": "0 3 * * *", "timezone": "UTC"}}, "schedule.timezone"),
    # what is the service's is nobody else's
    *[({name: "x"}, name) for name in ("id", "project_id", "user_id", "state", "version", "trust_id", "next_run_at")],
]


@pytest.mark.parametrize(("change", "where"), WRONG, ids=lambda value: repr(value)[:50])
def test_what_is_wrong_is_refused_and_named(seen: Api, database: Database, change: dict[str, Any], where: str) -> None:
    body = {"name": "x", "vms": [{"id": WEB}], **change}
    for method, path in (("POST", JOBS), ("PUT", f"{JOBS}/{world.job(seen)['id']}")):
        detail = error(seen(method, path, json=body, headers=ANY), 400, "request_invalid")
        assert detail.startswith(f"{where}: "), detail
    (only,) = seen("GET", JOBS).json["backupjobs"]
    assert only["name"] == "nightly"


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ({"schedule": {}}, "schedule_invalid"),
        ({"schedule": {"cron": "0 3 * * *", "every": 3600}}, "schedule_invalid"),
        ({"schedule": {"cron": "0 0 31 2 *"}}, "schedule_never_fires"),
        ({"schedule": {"cron": "0 3 * * *", "window": "22:00-23:00"}}, "schedule_never_fires"),
        ({"schedule": {"every": 3600, "end": "2001-01-01T00:00:00Z"}}, "schedule_never_fires"),
        ({"schedule": {"cron": "*/2 * * * *"}}, "schedule_too_often"),
        ({"schedule": {"cron": "0 3 * * *", "full_cron": "1 3 * * *"}}, "schedule_too_often"),
        ({"schedule": {"cron": "0 3 * * *", "zone": "Mars/Phobos"}}, "zone_unknown"),
        ({"schedule": {"cron": "0 3 * * 8"}}, "bad_cron"),
        ({"schedule": {"cron": "0 3 * * *", "window": "22-06"}}, "schedule_invalid"),
        ({"retention": {}}, "retention_invalid"),
        ({"retention": {"daily": 0}}, "retention_invalid"),
        ({"retention": {"daily": 1, "zone": "Mars/Phobos"}}, "zone_unknown"),
    ],
)
def test_schedules_and_retentions_that_cannot_be_meant_are_refused(seen: Api, field: dict[str, Any], code: str) -> None:
    made = world.job(seen)
    error(seen("POST", JOBS, json={"name": "x", "vms": [{"id": WEB}], **field}), 400, code)
    error(seen("PUT", f"{JOBS}/{made['id']}", json=field, headers=ANY), 400, code)


def test_a_job_needs_a_name_and_something_to_protect(seen: Api) -> None:
    assert error(seen("POST", JOBS, json={"vms": [{"id": WEB}]}), 400, "request_invalid").startswith("name: ")
    error(seen("POST", JOBS, json={"name": "x"}), 400, "request_invalid")
    error(seen("POST", JOBS), 400, "request_invalid")
    by_selector = world.job(seen, vms=[], vm_selector={"tags": ["gold"]})
    path = f"{JOBS}/{by_selector['id']}"
    error(seen("PUT", path, json={"vm_selector": None}, headers=ANY), 400, "request_invalid")
    answer = seen("PUT", path, json={"vm_selector": None, "vms": [{"id": WEB}]}, headers=ANY)
    assert (answer.json["vm_selector"], [vm["id"] for vm in answer.json["vms"]]) == (None, [WEB])


def test_vms_of_no_project_are_those_of_the_project_that_the_operator_says(
    make_api: Callable[..., Api], database: Database
) -> None:
    world.agents(database)
    api = make_api(unowned_vms_project="p1")
    made = world.job(api, vms=[{"id": UNOWNED}])
    assert [vm["id"] for vm in made["vms"]] == [UNOWNED]
    error(api("POST", "/v1/p2/backupjobs", "stranger", json={"name": "x", "vms": [{"id": UNOWNED}]}),
          400, "request_invalid")  # fmt: skip


def test_a_put_changes_what_it_names(seen: Api, database: Database) -> None:
    made = world.job(seen, **EVERYTHING)
    path = f"{JOBS}/{made['id']}"
    tag = seen("GET", path).headers["ETag"]
    answer = seen("PUT", path, json={"description": "new", "retention": None}, headers={"If-Match": tag})
    assert answer.status_code == 200, answer.data
    changed = {"description", "retention", "updated_at"}
    assert {name for name in made if answer.json[name] != made[name]} == changed
    assert answer.json["retention"] is None
    error(seen("PUT", path, json={"description": "x"}, headers={"If-Match": tag}), 412, "condition_failed")
    error(seen("PUT", path, json={"description": "x"}), 428, "condition_missing")
    assert seen("GET", path).headers["ETag"] == answer.headers["ETag"]


def test_a_vm_that_is_gone_does_not_keep_a_job_from_being_changed(seen: Api, database: Database) -> None:
    made = world.job(seen, vms=[{"id": WEB}, {"id": DB}])

    def gone(session: Any) -> None:
        for service, _vm in services.agents_of(session, WEB):
            services.see(session, service.id, [])

    database.run(gone)
    path = f"{JOBS}/{made['id']}"
    assert seen("PUT", path, json={"vms": [{"id": WEB}]}, headers=ANY).status_code == 200
    error(seen("PUT", path, json={"vms": [{"id": DB}]}, headers=ANY), 400, "request_invalid")


def test_pause_and_resume(seen: Api, database: Database) -> None:
    made = world.job(seen, schedule={"every": 3600})
    path = f"{JOBS}/{made['id']}"
    paused = seen("PUT", path, json={"enabled": False}, headers=ANY).json
    assert (paused["state"], paused["enabled"], paused["next_run_at"]) == ("paused", False, None)
    world.set_job(database, made["id"], next_run_at=5, fired_upto=4)
    resumed = seen("PUT", path, json={"enabled": True}, headers=ANY).json
    assert (resumed["state"], resumed["enabled"]) == ("active", True)
    # what went by meanwhile was not missed
    assert datetime.fromisoformat(resumed["next_run_at"]).timestamp() > clock(database) - 5
    assert row(database, made["id"]).fired_upto // SECOND > clock(database) - 60


def test_a_job_can_begin_paused(seen: Api) -> None:
    made = world.job(seen, schedule={"every": 3600}, enabled=False)
    assert (made["state"], made["enabled"], made["next_run_at"]) == ("paused", False, None)


def test_a_suspension_says_why_and_is_ended_by_its_owner(seen: Api, database: Database) -> None:
    made = world.job(seen, schedule={"every": 3600})
    why = {"code": "trust_broken", "message": "the trust is gone", "fields": {"trust": "secret"}}
    database.run(lambda s: transition(s, BackupJob, made["id"], JobState.SUSPENDED, state_reason=why))
    path = f"{JOBS}/{made['id']}"
    shown = seen("GET", path).json
    assert shown["state_reason"] == {"code": "trust_broken", "message": "the trust is gone"}
    # written back as it was read it stays as it is
    assert seen("PUT", path, json={"enabled": shown["enabled"]}, headers=ANY).json["state"] == "suspended"
    ended = seen("PUT", path, json={"enabled": True}, headers=ANY).json
    assert (ended["state"], ended["state_reason"]) == ("active", None)


def test_a_job_whose_row_cannot_be_read_is_shown_all_the_same(seen: Api, database: Database) -> None:
    made = world.job(seen, schedule={"every": 3600})
    world.set_job(database, made["id"], schedule={"cron": "not one", "zone": "Gone/Zone", "start": 5})
    shown = seen("GET", f"{JOBS}/{made['id']}")
    assert shown.json["schedule"] == {
        "cron": "not one", "zone": "Gone/Zone", "start": "1970-01-01T00:00:05+00:00", "jitter": 0, "catch_up": "latest"
    }  # fmt: skip
    assert seen("GET", JOBS).status_code == 200


def test_lists_are_filtered_and_sorted(seen: Api, database: Database) -> None:
    first = world.job(seen, name="b")
    second = world.job(seen, name="a", vms=[{"id": DB}], enabled=False)

    def names(query: str) -> list[str]:
        answer = seen("GET", f"{JOBS}?{query}")
        assert answer.status_code == 200, answer.data
        return [job["name"] for job in answer.json["backupjobs"]]

    assert names("sort=name:asc") == ["a", "b"]
    assert names("name=b") == ["b"]
    assert names("state=paused") == ["a"]
    assert names("state=in:paused,active&sort=name") == ["a", "b"]
    assert names(f"vm_id={DB}") == ["a"]
    assert names(f"vm_id={NOBODY}") == []
    assert names(f"created_at=gt:{first['created_at'].replace('+', '%2B')}") == (
        ["a"] if second["created_at"] > first["created_at"] else []
    )
    assert names("created_at=lt:2001-01-01T00:00:00Z") == []
    assert sorted(names("created_at=gte:2001-01-01T00:00:00%2B01:00")) == ["a", "b"]
    for wrong in ("state=nice", "state=in:", "state=in:active,nice", "vm_id=x", "created_at=2001-01-01T00:00:00Z",
                  "created_at=gt:yesterday", "created_at=ne:2001-01-01T00:00:00Z", "colour=red"):  # fmt: skip
        error(seen("GET", f"{JOBS}?{wrong}"), 400, "request_invalid")
    page = seen("GET", f"{JOBS}?limit=1&sort=name")
    assert [job["name"] for job in page.json["backupjobs"]] == ["a"]
    rest = seen("GET", page.json["backupjobs_links"][0]["href"].removeprefix("http://localhost"))
    assert [job["name"] for job in rest.json["backupjobs"]] == ["b"]


def test_the_jobs_of_others_are_not_there(seen: Api) -> None:
    theirs = world.job(seen, "stranger", "p2")
    for method, more in (("GET", {}), ("PUT", {"json": {"name": "x"}, "headers": ANY}), ("DELETE", {})):
        answer = seen(method, f"{JOBS}/{theirs['id']}", **more)
        assert error(answer, 404, "not_found") == f"There is no backup job {theirs['id']}."
        nothing = error(seen(method, f"{JOBS}/{NOBODY}", **more), 404, "not_found")
        assert nothing == f"There is no backup job {NOBODY}."
    for verb in ("full", "incremental", "backupjobruns"):
        error(seen("POST", f"{JOBS}/{theirs['id']}/{verb}"), 404, "not_found")
    error(seen("GET", f"{JOBS}/{theirs['id']}/backupjobruns"), 404, "not_found")
    assert seen("GET", f"/v1/p2/backupjobs/{theirs['id']}", "stranger").json == theirs
    # operators see all, and write nothing for others
    assert seen("GET", f"/v1/p2/backupjobs/{theirs['id']}", "admin").json == theirs
    error(seen("PUT", f"/v1/p2/backupjobs/{theirs['id']}", "admin", json={}, headers=ANY), 404, "not_found")


def test_limits_of_jobs(make_api: Callable[..., Api], database: Database) -> None:
    world.agents(database)
    api = make_api(limits=Limits(max_jobs=2, max_vms_per_job=1))
    body = {"name": "x", "vms": [{"id": WEB}, {"id": DB}]}
    assert "VMs of a backup job is 1" in error(api("POST", JOBS, json=body), 403, "limit_exceeded")
    made = world.job(api)
    error(api("PUT", f"{JOBS}/{made['id']}", json={"vms": body["vms"]}, headers=ANY), 403, "limit_exceeded")
    world.job(api)
    assert "backup jobs is 2" in error(
        api("POST", JOBS, json={"name": "x", "vms": [{"id": WEB}]}), 403, "limit_exceeded"
    )
    world.job(api, "stranger", "p2")
    tag = api("GET", "/v1/p1/limits", "admin").headers["ETag"]
    assert api("PUT", "/v1/p1/limits", "admin", json={"max_jobs": -1}, headers={"If-Match": tag}).status_code == 200
    world.job(api)


def test_a_repeated_creation_makes_one_job(seen: Api, database: Database) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"name": "once", "vms": [{"id": WEB}]}
    first, again = (seen("POST", JOBS, json=body, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json == again.json
    assert len(seen("GET", JOBS).json["backupjobs"]) == 1


# -- deletion ---------------------------------------------------------------------------------------


def test_a_job_that_has_stored_nothing_is_deleted(seen: Api, database: Database) -> None:
    made = world.job(seen, schedule={"every": 3600})
    waiting = world.run(database, made["id"])
    failed = world.run(database, made["id"], RunState.ERROR)
    path = f"{JOBS}/{made['id']}"
    answer = seen("DELETE", path)
    assert (answer.status_code, answer.headers["Location"]) == (202, f"http://localhost{path}")
    assert seen("GET", path).json["state"] == "deleting"
    assert row(database, made["id"]).next_run_at is None
    assert seen("GET", f"{path}/backupjobruns/{failed.id}").json["state"] == "deleting"
    assert seen("GET", f"{path}/backupjobruns/{waiting.id}").json["cancel_requested_at"] is not None
    assert "is deleting" in error(seen("DELETE", path), 409, "state_conflict")
    assert "is deleting" in error(seen("PUT", path, json={"name": "x"}, headers=ANY), 409, "state_conflict")
    for verb in ("full", "incremental", "backupjobruns"):
        assert "is deleting" in error(seen("POST", f"{path}/{verb}"), 409, "state_conflict")


def test_restore_points_are_deleted_with_their_job_only_if_that_is_said(seen: Api, database: Database) -> None:
    made = world.job(seen)
    points = [world.point(database, made["id"]).id, world.point(database, made["id"], state=RunState.DEGRADED).id]
    path = f"{JOBS}/{made['id']}"
    for query in ("", "?with_runs=false"):
        assert "has 2 restore points" in error(seen("DELETE", path + query), 409, "has_restore_points")
    error(seen("DELETE", f"{path}?with_runs=1"), 400, "request_invalid")
    assert seen("GET", path).json["state"] == "active"
    assert seen("DELETE", f"{path}?with_runs=true").status_code == 202
    for id in points:
        assert seen("GET", f"{path}/backupjobruns/{id}").json["state"] == "deleting"


def test_a_protected_restore_point_keeps_its_job(seen: Api, database: Database) -> None:
    made = world.job(seen)
    point = world.point(database, made["id"], state=RunState.DEGRADED, protected=True)
    path = f"{JOBS}/{made['id']}"
    assert point.id in error(seen("DELETE", f"{path}?with_runs=true"), 409, "protected")
    assert seen("GET", path).json["state"] == "active"
