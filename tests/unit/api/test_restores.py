"""Restores over REST: what may be asked for, what is pinned, plans, and what becomes of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from raksha.config_api import Limits
from raksha.db import backups, restores, services
from raksha.db.models import BackupJobRun, Pin, Restore, VmResourceBackup
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.states import BackupState, PinHolder, RestoreState, RunState
from tests.unit.api import world
from tests.unit.api.conftest import Api, error
from tests.unit.api.world import DB, NOBODY, WEB

VOLUME = "00000000-0000-4000-8000-0000000000c1"
FILES = {"target": {"kind": "files"}}


@pytest.fixture
def seen(api: Api, database: Database) -> Api:
    world.agents(database)
    return api


@pytest.fixture
def made(seen: Api) -> dict[str, Any]:
    return world.job(seen, vms=[{"id": WEB}, {"id": DB}])


@pytest.fixture
def point(made: dict[str, Any], database: Database) -> BackupJobRun:
    """An increment of two VMs with two disks, on a full one."""
    base = world.point(database, made["id"], disks=("vda", "vdb"), vms=(WEB, DB))
    return world.point(database, made["id"], disks=("vda", "vdb"), vms=(WEB, DB), parent=base)


def at(run: BackupJobRun) -> str:
    return f"/v1/p1/backupjobs/{run.backupjob_id}/backupjobruns/{run.id}"


def row(database: Database, id: str) -> Restore:
    with database.reading() as session:
        return restores.get(session, None, id)


def pinned(database: Database, holder: str) -> set[tuple[str, str, str]]:
    """VM, disk and run of what somebody holds."""
    with database.reading() as session:
        return {(copy.vm_id, copy.resource, copy.backupjobrun_id) for copy in backups.pinned_by(session, holder)}


def test_a_restore_is_queued_and_all_that_it_reads_stays(seen: Api, point: BackupJobRun, database: Database) -> None:
    asked = {"target": {"kind": "domain", "start": True, "format": "qcow2"},
             "vms": [{"id": WEB, "disks": ["vda"], "name": "web-again"}]}  # fmt: skip
    answer = seen("POST", at(point), json=asked)
    assert answer.status_code == 202, answer.data
    made = answer.json
    path = f"/v1/p1/restores/{made['id']}"
    assert answer.headers["Location"] == f"http://localhost{path}"
    assert seen("GET", path).json == made
    assert made["target"] == {
        "kind": "domain", "directory": None, "host": None, "format": "qcow2", "start": True, "project": None,
        "cloud": {},
    }  # fmt: skip
    assert made["vms"] == [{"id": WEB, "disks": ["vda"], "name": "web-again", "overwrite": {}}]
    assert (made["state"], made["backupjobrun_id"], made["user_id"]) == ("queued", point.id, "member")
    assert made["progress"] == {"bytes_total": 1 << 30, "bytes_done": 0, "percent": 0}
    base = {run.id for run in runs_of(database)} - {point.id}
    assert pinned(database, made["id"]) == {(WEB, "vda", point.id), *((WEB, "vda", id) for id in base)}
    with database.reading() as session:
        assert {pin.holder_kind for pin in session.scalars(select(Pin))} == {PinHolder.RESTORE}
    # as agents are to be told
    assert row(database, made["id"]).target == {
        "kind": "domain", "vms": [{"vm": WEB, "disks": ["vda"], "name": "web-again", "overwrite": {}}],
        "directory": None,
        "format": "qcow2", "start": True, "host": None, "project": None, "cloud": {},
    }  # fmt: skip


def runs_of(database: Database) -> list[BackupJobRun]:
    with database.reading() as session:
        return list(session.scalars(select(BackupJobRun)))


def test_without_names_it_is_everything(seen: Api, point: BackupJobRun, database: Database) -> None:
    made = seen("POST", at(point), json=FILES).json
    assert made["vms"] == [{"id": vm, "disks": ["vda", "vdb"], "name": None, "overwrite": {}} for vm in (WEB, DB)]
    assert len(pinned(database, made["id"])) == 8
    as_vms = seen("POST", at(point), json={"target": {"kind": "domain"}}).json
    assert [vm["name"] for vm in as_vms["vms"]] == [
        f"{name}-restored-{as_vms['id'][:8]}" for name in ("web", "db")
    ]  # fmt: skip


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "target"),
    ({"target": {}}, "target.kind"),
    ({"target": {"kind": "image"}}, "target.kind"),
    ({"target": {"kind": "files", "start": True}}, "target.start"),
    ({"target": {"kind": "in_place", "format": "raw"}}, "target.format"),
    ({"target": {"kind": "files", "format": "vmdk"}}, "target.format"),
    ({"target": {"kind": "files", "path": "/x"}}, "target.path"),
    ({**FILES, "vms": []}, "vms"),
    ({**FILES, "vms": [{"id": WEB}, {"id": WEB}]}, "vms"),
    ({**FILES, "vms": [{"id": NOBODY}]}, "vms.0.id"),
    ({**FILES, "vms": [{"id": DB}, {"id": WEB, "disks": ["vda", "vdz"]}]}, "vms.1.disks"),
    ({**FILES, "vms": [{"id": WEB, "name": "x"}]}, "vms.0.name"),
    ({**FILES, "vms": [{"disks": ["vda"]}]}, "vms.0.id"),
    ({"target": {"kind": "domain"}, "vms": [{"id": WEB, "name": "a/b"}]}, "vms.0.name"),
    ({"target": {"kind": "domain"}, "vms": [{"id": WEB, "name": "-rf"}]}, "vms.0.name"),
    ({"target": {"kind": "domain"}, "vms": [{"id": WEB, "name": "../x"}]}, "vms.0.name"),
    ({**FILES, "vms": [{"id": WEB, "overwrite": {"vda": VOLUME}}]}, "vms"),
    ({"target": {"kind": "volume"}, "vms": [{"id": WEB, "overwrite": {"vda": VOLUME, "vdb": VOLUME}}]}, "vms"),
    ({"target": {"kind": "volume"}, "vms": [{"id": WEB, "overwrite": {"vda": "x/../y"}}]}, "vms.0.overwrite.vda.value"),
    ({"target": {"kind": "volume"}, "vms": [{"id": WEB, "overwrite": {"vdz": VOLUME}}]}, "vms.0.overwrite"),
    ({**FILES, "dry_run": "yes"}, "dry_run"),
    ({**FILES, "state": "done"}, "state"),
]


@pytest.mark.parametrize(("body", "where"), WRONG, ids=lambda value: repr(value)[:60])
def test_what_cannot_be_meant_is_refused(
    seen: Api, point: BackupJobRun, database: Database, body: dict[str, Any], where: str
) -> None:
    assert error(seen("POST", at(point), json=body), 400, "request_invalid").startswith(f"{where}: ")
    assert seen("GET", "/v1/p1/restores").json == {"restores": []}


@pytest.mark.parametrize("directory", ["srv", "/", "/srv/../etc", "/srv/..", "//srv", "/srv//x", "/srv\n/x", "/./x"])
def test_a_directory_is_an_absolute_one(seen: Api, point: BackupJobRun, directory: str) -> None:
    body = {"target": {"kind": "files", "directory": directory}}
    detail = error(seen("POST", at(point), "admin", json=body), 400, "request_invalid")
    assert detail.startswith("target.directory: ")


def test_paths_and_hosts_are_for_operators(seen: Api, point: BackupJobRun, database: Database) -> None:
    for more in ({"directory": "/srv/out"}, {"host": "host-a"}):
        body = {"target": {"kind": "files", **more}}
        assert "restore_anywhere" in error(seen("POST", at(point), json=body), 403, "not_allowed")
        assert "restore_anywhere" in error(seen("POST", at(point), json={**body, "dry_run": True}), 403, "not_allowed")
        assert seen("POST", at(point), "admin", json=body).status_code == 202
    (first, _) = seen("GET", "/v1/p1/restores?sort=created_at:asc").json["restores"]
    assert first["target"]["directory"] == "/srv/out"


@pytest.mark.parametrize(
    "state", [RunState.QUEUED, RunState.RUNNING, RunState.COMMITTING, RunState.ERROR, RunState.DELETING]
)
def test_what_is_no_restore_point_is_not_restored_from(
    seen: Api, made: dict[str, Any], database: Database, state: RunState
) -> None:
    run = world.run(database, made["id"], state)
    for dry in (False, True):
        answer = seen("POST", at(run), json={**FILES, "dry_run": dry})
        assert f"is {state};" in error(answer, 409, "state_conflict")


def test_a_copy_that_is_on_its_way_out_is_not_read(seen: Api, point: BackupJobRun, database: Database) -> None:
    def trash(session: Any) -> None:
        disk = VmResourceBackup.vm_id == WEB, VmResourceBackup.resource == "vdb"
        below = VmResourceBackup.backupjobrun_id != point.id
        (copy,) = session.scalars(select(VmResourceBackup).where(*disk, below))
        transition(session, VmResourceBackup, copy.id, BackupState.TRASHED)

    database.run(trash)
    assert "is trashed" in error(seen("POST", at(point), json=FILES), 409, "state_conflict")
    # nothing is left of it
    assert seen("GET", "/v1/p1/restores").json == {"restores": []}
    with database.reading() as session:
        assert list(session.scalars(select(Pin))) == []
    assert seen("POST", at(point), json={**FILES, "vms": [{"id": WEB, "disks": ["vda"]}]}).status_code == 202
    plan = seen("POST", at(point), json={**FILES, "dry_run": True}).json
    assert [problem["code"] for problem in plan["problems"]] == ["copy_not_available"]


def test_a_plan_tells_what_would_be_read_and_does_nothing(seen: Api, point: BackupJobRun, database: Database) -> None:
    body = {"target": {"kind": "domain"}, "vms": [{"id": WEB, "disks": ["vdb"], "name": "x"}], "dry_run": True}
    answer = seen("POST", at(point), json=body)
    assert answer.status_code == 200, answer.data
    plan = answer.json
    assert (plan["kind"], plan["consistency"], plan["problems"]) == ("domain", "quiesced", [])
    assert (plan["bytes_total"], plan["bytes_stored"]) == (1 << 30, 2000)
    (vm,) = plan["vms"]
    assert (vm["id"], vm["name"], vm["new_name"]) == (WEB, "web", "x")
    (disk,) = vm["disks"]
    assert (disk["resource"], [copy["kind"] for copy in disk["copies"]]) == ("vdb", ["incremental", "full"])
    newest, base = disk["copies"]
    assert newest["vm_resource_backup_backing_id"] == base["id"]
    assert seen("GET", "/v1/p1/restores").json == {"restores": []}
    with database.reading() as session:
        assert list(session.scalars(select(Pin))) == []


def test_a_plan_names_what_may_be_in_the_way(make_api: Callable[..., Api], database: Database) -> None:
    world.agents(database)
    api = make_api()
    point = world.point(database, world.job(api)["id"], state=RunState.DEGRADED)

    def problems(api: Api, user: str = "member", **target: Any) -> list[str]:
        answer = api("POST", at(point), user, json={"target": target, "dry_run": True})
        assert answer.status_code == 200, answer.data
        return [problem["code"] for problem in answer.json["problems"]]

    assert problems(api, kind="files") == ["degraded"]
    # it runs
    assert problems(api, kind="in_place") == ["degraded", "vm_not_shut_off"]
    assert problems(api, "admin", kind="files", host="host-z") == ["degraded", "agent_gone"]
    late = make_api(agent_timeout=0.0)
    assert problems(late, kind="files") == ["degraded", "agent_gone"]


def test_only_what_is_ones_own_is_overwritten(seen: Api, point: BackupJobRun, database: Database) -> None:
    """A VM may have changed hands since it was stored."""
    assert seen("POST", at(point), json={"target": {"kind": "in_place"}, "vms": [{"id": WEB}]}).status_code == 202

    def sold(session: Any) -> None:
        for service, vm in services.agents_of(session, WEB):
            services.see(session, service.id, [services.Sight(WEB, vm.name, vm.power, "p2")])

    database.run(sold)
    answer = seen("POST", at(point), json={"target": {"kind": "in_place"}, "vms": [{"id": WEB}]})
    assert error(answer, 404, "not_found") == f"There is no VM {WEB}."
    assert seen("POST", at(point), json={**FILES, "vms": [{"id": WEB}]}).status_code == 202


def test_a_repeated_post_restores_once(seen: Api, point: BackupJobRun) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first, again = (seen("POST", at(point), json=FILES, headers=headers) for _ in range(2))
    assert (first.json, first.headers["Location"]) == (again.json, again.headers["Location"])
    assert len(seen("GET", "/v1/p1/restores").json["restores"]) == 1


def test_limit_of_restores(make_api: Callable[..., Api], database: Database) -> None:
    world.agents(database)
    api = make_api(limits=Limits(max_restores_under_way=1))
    point = world.point(database, world.job(api)["id"])
    made = api("POST", at(point), json=FILES).json
    assert "restores that have not ended is 1" in error(api("POST", at(point), json=FILES), 403, "limit_exceeded")
    assert api("POST", at(point), json={**FILES, "dry_run": True}).status_code == 200
    database.run(lambda s: transition(s, Restore, made["id"], RestoreState.CANCELLED))
    assert api("POST", at(point), json=FILES).status_code == 202


def test_restores_are_listed_and_belong_to_their_project(
    seen: Api, made: dict[str, Any], point: BackupJobRun, database: Database
) -> None:
    ids = [seen("POST", at(run), json=FILES).json["id"] for run in (point, world.point(database, made["id"]))]
    database.run(lambda s: transition(s, Restore, ids[1], RestoreState.RUNNING, bytes_done=1 << 29))

    def listed(query: str) -> set[str]:
        answer = seen("GET", f"/v1/p1/restores?{query}")
        assert answer.status_code == 200, answer.data
        return {restore["id"] for restore in answer.json["restores"]}

    assert listed("") == set(ids)
    assert listed("state=running") == {ids[1]}
    assert listed("state=in:queued,running") == set(ids)
    assert listed(f"backupjobrun_id={point.id}") == {ids[0]}
    assert listed("created_at=lt:2001-01-01T00:00:00Z") == set()
    for wrong in ("state=x", "backupjobrun_id=x", "limit=0"):
        assert seen("GET", f"/v1/p1/restores?{wrong}").status_code == 400
    assert seen("GET", f"/v1/p1/restores/{ids[1]}").json["progress"]["percent"] == 50
    for path in (f"/v1/p2/restores/{ids[0]}", f"/v1/p2/restores/{ids[0]}/cancel"):
        method = "POST" if path.endswith("cancel") else "GET"
        error(seen(method, path, "stranger"), 404, "not_found")
    assert seen("GET", "/v1/p2/restores", "stranger").json == {"restores": []}
    assert seen("GET", f"/v1/p1/restores/{ids[0]}", "admin").status_code == 200


def test_a_restore_that_is_not_over_can_be_cancelled(seen: Api, point: BackupJobRun, database: Database) -> None:
    made = seen("POST", at(point), json=FILES).json
    path = f"/v1/p1/restores/{made['id']}"
    answer = seen("POST", f"{path}/cancel")
    assert (answer.status_code, answer.headers["Location"]) == (202, f"http://localhost{path}")
    first = row(database, made["id"]).cancel_requested_at
    assert first is not None
    assert seen("POST", f"{path}/cancel").status_code == 202
    assert row(database, made["id"]).cancel_requested_at == first
    for state in (RestoreState.RUNNING, RestoreState.CANCELLING):
        database.run(lambda s, state=state: transition(s, Restore, made["id"], state))
        assert seen("POST", f"{path}/cancel").status_code == 202
    database.run(lambda s: transition(s, Restore, made["id"], RestoreState.DONE))
    assert "is done;" in error(seen("POST", f"{path}/cancel"), 409, "state_conflict")


def test_what_came_of_it(seen: Api, point: BackupJobRun, database: Database) -> None:
    made = seen("POST", at(point), json=FILES).json
    database.run(lambda s: transition(s, Restore, made["id"], RestoreState.RUNNING))
    database.run(lambda s: restores.record_made(s, made["id"], 0, {"file": "/srv/web-vda.qcow2"}))
    wrong = {"code": "target_failed", "message": "no room", "fields": {"secret": 1}}
    database.run(lambda s: transition(s, Restore, made["id"], RestoreState.ERROR, error=wrong))
    shown = seen("GET", f"/v1/p1/restores/{made['id']}").json
    assert (shown["state"], shown["made"]) == ("error", [{"file": "/srv/web-vda.qcow2"}])
    assert shown["error"] == {"code": "target_failed", "message": "no room"}
