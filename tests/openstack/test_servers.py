"""Whose servers a token shows and lets protect: two tenants and an operator, a real Keystone and Nova."""

from __future__ import annotations

import secrets
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from tests.bed.deployment import AGENT, HOST, Command
from tests.openstack.cloud.layout import LIBVIRT_URI, PASSWORD
from tests.openstack.cloud.rest import Api, Cloud, Refused
from tests.openstack.service import Service, canary

pytestmark = pytest.mark.timeout(900)


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
        assert mine in ids(raksha.of(Cloud(name, demo.name)))
    finally:
        admin.keystone.delete(f"/users/{user}")


def test_a_server_that_is_gone_is_not_waited_for(raksha: Service, alt: Cloud) -> None:
    made = alt.server("short")
    job = raksha.of(alt).post("/backupjobs", {"name": "gone", "vms": [{"id": made}]})["id"]
    alt.delete_server(made)
    run = raksha.run(alt, job)
    assert (run["state"], run["error"]["code"]) == ("error", "server_gone"), run
    runs = raksha.of(alt).get(f"/backupjobs/{job}/backupjobruns")["backupjobruns"]
    assert [each["state"] for each in runs] == ["error"], "to try again would change nothing"


@contextmanager
def another_agent(raksha: Service, host: str) -> Iterator[None]:
    """On the same hypervisor, as one that is not where it says."""
    own = raksha.commands["agent"]
    sections = {
        "agent": {**AGENT, **raksha.bus, "host": host},
        "host": {**HOST, "libvirt_uri": LIBVIRT_URI, "state_dir": raksha.folder / f"state-{host}"},
    }
    agent = Command(host, "raksha.cmd.agent", own.log.parent, sections, {})
    agent.start()
    try:
        yield
    finally:
        agent.end(signal.SIGTERM)


def hosts_that_see(raksha: Service, vm: str) -> set[str]:
    """Whatever anybody makes of it."""
    wanted = "SELECT host FROM services JOIN seen_vms ON service_id = services.id WHERE vm_id = ?"
    with closing(sqlite3.connect(raksha.folder / "raksha.db", timeout=30)) as database:
        return {host for (host,) in database.execute(wanted, [vm])}


def forget(raksha: Service, host: str) -> None:
    """What it saw, as when it never was there."""
    with closing(sqlite3.connect(raksha.folder / "raksha.db", timeout=30)) as database, database:
        mine = "SELECT id FROM services WHERE host = ?"
        database.execute(f"DELETE FROM seen_vms WHERE service_id IN ({mine})", [host])


def test_a_server_on_no_host_is_listed_and_may_be_named(raksha: Service, alt: Cloud, theirs: str) -> None:
    alt.nova.post(f"/servers/{theirs}/action", {"shelve": None})
    alt.wait_for_server(theirs, "SHELVED_OFFLOADED")
    api = raksha.of(alt)

    def unseen() -> Any:
        shown = api.get(f"/vms/{theirs}")
        return shown if shown["seen_at"] is None else None

    shown = raksha.wait(unseen)
    assert (shown["status"], shown["power"]) == ("SHELVED_OFFLOADED", "shut off")
    assert (shown["refusal"], shown["disks"]) == (None, []), "an agent takes it from its image"
    assert theirs in ids(api)
    job = api.post("/backupjobs", {"name": "x", "vms": [{"id": theirs}]})["id"]
    api.delete(f"/backupjobs/{job}")


def test_runs_go_to_the_host_that_nova_says_and_selectors_by_nova_s_tags(
    raksha: Service, demo: Cloud, alt: Cloud, mine: str, theirs: str
) -> None:
    raksha.sees(demo, mine)
    api = raksha.of(demo)
    named = api.post("/backupjobs", {"name": "named", "vms": [{"id": mine}], "retry": {"retries": 0}})["id"]
    chosen = api.post("/backupjobs", {"name": "chosen", "vm_selector": {"tags": ["gold"], "metadata": {"tier": "1"}}})[
        "id"
    ]
    with another_agent(raksha, "elsewhere"):
        raksha.wait(lambda: "elsewhere" in hosts_that_see(raksha, mine))
        for job in (named, chosen):
            run = raksha.run(demo, job)
            assert run["state"] == "available", (run, raksha.logs()[-3000:])
            assert [(vm["vm_id"], vm["host"]) for vm in run["vms"]] == [(mine, "cloud")]
    # a host of which Nova knows nothing, and which has all it needs for it
    raksha.commands["agent"].end(signal.SIGTERM)
    try:
        forget(raksha, "cloud")
        with another_agent(raksha, "elsewhere"):
            raksha.wait(lambda: hosts_that_see(raksha, mine) == {"elsewhere"})
            started = api.post(f"/backupjobs/{named}/incremental")["id"]
            path = f"/backupjobs/{named}/backupjobruns/{started}"
            why = raksha.wait(lambda: api.get(path)["queued_reason"])
            assert why["code"] == "server_elsewhere" and "elsewhere" in why["message"]
            api.post(f"{path}/cancel")
    finally:
        raksha.commands["agent"].start()
    # the tenant of another server cannot have it by tags of his job
    other = raksha.of(alt).post(
        "/backupjobs", {"name": "x", "vm_selector": {"tags": ["gold"]}, "retry": {"retries": 0}}
    )
    begun = raksha.of(alt).post(f"/backupjobs/{other['id']}/incremental")["id"]
    path = f"/backupjobs/{other['id']}/backupjobruns/{begun}"
    assert raksha.wait(lambda: raksha.of(alt).get(path)["queued_reason"])["code"] == "no_vms"
