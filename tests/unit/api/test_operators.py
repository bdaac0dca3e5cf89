"""VMs, vaults, services, limits and usage; metrics; hints for schedulers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from raksha.api.waker import Waker
from raksha.config_api import Limits
from raksha.db import services as processes
from raksha.db.columns import SECOND
from raksha.db.models import Service
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.rpc import Bus
from raksha.states import RunState, ServiceState
from raksha.wake import SCHEDULERS, WAKE
from tests.bed.scheduling import silent
from tests.unit.api import world
from tests.unit.api.conftest import Api, basic, error
from tests.unit.api.world import DB, FOREIGN, NOBODY, UNOWNED, WEB

SERVICES = "/v1/p1/services"


@pytest.fixture
def seen(api: Api, database: Database) -> Api:
    world.agents(database)
    return api


# -- VMs --------------------------------------------------------------------------------------------


def test_vms_are_those_of_the_project_each_once(seen: Api) -> None:
    found = seen("GET", "/v1/p1/vms?sort=name", "reader").json["vms"]
    assert [(vm["id"], vm["power"]) for vm in found] == [(DB, "shut off"), (WEB, "running")]
    web = found[1]
    assert (web["tags"], web["metadata"], web["refusal"]) == (["gold", "x"], {"tier": "1"}, None)
    assert web["disks"] == [{"target": "vda", "size": 1 << 30, "reason": None}]
    assert found[0]["refusal"] == {"code": "vm_unsupported", "message": "it has a host device"}
    assert [vm["id"] for vm in seen("GET", "/v1/p2/vms", "stranger").json["vms"]] == [FOREIGN]


def test_a_vm_whose_agent_is_silent_says_so(seen: Api, database: Database) -> None:
    """What it said last stays: when that was, and what it was."""
    before = seen("GET", f"/v1/p1/vms/{WEB}").json
    with database.reading() as session:
        (agent,) = session.query(Service).filter_by(host="host-a")
    database.run(lambda s: silent(s, agent, 61))
    shown = {vm["id"]: vm for vm in seen("GET", "/v1/p1/vms", "reader").json["vms"]}
    gone = {"code": "agent_gone", "message": "The agent of its host is silent: this is what it saw last."}
    assert [shown[id]["refusal"] for id in (WEB, DB)] == [gone, gone]
    found = seen("GET", f"/v1/p1/vms/{WEB}").json
    assert found == {**before, "refusal": gone} and found["power"] == "running"
    database.run(lambda s: silent(s, agent, 5))
    assert seen("GET", f"/v1/p1/vms/{WEB}").json == before


def test_pages_of_vms_have_each_once(seen: Api) -> None:
    first = seen("GET", "/v1/p1/vms?sort=name&limit=1").json
    assert [vm["name"] for vm in first["vms"]] == ["db"]
    href = first["vms_links"][0]["href"].removeprefix("http://localhost")
    assert [vm["name"] for vm in seen("GET", href).json["vms"]] == ["web"]
    # the marker is one that two hosts see
    again = seen("GET", f"/v1/p1/vms?sort=name:desc&limit=1&marker={WEB}").json
    assert [vm["name"] for vm in again["vms"]] == ["db"]


def test_vms_are_filtered(seen: Api) -> None:
    def names(query: str) -> list[str]:
        return [vm["name"] for vm in seen("GET", f"/v1/p1/vms?{query}").json["vms"]]

    assert names("power=running") == ["web"]
    assert names("power=in:running,shut off&sort=name") == ["db", "web"]
    assert names("name=db") == ["db"]
    assert names("name=foreign") == []
    error(seen("GET", "/v1/p1/vms?power=on"), 400, "request_invalid")


def test_a_vm_and_the_jobs_that_name_it(seen: Api, database: Database) -> None:
    job = world.job(seen)
    world.job(seen, "stranger", "p2")
    assert seen("GET", f"/v1/p1/vms/{WEB}").json["backupjobs"] == [job["id"]]
    assert seen("GET", f"/v1/p1/vms/{DB}").json["backupjobs"] == []
    for foreign in (FOREIGN, UNOWNED, NOBODY):
        assert error(seen("GET", f"/v1/p1/vms/{foreign}"), 404, "not_found") == f"There is no VM {foreign}."


def test_vms_of_nobody_belong_to_the_project_that_the_operator_says(
    make_api: Callable[..., Api], database: Database
) -> None:
    world.agents(database)
    api = make_api(unowned_vms_project="p1")
    assert {vm["id"] for vm in api("GET", "/v1/p1/vms").json["vms"]} == {WEB, DB, UNOWNED}
    assert api("GET", f"/v1/p1/vms/{UNOWNED}").json["name"] == "unowned"
    assert {vm["id"] for vm in api("GET", "/v1/p2/vms", "stranger").json["vms"]} == {FOREIGN}


def test_vaults_are_those_that_the_project_may_use(seen: Api, database: Database) -> None:
    assert seen("GET", "/v1/p1/vaults").json == {"vaults": []}
    main = world.vault(database, settings={"password": "secret"})
    world.vault(database, "another's", project_id="p2")
    world.vault(database, "off", enabled=False)
    own = world.vault(database, "own", project_id="p1", kind="swift", url="swift://")
    answer = seen("GET", "/v1/p1/vaults", "reader")
    assert answer.json["vaults"] == [
        {"id": main.id, "name": "main", "kind": "directory", "is_default": True},
        {"id": own.id, "name": "own", "kind": "swift", "is_default": False},
    ]
    assert b"secret" not in answer.data and b"/srv" not in answer.data


# -- services ---------------------------------------------------------------------------------------


def test_services_are_for_operators(seen: Api) -> None:
    found = seen("GET", f"{SERVICES}?sort=name", "admin").json["services"]
    told = [(each["name"], each["kind"], each["zone"], each["capacity"], each["running"], each["alive"])
            for each in found]  # fmt: skip
    assert told == [("host-a", "agent", "east", 4, 0, True), ("host-b", "agent", "east", 4, 0, True)]
    path = f"{SERVICES}/{found[0]['id']}"
    assert seen("GET", path, "admin").json == found[0]
    for user in ("reader", "member"):
        error(seen("GET", SERVICES, user), 403, "not_allowed")
        error(seen("GET", path, user), 403, "not_allowed")
        error(seen("PUT", path, user, json={"state": "disabled"}, headers={"If-Match": "*"}), 403, "not_allowed")
    assert seen("GET", f"{SERVICES}?host=host-b", "admin").json["services"] == [found[1]]
    assert seen("GET", f"{SERVICES}?kind=scheduler", "admin").json["services"] == []
    assert len(seen("GET", f"{SERVICES}?kind=in:agent,api&state=enabled", "admin").json["services"]) == 2
    error(seen("GET", f"{SERVICES}?kind=x", "admin"), 400, "request_invalid")
    error(seen("GET", f"{SERVICES}/{NOBODY}", "admin"), 404, "not_found")


def test_a_service_is_drained_disabled_and_enabled(seen: Api, database: Database) -> None:
    (found,) = seen("GET", f"{SERVICES}?host=host-a", "admin").json["services"]
    path = f"{SERVICES}/{found['id']}"

    def put(tag: str, **body: Any) -> Any:
        return seen("PUT", path, "admin", json=body, headers={"If-Match": tag})

    tag = seen("GET", path, "admin").headers["ETag"]
    answer = put(tag, state="draining", reason="new disk")
    assert (answer.status_code, answer.json["state"], answer.json["state_reason"]) == (200, "draining", "new disk")
    error(put(tag, state="enabled"), 412, "condition_failed")
    # the same again is no conflict
    answer = put(answer.headers["ETag"], state="draining", reason="two new disks")
    assert answer.json["state_reason"] == "two new disks"
    database.run(lambda s: transition(s, Service, found["id"], ServiceState.DRAINED))
    error(put(answer.headers["ETag"], state="enabled"), 412, "condition_failed")
    assert "is drained;" in error(put("*", state="draining"), 409, "state_conflict")
    answer = put("*", state="enabled")
    assert (answer.json["state"], answer.json["state_reason"]) == ("enabled", None)
    assert put("*", state="disabled").json["state"] == "disabled"
    for wrong in ({}, {"state": "drained"}, {"state": "off"}, {"state": "enabled", "host": "x"},
                  {"state": "enabled", "reason": "x" * 256}):  # fmt: skip
        error(put("*", **wrong), 400, "request_invalid")
    error(seen("PUT", path, "admin", json={"state": "enabled"}), 428, "condition_missing")


def test_a_silent_service_is_shown_so_and_can_be_forgotten(seen: Api, database: Database) -> None:
    (found,) = seen("GET", f"{SERVICES}?host=host-b", "admin").json["services"]
    path = f"{SERVICES}/{found['id']}"
    assert "it is alive" in error(seen("DELETE", path, "admin"), 409, "still_needed")

    def silence(session: Any) -> None:
        service = processes.get(session, found["id"])
        service.heartbeat_at -= 700 * SECOND

    database.run(silence)
    assert seen("GET", path, "admin").json["alive"] is False
    answer = seen("DELETE", path, "admin")
    assert (answer.status_code, answer.data) == (204, b"")
    error(seen("GET", path, "admin"), 404, "not_found")
    # what it saw is gone with it
    assert [vm["power"] for vm in seen("GET", "/v1/p1/vms?name=web").json["vms"]] == ["running"]


# -- limits and usage ---------------------------------------------------------------------------------


def test_limits_are_those_of_the_settings(make_api: Callable[..., Api]) -> None:
    api = make_api(limits=Limits(max_jobs=7, min_schedule_interval=60), max_runs_per_project=3)
    assert api("GET", "/v1/p1/limits", "reader").json == {
        "limits": {
            "max_body_bytes": 1048576,
            "max_page_size": 1000,
            "max_vms_per_job": 100,
            "min_schedule_interval": 60,
            "max_preview_times": 100,
            "max_runs_under_way": 100,
            "max_restores_under_way": 20,
            "max_jobs": 7,
            "max_runs": -1,
            "max_stored_bytes": -1,
            "max_concurrent_runs": 3,
        }
    }


def test_operators_give_a_project_limits_of_its_own(api: Api) -> None:
    path = "/v1/p2/limits"
    tag = api("GET", path, "admin").headers["ETag"]
    body = {"max_jobs": 5, "max_stored_bytes": 10**15, "max_concurrent_runs": -1}
    answer = api("PUT", path, "admin", json=body, headers={"If-Match": tag})
    assert answer.status_code == 200, answer.data
    assert {name: answer.json["limits"][name] for name in body} == body
    assert api("GET", path, "stranger").json == answer.json
    assert api("GET", "/v1/p1/limits").json["limits"]["max_jobs"] == 1000
    error(api("PUT", path, "admin", json={"max_jobs": 6}, headers={"If-Match": tag}), 412, "condition_failed")
    again = api("PUT", path, "admin", json={"max_jobs": None}, headers={"If-Match": answer.headers["ETag"]})
    assert (again.json["limits"]["max_jobs"], again.json["limits"]["max_concurrent_runs"]) == (1000, -1)
    error(api("PUT", path, "stranger", json={"max_jobs": 9}, headers={"If-Match": "*"}), 403, "not_allowed")
    for wrong in ({"max_jobs": -2}, {"max_jobs": "5"}, {"max_page_size": 5}, {"max_runs": 2**63}):
        error(api("PUT", path, "admin", json=wrong, headers={"If-Match": "*"}), 400, "request_invalid")


def test_usage_counts_what_the_project_has(seen: Api, database: Database) -> None:
    nothing = {"jobs": 0, "runs": 0, "runs_under_way": 0, "restores_under_way": 0, "stored_bytes": 0}
    assert seen("GET", "/v1/p1/usage", "reader").json == {"usage": nothing}
    made = world.job(seen)
    point = world.point(database, made["id"], disks=("vda", "vdb"))
    world.run(database, made["id"], RunState.RUNNING)
    world.run(database, made["id"], RunState.ERROR)
    at = f"/v1/p1/backupjobs/{made['id']}/backupjobruns/{point.id}"
    assert seen("POST", at, json={"target": {"kind": "files"}}).status_code == 202
    assert seen("GET", "/v1/p1/usage").json == {
        "usage": {"jobs": 1, "runs": 1, "runs_under_way": 1, "restores_under_way": 1, "stored_bytes": 2000}
    }
    assert seen("GET", "/v1/p2/usage", "stranger").json == {"usage": nothing}


# -- metrics ----------------------------------------------------------------------------------------


def counted(text: str, **labels: str) -> float:
    found = re.findall(r"^raksha_api_requests_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    values = [float(value) for told, value in found if dict(re.findall(r'(\w+)="([^"]*)"', told)) == labels]
    return sum(values)


def test_metrics_count_answers_by_route(make_api: Callable[..., Api], database: Database) -> None:
    api = make_api(metrics="everybody")
    for _ in range(3):
        api("GET", f"/v1/p1/backupjobs/{NOBODY}")
    api("GET", "/v1/p1/limits")
    api("GET", "/v1/p1/limits", None)
    for path in ("/nowhere", "/nowhere/else?x=1"):
        api("GET", path)
    api("DELETE", "/v1/p1/limits")
    answer = api("GET", "/metrics", None)
    assert answer.status_code == 200 and answer.mimetype == "text/plain"
    text = answer.get_data(as_text=True)
    show = "/v1/{tenant_id}/backupjobs/{backupjob_id}"
    assert counted(text, method="GET", route=show, status="404") == 3
    assert counted(text, method="GET", route="/v1/{tenant_id}/limits", status="200") == 1
    assert counted(text, method="GET", route="/v1/{tenant_id}/limits", status="401") == 1
    assert counted(text, method="any", route="none", status="404") == 2
    assert counted(text, method="any", route="none", status="405") == 1
    assert f'raksha_api_request_seconds_count{{method="GET",route="{show}"}} 3.0' in text
    # the one that asks
    assert re.search(r"^raksha_api_requests_under_way 1\.0$", text, re.MULTILINE)
    assert NOBODY not in text and "nowhere" not in text


def test_who_may_see_metrics_is_a_setting(make_api: Callable[..., Api]) -> None:
    api = make_api()
    assert api("GET", "/metrics", "admin").status_code == 200
    error(api("GET", "/metrics", "member"), 403, "not_allowed")
    error(api("GET", "/metrics", None), 401, "not_authenticated")
    error(api("GET", "/metrics", None, headers=basic("admin", "wrong")), 401, "not_authenticated")
    error(make_api(metrics="nobody")("GET", "/metrics", "admin"), 404, "not_found")


# -- hints ------------------------------------------------------------------------------------------


def test_hints_reach_a_scheduler_over_the_bus() -> None:
    heard: list[float] = []
    bus = Bus("fake://")
    try:
        waker = Waker(bus)
        # nobody is there: nothing waits, nothing fails
        began = time.monotonic()
        waker()
        assert time.monotonic() - began < 0.5
        with bus.serve(SCHEDULERS, "one", {WAKE: lambda hint: heard.append(time.monotonic())}):
            for _ in range(50):
                waker()
            until = time.monotonic() + 20
            while not heard and time.monotonic() < until:
                time.sleep(0.01)
        assert heard
    finally:
        bus.close()
