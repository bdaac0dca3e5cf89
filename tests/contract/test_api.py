"""The REST API on every database: what it writes together holds together, also when several ask at once."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from raksha.api.app import create_app
from raksha.api.http_basic import HttpBasic
from raksha.api.services import Services
from raksha.config_api import ApiSettings
from raksha.db import backups, jobs, points, restores, runs
from raksha.db.models import BackupJob, BackupJobRun, Pin, Restore, VmResourceBackup
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import Protected, StateConflict
from raksha.states import BackupState, RestoreState, RunState
from tests.unit.api import world
from tests.unit.api.conftest import HASHED, USERS, Api, error, write_private
from tests.unit.api.world import DB, WEB

JOBS = "/v1/p1/backupjobs"
FILES = {"target": {"kind": "files"}}


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Api:
    lines = (f"{name}:{HASHED}:{project}:{roles}\n" for name, (project, roles) in USERS.items())
    users = write_private(tmp_path / "users", "".join(lines))
    world.agents(database)
    return Api(create_app(ApiSettings(), Services(database, HttpBasic(users), {})))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each returned, all begun at the same moment."""
    start, results = threading.Barrier(len(calls)), [None] * len(calls)

    def one(index: int) -> None:
        start.wait(30)
        results[index] = calls[index]()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


def count(database: Database, noun: Any) -> int:
    with database.reading() as session:
        return session.execute(select(func.count()).select_from(noun)).scalar_one()


def test_a_job_from_its_creation_to_its_end(api: Api, database: Database) -> None:
    made = world.job(api, name="Nächtlich ☾", schedule={"every": 3600}, metadata={"owner": "Zoë"})
    path = f"{JOBS}/{made['id']}"
    assert api("GET", path).json == made
    run = api("POST", f"{path}/backupjobruns", json={"description": "first"}).json
    base = world.point(database, made["id"], disks=("vda", "vdb"))
    point = world.point(database, made["id"], parent=base, disks=("vda", "vdb"))
    shown = api("GET", f"{path}/backupjobruns/{point.id}").json
    assert [disk["resource"] for disk in shown["vms"][0]["resources"]] == ["vda", "vdb"]
    assert (shown["frozen_seconds"], shown["skew_seconds"]) == (0.25, 0.004)
    first = api("GET", f"{path}/backupjobruns?limit=2&sort=created_at:asc").json
    rest = api("GET", first["backupjobruns_links"][0]["href"].removeprefix("http://localhost")).json
    assert [each["id"] for each in (*first["backupjobruns"], *rest["backupjobruns"])] == [run["id"], base.id, point.id]
    assert api("POST", f"{path}/backupjobruns/{run['id']}/cancel").status_code == 202
    restore = api("POST", f"{path}/backupjobruns/{point.id}", json=FILES).json
    assert api("GET", "/v1/p1/usage").json["usage"] == {
        "jobs": 1, "runs": 2, "runs_under_way": 1, "restores_under_way": 1, "stored_bytes": 4000
    }  # fmt: skip
    with database.reading() as session:
        assert len(backups.pinned_by(session, restore["id"])) == 4
    error(api("DELETE", path), 409, "has_restore_points")
    assert api("DELETE", f"{path}?with_runs=true").status_code == 202
    states = {each["id"]: each["state"] for each in api("GET", f"{path}/backupjobruns").json["backupjobruns"]}
    assert states == {run["id"]: "queued", base.id: "deleting", point.id: "deleting"}
    # what the restore reads cannot go before it is over
    with database.reading() as session:
        assert {copy.pin_count for copy in session.scalars(select(VmResourceBackup))} == {1}


def test_vms_that_two_hosts_see_are_there_once(api: Api) -> None:
    found = api("GET", "/v1/p1/vms?sort=name").json["vms"]
    assert [(vm["id"], vm["power"]) for vm in found] == [(DB, "shut off"), (WEB, "running")]
    page = api("GET", f"/v1/p1/vms?sort=name&limit=1&marker={DB}").json
    assert [vm["id"] for vm in page["vms"]] == [WEB]


def test_of_two_changes_at_once_one_is_told(api: Api) -> None:
    path = f"{JOBS}/{world.job(api)['id']}"
    for number in range(5):
        tag = api("GET", path).headers["ETag"]

        def put(name: str, tag: str = tag) -> Any:
            return Api(api.app)("PUT", path, json={"name": name}, headers={"If-Match": tag})

        names = [f"{number}-{n}" for n in range(4)]
        answers = at_once(*(lambda name=name: put(name) for name in names))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200, 412, 412, 412]
        (winner,) = [answer.json["name"] for answer in answers if answer.status_code == 200]
        assert api("GET", path).json["name"] == winner


def test_a_key_that_comes_twice_at_once_is_done_once(api: Api, database: Database) -> None:
    path = f"{JOBS}/{world.job(api)['id']}/full"
    for number in range(1, 6):
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        answers = at_once(*(lambda h=headers: Api(api.app)("POST", path, headers=h) for _ in range(4)))
        assert {answer.status_code for answer in answers} <= {202, 409}
        ids = {answer.json["id"] for answer in answers if answer.status_code == 202}
        assert len(ids) == 1
        assert count(database, BackupJobRun) == number


def test_of_a_deletion_and_a_restore_at_once_none_reads_what_is_gone(api: Api, database: Database) -> None:
    """Whichever is first: what a restore was promised stays until it is over."""
    path = f"{JOBS}/{world.job(api)['id']}"
    for _ in range(5):
        point = world.point(database, path.rpartition("/")[2])
        at = f"{path}/backupjobruns/{point.id}"
        deleted, restored = at_once(
            lambda at=at: Api(api.app)("DELETE", at), lambda at=at: Api(api.app)("POST", at, json=FILES)
        )
        assert deleted.status_code == 202
        assert restored.status_code in (202, 409)
        with database.reading() as session:
            mine = VmResourceBackup.backupjobrun_id == point.id
            (copy,) = session.scalars(select(VmResourceBackup).where(mine))
            assert copy.pin_count == (restored.status_code == 202)


def test_what_is_refused_leaves_nothing(api: Api, database: Database) -> None:
    made = world.job(api)
    base = world.point(database, made["id"])
    point = world.point(database, made["id"], parent=base)

    def trash(session: Any) -> None:
        mine = VmResourceBackup.backupjobrun_id == base.id
        transition(session, VmResourceBackup, session.scalars(select(VmResourceBackup.id).where(mine)).one(),
                   BackupState.TRASHED)  # fmt: skip

    database.run(trash)
    at = f"{JOBS}/{made['id']}/backupjobruns/{point.id}"
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    error(api("POST", at, json=FILES, headers=headers), 409, "state_conflict")
    assert (count(database, Restore), count(database, Pin)) == (0, 0)


# -- what the API asks of the database, and schedulers as well ----------------------------------------


def test_the_end_of_a_run_can_be_asked_for_once(api: Api, database: Database) -> None:
    made = world.job(api)["id"]
    run = world.run(database, made, RunState.RUNNING)
    database.run(lambda s: runs.request_cancel(s, run.id))
    with database.reading() as session:
        first = runs.get(session, None, run.id).cancel_requested_at
    database.run(lambda s: runs.request_cancel(s, run.id))
    with database.reading() as session:
        assert runs.get(session, None, run.id).cancel_requested_at == first is not None
    over = world.run(database, made, RunState.ERROR)
    with pytest.raises(StateConflict):
        database.run(lambda s: runs.request_cancel(s, over.id))


def test_the_end_of_a_restore_can_be_asked_for_once(api: Api, database: Database) -> None:
    point = world.point(database, world.job(api)["id"])
    made = database.run(lambda s: restores.create(s, runs.get(s, None, point.id), target={})).id
    database.run(lambda s: restores.request_cancel(s, made))
    with database.reading() as session:
        assert restores.get(session, None, made).cancel_requested_at is not None
        assert restores.under_way(session, "p1") == 1
    database.run(lambda s: transition(s, Restore, made, RestoreState.CANCELLED))
    with pytest.raises(StateConflict):
        database.run(lambda s: restores.request_cancel(s, made))
    with database.reading() as session:
        assert restores.under_way(session, "p1") == 0


def test_protected_runs_go_with_their_job_alone(api: Api, database: Database) -> None:
    made = world.job(api)["id"]
    kept = world.point(database, made, protected=True)
    going = world.run(database, made, RunState.RUNNING)
    with pytest.raises(Protected):
        database.run(lambda s: runs.begin_deleting(s, kept.id))
    database.run(lambda s: jobs.begin_deleting(s, made))
    with database.reading() as session:
        assert [job.id for job in jobs.deleting(session, 10)] == [made]
        assert runs.get(session, None, kept.id).state == RunState.DELETING
        assert runs.get(session, None, going.id).cancel_requested_at is not None
    # one that could not be stopped any more became a restore point meanwhile
    for state in (RunState.COMMITTING, RunState.AVAILABLE):
        database.run(lambda s, state=state: transition(s, BackupJobRun, going.id, state))
    assert database.run(lambda s: runs.delete_ended(s, made)) == 1
    assert count(database, BackupJob) == 1


def test_points_of_a_job_in_the_order_in_which_they_were_taken(api: Api, database: Database) -> None:
    made = world.job(api)["id"]
    late = world.point(database, made, taken_at=200)
    early = world.point(database, made, taken_at=100, state=RunState.DEGRADED)
    world.run(database, made, RunState.RUNNING)
    with database.reading() as session:
        found = [(point.id, point.taken_at, point.protected, point.restorable)
                 for point in points.of_job(session, made)]  # fmt: skip
    assert found == [(early.id, 100, True, False), (late.id, 200, False, True)]
