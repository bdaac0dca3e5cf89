"""Restores into another project of the same user: made there by a trust of their own; whose tokens open nothing."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from keystoneauth1 import session
from keystoneauth1.identity import v3

from raksha.client import Client
from raksha.client.errors import NotLoggedIn
from tests.openstack.cloud.layout import KEYSTONE_URL, PASSWORD
from tests.openstack.cloud.rest import Cloud, Refused
from tests.openstack.guest import Guest
from tests.openstack.restores import ENDED, left, remove
from tests.openstack.service import Service, canary
from tests.openstack.test_restore import read_token, with_quotas, write_token

pytestmark = pytest.mark.timeout(1500)

HEADER = "X-Raksha-Target-Token"


@pytest.fixture(scope="module")
def other(admin: Cloud, demo: Cloud) -> Iterator[Cloud]:
    """The tenant's user in a second project, a member of it."""
    keystone, name = admin.keystone, f"other-{secrets.token_hex(3)}"
    roles = {role["name"]: role["id"] for role in keystone.get("/roles")["roles"]}
    project = keystone.post("/projects", {"project": {"name": name, "domain_id": "default"}})["project"]["id"]
    granted = [(demo.login.get_user_id(), "member"), (demo.login.get_user_id(), "reader")]
    for whom, role in [*granted, (admin.login.get_user_id(), "admin")]:
        keystone.put(f"/projects/{project}/users/{whom}/roles/{roles[role]}")
    yield Cloud(demo.name, name)
    keystone.delete(f"/projects/{project}")


@pytest.fixture(scope="module")
def colleague(admin: Cloud, demo: Cloud) -> Iterator[Cloud]:
    """Another member of the first project, and of no other."""
    name = f"colleague-{secrets.token_hex(4)}"
    body = {"user": {"name": name, "password": PASSWORD, "domain_id": "default"}}
    user = admin.keystone.post("/users", body)["user"]["id"]
    role = admin.keystone.get("/roles?name=member")["roles"][0]["id"]
    admin.keystone.put(f"/projects/{demo.project}/users/{user}/roles/{role}")
    yield Cloud(name, demo.name)
    admin.keystone.delete(f"/users/{user}")


@pytest.fixture(scope="module")
def secret() -> str:
    """What the disk of the server holds."""
    return secrets.token_hex(8)


@pytest.fixture(scope="module")
def run(raksha: Service, demo: Cloud, admin: Cloud, secret: str) -> Iterator[Any]:
    """A restore point of a server that is gone since."""
    made = demo.server("source")
    try:
        guest = Guest(admin, made)
        guest.wait_until_ready()
        write_token(guest, "vda", secret)
        guest.close()
        raksha.sees(demo, made)
        job = raksha.of(demo).post("/backupjobs", {"name": "elsewhere", "vms": [{"id": made}]})
        found = raksha.run(demo, job["id"])
        assert found["state"] == "available", (found, raksha.logs()[-4000:])
    finally:
        demo.delete_server(made)
    yield found


def trusts(cloud: Cloud) -> list[Any]:
    """That its user has made for this project."""
    found = cloud.keystone.get(f"/OS-TRUST/trusts?trustor_user_id={cloud.login.get_user_id()}")["trusts"]
    return [trust for trust in found if trust["project_id"] == cloud.project]


def asked(raksha: Service, demo: Cloud, run: Any, body: dict[str, Any], token: str) -> Any:
    path = f"/backupjobs/{run['backupjob_id']}/backupjobruns/{run['id']}"
    raksha.canary.tokens.add(token)
    return raksha.of(demo).ask("POST", path, body, headers={HEADER: token})


def into(other: Cloud, kind: str, **more: Any) -> dict[str, Any]:
    return {"target": {"kind": kind, "project": other.project}, **more}


def until(raksha: Service, demo: Cloud, id: str, *, told: str | None = None) -> Any:
    """A restore that has ended, or as soon as it has told of something of this kind."""

    def look() -> Any:
        found = raksha.of(demo).get(f"/restores/{id}")
        if told is None:
            return found if found["state"] in ENDED else None
        assert found["state"] not in ENDED, found
        return found if any(each["kind"] == told for each in found["made"]) else None

    return raksha.wait(look, 600)


def trust_is_gone(raksha: Service, other: Cloud) -> None:
    raksha.wait(lambda: not trusts(other), 60)


def test_a_server_and_a_volume_come_back_in_the_other_project(
    raksha: Service, run: Any, demo: Cloud, other: Cloud, colleague: Cloud, admin: Cloud, secret: str
) -> None:
    here, there = left(demo), left(other)
    # quotas are those of the project that it goes into
    with_quotas(admin, demo, cores=0, gigabytes=0)
    with_quotas(admin, other, cores=0)
    plan = asked(raksha, demo, run, into(other, "server", dry_run=True), other.token)
    assert [each["code"] for each in plan["problems"]] == ["quota_reached"], plan
    with_quotas(admin, other, cores=-1)
    plan = asked(raksha, demo, run, into(other, "server", dry_run=True), other.token)
    assert plan["problems"] == [] and trusts(other) == [], plan
    try:
        begun = asked(raksha, demo, run, into(other, "server"), other.token)
        (trust,) = trusts(other)
        whole = other.keystone.get(f"/OS-TRUST/trusts/{trust['id']}")["trust"]
        assert [role["name"] for role in whole["roles"]] == ["member"]
        assert whole["impersonation"] and whole["redelegation_count"] == 0
        restore = until(raksha, demo, begun["id"])
        assert restore["state"] == "done", (restore, raksha.logs()[-6000:])
        (made,) = restore["result"]["vms"]
        assert other.wait_for_server(made["vm"], "ACTIVE")["tenant_id"] == other.project
        trust_is_gone(raksha, other)
        guest = Guest(admin, made["vm"])
        guest.wait_until_ready()
        assert read_token(guest, "vda", 16) == secret
        guest.close()

        begun = asked(raksha, demo, run, into(other, "volume"), other.token)
        volume = until(raksha, demo, begun["id"])
        assert volume["state"] == "done", (volume, raksha.logs()[-6000:])
        (disk,) = volume["result"]["vms"][0]["disks"]
        shown = other.cinder.get(f"/volumes/{disk['volume']}")["volume"]
        assert (shown["status"], shown["os-vol-tenant-attr:tenant_id"]) == ("available", other.project)
        trust_is_gone(raksha, other)

        # it is the first project's restore; what is in the other one, its other members need not know
        assert (restore["project_id"], restore["target"]["project"]) == (demo.project, other.project)
        for seen in (
            raksha.of(colleague).get(f"/restores/{restore['id']}"),
            next(each for each in raksha.of(colleague).get("/restores")["restores"] if each["id"] == restore["id"]),
        ):
            assert (seen["state"], seen["target"]["project"]) == ("done", other.project)
            assert (seen["made"], seen["result"]) == ([], None) and made["vm"] not in str(seen)
        with pytest.raises(Refused) as answer:
            raksha.of(other).get(f"/restores/{restore['id']}")
        assert answer.value.status == 404
        assert left(demo) == here
        canary(raksha, demo, other, colleague)
    finally:
        with_quotas(admin, demo, cores=-1, gigabytes=-1)
        remove(other, there)
    assert left(other) == there


def test_what_opens_nothing_is_refused(
    raksha: Service, run: Any, demo: Cloud, other: Cloud, alt: Cloud, colleague: Cloud, admin: Cloud
) -> None:
    user = demo.login.get_user_id()
    revoked = Cloud(demo.name, other.name)
    gone = revoked.token
    other.keystone.ask("DELETE", "/auth/tokens", headers={"X-Subject-Token": gone})
    unscoped = v3.Password(KEYSTONE_URL, user_id=user, password=PASSWORD, unscoped=True)
    body = {"application_credential": {"name": f"robot-{secrets.token_hex(4)}"}}
    robot = other.keystone.post(f"/users/{user}/application_credentials", body)["application_credential"]
    credential = v3.ApplicationCredential(
        KEYSTONE_URL, application_credential_id=robot["id"], application_credential_secret=robot["secret"]
    )
    system = v3.Password(
        KEYSTONE_URL, username="admin", password=PASSWORD, user_domain_id="default", system_scope="all"
    )
    wrong = {
        "of another user": alt.token,
        "of a colleague": colleague.token,
        "of an operator there": Cloud("admin", other.name).token,
        "of the project itself": demo.token,
        "of no project": str(session.Session(unscoped).get_token()),
        "of the system": str(session.Session(system).get_token()),
        "of an application credential": str(session.Session(credential).get_token()),
        "revoked": gone,
        "made up": "gAAAAABmade-up",
    }
    before = raksha.of(demo).get("/restores")
    key = {"Idempotency-Key": secrets.token_hex(16)}
    path = f"/backupjobs/{run['backupjob_id']}/backupjobruns/{run['id']}"
    for name, token in wrong.items():
        raksha.canary.tokens.add(token)
        for dry in (False, True):
            with pytest.raises(Refused) as answer:
                raksha.of(demo).ask("POST", path, into(other, "volume", dry_run=dry), headers={HEADER: token, **key})
            assert answer.value.status == 403 and "target_token_refused" in str(answer.value), name
    # a colleague with the owner's token for the other project has still none of his own
    with pytest.raises(Refused) as answer:
        asked(raksha, colleague, run, into(other, "volume"), other.token)
    assert answer.value.status == 403
    assert raksha.of(demo).get("/restores") == before
    assert trusts(other) == [] and trusts(alt) == []
    canary(raksha, demo, other, alt, colleague)


@pytest.mark.parametrize(("kind", "what"), [("server", "image"), ("volume", "volume")])
def test_what_was_cancelled_leaves_nothing_there(
    raksha: Service, run: Any, demo: Cloud, other: Cloud, kind: str, what: str
) -> None:
    there = left(other)
    begun = asked(raksha, demo, run, into(other, kind), other.token)
    until(raksha, demo, begun["id"], told=what)
    raksha.of(demo).post(f"/restores/{begun['id']}/cancel")
    over = until(raksha, demo, begun["id"])
    assert over["state"] == "cancelled", (over, raksha.logs()[-4000:])
    trust_is_gone(raksha, other)
    assert left(other) == there


def test_an_agent_that_was_killed_does_it_again_and_its_trust_ends(
    raksha: Service, run: Any, demo: Cloud, other: Cloud
) -> None:
    there = left(other)
    try:
        begun = asked(raksha, demo, run, into(other, "volume"), other.token)
        until(raksha, demo, begun["id"], told="volume")
        raksha.commands["agent"].end(signal.SIGKILL)
        assert len(trusts(other)) == 1
        raksha.commands["agent"].start()
        over = until(raksha, demo, begun["id"])
        assert over["state"] == "done", (over, raksha.logs()[-6000:])
        trust_is_gone(raksha, other)
        assert len(left(other)["volumes"] - there["volumes"]) == 1
    finally:
        remove(other, there)


def test_the_library_gets_the_token_by_its_login(
    raksha: Service, run: Any, demo: Cloud, other: Cloud, alt: Cloud
) -> None:
    client = Client(demo.login, endpoint_override=raksha.url)
    target = {"kind": "volume", "project": other.project}
    there = left(other)
    assert client.restores.plan(run["backupjob_id"], run["id"], target).problems == ()
    # where its user has no role, Keystone says no
    with pytest.raises(NotLoggedIn):
        client.restores.plan(run["backupjob_id"], run["id"], {**target, "project": alt.project})
    try:
        begun = client.restores.create(run["backupjob_id"], run["id"], target)
        assert begun.target.project == other.project
        assert until(raksha, demo, begun.id)["state"] == "done"
        trust_is_gone(raksha, other)
    finally:
        remove(other, there)
    canary(raksha, demo, other)


def test_who_lost_the_other_project_gets_nothing_there(
    raksha: Service, run: Any, demo: Cloud, other: Cloud, admin: Cloud
) -> None:
    there = left(other)
    raksha.commands["agent"].end(signal.SIGTERM)
    role = admin.keystone.get("/roles?name=member")["roles"][0]["id"]
    grant = f"/projects/{other.project}/users/{demo.login.get_user_id()}/roles/{role}"
    begun = asked(raksha, demo, run, into(other, "volume"), other.token)
    admin.keystone.delete(grant)
    try:
        raksha.commands["agent"].start()
        over = until(raksha, demo, begun["id"])
        assert (over["state"], over["error"]["code"]) == ("error", "trust_broken"), over
        assert over["made"] == []
    finally:
        admin.keystone.put(grant)
    assert left(Cloud(demo.name, other.name)) == there
