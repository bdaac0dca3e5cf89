"""Jobs that name volumes, and servers whose disks come from storage: whose they are, what is used, what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import update

from raksha.db.models import BackupJobRunVm
from raksha.db.session import Database
from raksha.openstack.compute import Servers
from raksha.states import Source
from tests.bed.cinder import Cinder
from tests.contract.identity import serving
from tests.unit.api import nova as played
from tests.unit.api import world
from tests.unit.api.conftest import Api, error
from tests.unit.api.nova import Nova, WithTokens, catalog
from tests.unit.api.world import NOBODY, WEB

JOBS = "/v1/p1/backupjobs"
ANY = {"If-Match": "*"}
FREE, USED, THEIRS = (f"00000000-0000-4000-8000-0000000000c{n}" for n in (1, 2, 3))
STOPPED, RUNNING, FOREIGN = (f"00000000-0000-4000-8000-00000000001{n}" for n in (1, 2, 3))


@pytest.fixture
def cinder() -> Cinder:
    made = Cinder()
    made.volume(FREE)
    made.volume(USED, status="in-use")
    made.volume(THEIRS, project="p2")
    return made


@pytest.fixture
def who(users_file: Any, cinder: Cinder) -> Iterator[WithTokens]:
    nova = Nova(
        played.server(STOPPED, "stopped", "p1", **{"OS-EXT-STS:power_state": 4}),
        played.server(RUNNING, "shop", "p1"),
        played.server(FOREIGN, "theirs", "p2"),
    )
    # an admin of the cloud sees all
    cinder.tokens = nova.tokens
    with serving(nova.answer) as (compute, _), serving(cinder.answer) as (storage, _):
        (block_storage,) = catalog(storage, service="block-storage")
        block_storage["endpoints"][0]["url"] = f"{storage}/v3"
        yield WithTokens(users_file, nova, [*catalog(compute), block_storage])


@pytest.fixture
def api(make_api: Callable[..., Api], database: Database, who: WithTokens) -> Api:
    world.agents(database)
    return make_api(authenticator=who, servers=Servers(region="north", patience=2))


def made(api: Api, **body: Any) -> dict[str, Any]:
    answer = api("POST", JOBS, json={"name": "nightly", **body})
    assert answer.status_code == 201, answer.get_data(as_text=True)
    found: dict[str, Any] = answer.json
    return found


def refused(api: Api, where: str, says: str, user: str = "member", **body: Any) -> None:
    detail = error(api("POST", JOBS, user, json={"name": "nightly", **body}), 400, "request_invalid")
    assert where in detail and says in detail, detail


def changed(api: Api, job: dict[str, Any], **body: Any) -> dict[str, Any]:
    answer = api("PUT", f"{JOBS}/{job['id']}", json=body, headers=ANY)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    found: dict[str, Any] = answer.json
    return found


def test_a_job_names_volumes_beside_vms(api: Api) -> None:
    job = made(api, vms=[{"id": STOPPED, "source": "storage"}], volumes=[{"id": FREE}, {"id": USED, "force": True}])
    assert job["vms"] == [{"id": STOPPED, "excluded_disks": [], "source": "storage", "force": False}]
    assert job["volumes"] == [{"id": FREE, "force": False}, {"id": USED, "force": True}]
    assert api("GET", f"{JOBS}/{job['id']}").json == job
    assert [each["id"] for each in api("GET", f"{JOBS}?vm_id={USED}").json["backupjobs"]] == [job["id"]]


def test_volumes_alone_are_enough_and_no_nothing(api: Api) -> None:
    assert made(api, volumes=[{"id": FREE}])["vms"] == []
    refused(api, "vms", "volumes or a selector")


@pytest.mark.parametrize("user", ["member", "admin"])
def test_a_volume_of_another_project_is_not_there(api: Api, user: str) -> None:
    for id in (THEIRS, NOBODY):
        refused(api, "volumes.1.id", f"There is no volume {id}.", user, volumes=[{"id": FREE}, {"id": id}])


@pytest.mark.parametrize("user", ["member", "admin"])
def test_a_server_of_another_project_is_not_there(api: Api, user: str) -> None:
    for id in (FOREIGN, NOBODY, WEB):
        refused(api, "vms.0.id", f"There is no server {id}.", user, vms=[{"id": id, "source": "storage"}])


def test_what_is_in_use_needs_force(api: Api) -> None:
    refused(api, "volumes.0.id", "is in-use. Say `force`", volumes=[{"id": USED}])
    refused(api, "vms.0.id", "Server shop is running. Say `force`", vms=[{"id": RUNNING, "source": "storage"}])
    job = made(api, volumes=[{"id": USED, "force": True}], vms=[{"id": RUNNING, "source": "storage", "force": True}])
    answer = api("PUT", f"{JOBS}/{job['id']}", json={"volumes": [{"id": USED}]}, headers=ANY)
    assert "Say `force`" in error(answer, 400, "request_invalid")


def test_a_put_changes_what_it_names_and_asks_about_nothing_else(api: Api, cinder: Cinder) -> None:
    vm = {"id": STOPPED, "excluded_disks": ["vdb"], "source": "storage", "force": False}
    job = made(api, vms=[vm], volumes=[{"id": FREE}])
    # it is gone since, and Cinder too
    cinder.fault = 503
    assert changed(api, job, vms=[])["volumes"] == [{"id": FREE, "force": False}]
    assert changed(api, job, volumes=[{"id": FREE}], name="x")["vms"] == []
    answer = api("PUT", f"{JOBS}/{job['id']}", json={"volumes": [{"id": FREE, "force": True}]}, headers=ANY)
    error(answer, 503, "cloud_unavailable")
    cinder.fault = 0
    assert changed(api, job, vms=[vm], volumes=[])["vms"] == [vm]
    answer = api("PUT", f"{JOBS}/{job['id']}", json={"vms": []}, headers=ANY)
    assert "volumes or a selector" in error(answer, 400, "request_invalid")


def test_a_vm_may_change_between_hypervisor_and_storage(api: Api) -> None:
    job = made(api, vms=[{"id": STOPPED}])
    assert changed(api, job, vms=[{"id": STOPPED, "source": "storage"}])["vms"][0]["source"] == "storage"
    assert changed(api, job, vms=[{"id": STOPPED}])["vms"][0]["source"] == "hypervisor"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"volumes": [{"id": FREE}, {"id": FREE}]}, "volumes"),
        ({"vms": [{"id": STOPPED}], "volumes": [{"id": STOPPED}]}, "volumes"),
        ({"vms": [{"id": STOPPED, "source": "volume"}]}, "vms.0.source"),
        ({"vms": [{"id": STOPPED, "force": True}]}, "vms.0.force"),
        ({"volumes": [{"id": FREE, "excluded_disks": []}]}, "volumes.0.excluded_disks"),
        ({"volumes": [{"id": "../x"}]}, "volumes.0.id"),
        ({"volumes": [{"id": FREE, "force": 1}]}, "volumes.0.force"),
    ],
)
def test_what_makes_no_sense_is_refused(api: Api, body: dict[str, Any], where: str) -> None:
    refused(api, where, "", **body)


def test_a_cinder_that_does_not_say_whose_a_volume_is_is_not_believed(api: Api, cinder: Cinder) -> None:
    del cinder.there["volumes"][FREE]["os-vol-tenant-attr:tenant_id"]
    error(api("POST", JOBS, json={"name": "nightly", "volumes": [{"id": FREE}]}), 403, "cloud_refused")


def test_many_volumes_are_found_in_the_list(api: Api, cinder: Cinder) -> None:
    ids = [f"00000000-0000-4000-8000-{n:012}" for n in range(20)]
    for id in ids:
        cinder.volume(id)
    assert len(made(api, volumes=[{"id": id} for id in ids])["volumes"]) == len(ids)
    del cinder.there["volumes"][ids[7]]
    refused(api, "volumes.7.id", "There is no volume", volumes=[{"id": id} for id in ids])
    cinder.volume(ids[7], project="p2")
    refused(api, "volumes.7.id", "There is no volume", "admin", volumes=[{"id": id} for id in ids])


def test_without_a_cloud_there_are_no_volumes(make_api: Callable[..., Api], database: Database) -> None:
    world.agents(database)
    api = make_api()
    refused(api, "volumes.0.id", "no cloud", volumes=[{"id": FREE}])
    refused(api, "vms.0.id", "no cloud", vms=[{"id": WEB, "source": "storage"}])
    assert made(api, vms=[{"id": WEB}])["volumes"] == []


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        (Source.VOLUME, "server", "is a volume"),
        (Source.VOLUME, "domain", "is a volume"),
        (Source.VOLUME, "in_place", "is a volume"),
        (Source.STORAGE, "domain", "without its definition"),
        (Source.STORAGE, "server", "without its boot disk"),
        (Source.STORAGE, "files", None),
        (Source.VOLUME, "files", None),
    ],
)
def test_what_was_taken_from_storage_comes_back_as_disks(
    api: Api, database: Database, source: Source, kind: str, says: str | None
) -> None:
    job = world.job(api, vms=[{"id": STOPPED}])
    point = world.point(database, job["id"])
    flavor = {"name": "small", "vcpus": 1, "ram": 64, "disk": 1}
    known = {"id": STOPPED, "name": "x", "status": "SHUTOFF", "image_id": "an image", "flavor": flavor,
             "volumes": [{"id": FREE, "size": 1, "device": "/dev/vda"}]}  # fmt: skip
    server = known if source == Source.STORAGE else None
    as_if = update(BackupJobRunVm).where(BackupJobRunVm.backupjobrun_id == point.id)
    database.run(lambda s: s.execute(as_if.values(source=source, server=server)) and None)
    path = f"{JOBS}/{job['id']}/backupjobruns/{point.id}"
    assert api("GET", path).json["vms"][0]["source"] == source
    answer = api("POST", path, json={"target": {"kind": kind}, "dry_run": True})
    if says is None:
        assert answer.status_code == 200, answer.get_data(as_text=True)
    else:
        detail = error(answer, 400, "request_invalid")
        assert "target.kind" in detail and says in detail
