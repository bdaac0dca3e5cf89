"""Whose servers a token shows and lets protect: two tenants and an operator, a real Keystone and Nova."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.openstack.cloud.layout import PASSWORD
from tests.openstack.cloud.rest import Api, Cloud, Refused
from tests.openstack.service import Service, canary

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def raksha(tmp_path_factory: pytest.TempPathFactory, admin: Cloud) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("raksha")
    folder.chmod(0o755)
    with Service(folder, admin) as made:
        yield made


@pytest.fixture(scope="module")
def mine(demo: Cloud) -> Iterator[str]:
    """A server of the tenant `demo` with a volume. Nobody waits until it has booted."""
    volume = demo.volume("data", "ceph")
    try:
        made = demo.server("mine", tags=["gold"], metadata={"tier": "1"})
        try:
            demo.attach(made, volume)
            yield made
        finally:
            demo.delete_server(made)
        demo.wait_for_volume(volume, "available")
    finally:
        demo.delete_volume(volume)


@pytest.fixture(scope="module")
def theirs(alt: Cloud) -> Iterator[str]:
    """One of the tenant `alt`."""
    made = alt.server("theirs")
    try:
        yield made
    finally:
        alt.delete_server(made)


def ids(api: Api) -> set[str]:
    return {vm["id"] for vm in api.get("/vms?limit=1000")["vms"]}


def told(api: Api, verb: str, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
    """How it was refused."""
    with pytest.raises(Refused) as refused:
        api.ask(verb, path, body, **more)
    return refused.value.status, str(refused.value)


def test_vms_are_what_the_token_shows(raksha: Service, demo: Cloud, alt: Cloud, mine: str, theirs: str) -> None:
    found = raksha.sees(demo, mine)
    assert (found["name"], found["status"], found["power"]) == ("mine", "ACTIVE", "running")
    assert (found["tags"], found["metadata"], found["refusal"]) == (["gold"], {"tier": "1"}, None)
    assert "vda" in [disk["target"] for disk in found["disks"]]
    attached = demo.nova.get(f"/servers/{mine}/os-volume_attachments")["volumeAttachments"]
    assert found["volumes"] == [each["volumeId"] for each in attached] != []
    raksha.sees(alt, theirs)
    for cloud in (demo, alt):
        shown = {server["id"] for server in cloud.nova.get("/servers")["servers"]}
        assert shown and ids(raksha.of(cloud)) == shown
    assert told(raksha.of(alt), "GET", f"/vms/{mine}")[0] == 404
    assert told(raksha.of(demo), "GET", f"/vms/{theirs}")[0] == 404
    first = raksha.of(demo).get("/vms?name=mine&limit=1")
    assert [vm["id"] for vm in first["vms"]] == [mine] and "vms_links" not in first
    canary(raksha, demo, alt)


def test_a_job_names_no_server_of_another_tenant(raksha: Service, demo: Cloud, mine: str, theirs: str) -> None:
    api = raksha.of(demo)
    # agents see it: it is not that nobody knows of it
    body = {"name": "x", "vms": [{"id": mine}, {"id": theirs}]}
    status, said = told(api, "POST", "/backupjobs", body)
    assert status == 400 and f"vms.1.id: There is no VM {theirs}." in said
    job = api.post("/backupjobs", {"name": "x", "vms": [{"id": mine}]})["id"]
    status, said = told(api, "PUT", f"/backupjobs/{job}", {"vms": body["vms"]}, headers={"If-Match": "*"})
    assert status == 400 and f"vms.1.id: There is no VM {theirs}." in said
    assert api.get(f"/vms/{mine}")["backupjobs"] == [job]
    api.delete(f"/backupjobs/{job}")


def test_an_operator_sees_no_tenant_s_server_in_his_own_project(
    raksha: Service, admin: Cloud, demo: Cloud, mine: str, theirs: str
) -> None:
    """Nova shows an admin's token the servers of all."""
    assert admin.nova.get(f"/servers/{mine}")["server"]["tenant_id"] == demo.project
    own = raksha.of(admin)
    assert not {mine, theirs} & ids(own)
    assert told(own, "GET", f"/vms/{mine}")[0] == 404
    status, said = told(own, "POST", "/backupjobs", {"name": "x", "vms": [{"id": mine}]})
    assert status == 400 and f"vms.0.id: There is no VM {mine}." in said
    # at the tenant's address he sees that tenant's, and nobody else's
    above = Api(admin.login, f"{raksha.url}/v1/{demo.project}")
    assert mine in ids(above) and theirs not in ids(above)
    assert above.get(f"/vms/{mine}")["status"] == "ACTIVE"
    assert told(above, "GET", f"/vms/{theirs}")[0] == 404


def test_a_reader_lists_servers(raksha: Service, admin: Cloud, demo: Cloud, mine: str) -> None:
    name = f"onlooker-{secrets.token_hex(4)}"
    body = {"user": {"name": name, "password": PASSWORD, "domain_id": "default"}}
    user = admin.keystone.post("/users", body)["user"]["id"]
    try:
        role = admin.keystone.get("/roles?name=reader")["roles"][0]["id"]
        admin.keystone.put(f"/projects/{demo.project}/users/{user}/roles/{role}")
        assert mine in ids(raksha.of(Cloud(name, "demo")))
    finally:
        admin.keystone.delete(f"/users/{user}")


def test_a_server_on_no_host_is_listed_and_may_be_named(raksha: Service, alt: Cloud, theirs: str) -> None:
    alt.nova.post(f"/servers/{theirs}/action", {"shelve": None})
    alt.wait_for_server(theirs, "SHELVED_OFFLOADED")
    api = raksha.of(alt)

    def unseen() -> Any:
        shown = api.get(f"/vms/{theirs}")
        return shown if shown["seen_at"] is None else None

    shown = raksha.wait(unseen)
    assert (shown["status"], shown["power"]) == ("SHELVED_OFFLOADED", "shut off")
    assert (shown["refusal"]["code"], shown["disks"]) == ("vm_not_seen", [])
    assert theirs in ids(api)
    job = api.post("/backupjobs", {"name": "x", "vms": [{"id": theirs}]})["id"]
    api.delete(f"/backupjobs/{job}")
