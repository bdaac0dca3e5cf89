"""Jobs act for tenants who are not logged in: a real Keystone, a server of Nova, the tenant's own Swift account."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from keystoneauth1 import session
from keystoneauth1.identity import v3

from tests.openstack.cloud.layout import KEYSTONE_URL, PASSWORD
from tests.openstack.cloud.rest import Api, Cloud, Refused
from tests.openstack.guest import Guest
from tests.openstack.service import Service, canary, gone

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def colleague(admin: Cloud, demo: Cloud) -> Iterator[Cloud]:
    """Another member of the tenant's project; gone at the end, if a test has not seen to that."""
    name = f"colleague-{secrets.token_hex(4)}"
    body = {"user": {"name": name, "password": PASSWORD, "domain_id": "default"}}
    user = admin.keystone.post("/users", body)["user"]["id"]
    role = admin.keystone.get("/roles?name=member")["roles"][0]["id"]
    admin.keystone.put(f"/projects/{demo.project}/users/{user}/roles/{role}")
    yield Cloud(name, demo.name)
    try:
        admin.keystone.delete(f"/users/{user}")
    except Refused as error:
        assert error.status == 404


def trusts_of(cloud: Cloud) -> list[Any]:
    return list(cloud.keystone.get(f"/OS-TRUST/trusts?trustor_user_id={cloud.login.get_user_id()}")["trusts"])


def points(raksha: Service, cloud: Cloud) -> list[str]:
    """Restore points in the tenant's own account."""
    found = cloud.swift.ask("GET", f"/{raksha.prefix}_backupjobs?format=json")
    return [each["name"] for each in found if each["name"].endswith("/run.json")]


def test_a_server_is_backed_up_by_trust_and_the_trust_ends_with_the_job(
    raksha: Service, server: Guest, demo: Cloud, colleague: Cloud, admin: Cloud
) -> None:
    vm = server.server
    raksha.sees(demo, vm)
    others = trusts_of(demo)
    before = len(trusts_of(colleague))
    job = raksha.of(colleague).post("/backupjobs", {"name": "nightly", "vms": [{"id": vm}]})
    assert len(trusts_of(colleague)) == before + 1
    assert "trust" not in str(job).replace("trustee", "")
    first = raksha.run(colleague, job["id"])
    assert first["state"] == "available", (first, raksha.logs()[-4000:])
    # in the tenant's own account
    assert len(points(raksha, demo)) == 1
    second = raksha.run(demo, job["id"])
    assert second["state"] == "available", second

    # the owner leaves: the job is suspended, its restore points stay
    admin.keystone.delete(f"/users/{colleague.login.get_user_id()}")
    third = raksha.run(demo, job["id"])
    assert (third["state"], third["error"]["code"]) == ("error", "trust_broken"), third
    shown = raksha.of(demo).get(f"/backupjobs/{job['id']}")
    assert (shown["state"], shown["state_reason"]["code"]) == ("suspended", "trust_broken")
    assert raksha.of(demo).get(f"/backupjobs/{job['id']}/backupjobruns/{first['id']}")["state"] == "available"

    # anybody of the project takes it over
    taken = raksha.of(demo).post(f"/backupjobs/{job['id']}/take-over")
    assert (taken["state"], taken["user_id"]) == ("active", demo.login.get_user_id())
    fourth = raksha.run(demo, job["id"])
    assert fourth["state"] == "available", fourth

    raksha.of(demo).delete(f"/backupjobs/{job['id']}?with_runs=true")
    raksha.wait(lambda: gone(raksha.of(demo), f"/backupjobs/{job['id']}"))
    assert trusts_of(demo) == others
    assert points(raksha, demo) == []
    canary(raksha, demo)


def test_an_application_credential_cannot_delegate(raksha: Service, demo: Cloud) -> None:
    user = demo.login.get_user_id()
    body = {"application_credential": {"name": f"robot-{secrets.token_hex(4)}"}}
    made = demo.keystone.post(f"/users/{user}/application_credentials", body)["application_credential"]
    login = session.Session(
        v3.ApplicationCredential(
            KEYSTONE_URL, application_credential_id=made["id"], application_credential_secret=made["secret"]
        )
    )
    api = Api(login, f"{raksha.url}/v1/{demo.project}")
    before = len(trusts_of(demo))
    with pytest.raises(Refused) as refused:
        api.post("/backupjobs", {"name": "by robot", "vm_selector": {"tags": ["x"]}})
    assert refused.value.status == 403 and "trust_refused" in str(refused.value)
    # what it may do without a trust, it does
    assert "backupjobs" in api.get("/backupjobs")
    assert len(trusts_of(demo)) == before


def test_what_fails_leaves_no_trust(raksha: Service, demo: Cloud) -> None:
    before = len(trusts_of(demo))
    with pytest.raises(Refused) as refused:
        raksha.of(demo).post(
            "/backupjobs", {"name": "no such", "vms": [{"id": "11111111-0000-4000-8000-000000000000"}]}
        )
    assert refused.value.status == 400
    key = {"Idempotency-Key": secrets.token_hex(16)}
    body = {"name": "once", "vm_selector": {"tags": ["x"]}}
    first = raksha.of(demo).ask("POST", "/backupjobs", body, headers=key)
    again = raksha.of(demo).ask("POST", "/backupjobs", body, headers=key)
    assert first["id"] == again["id"] and len(trusts_of(demo)) == before + 1
    raksha.of(demo).delete(f"/backupjobs/{first['id']}")
    raksha.wait(lambda: gone(raksha.of(demo), f"/backupjobs/{first['id']}"))
    assert len(trusts_of(demo)) == before
