"""The cloud that these tests need: `./run-tests openstack` brings it up, and leaves it for the next time.

Tenants are made anew for each call of pytest, so that two calls beside each other do not meet.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.openstack.cloud import daemons, layout
from tests.openstack.cloud.layout import PASSWORD
from tests.openstack.cloud.rest import Cloud
from tests.openstack.guest import Guest
from tests.openstack.service import Service


@pytest.fixture(scope="session", autouse=True)
def cloud_is_up() -> None:
    if not daemons.running("nova-compute"):
        raise daemons.CloudError(f"no cloud runs in {layout.ROOT}: make cloud-up")


@pytest.fixture(scope="session")
def admin() -> Cloud:
    return Cloud("admin")


@pytest.fixture(scope="session")
def demo(admin: Cloud) -> Iterator[Cloud]:
    """A tenant."""
    with tenant(admin, "demo") as made:
        yield made


@pytest.fixture(scope="session")
def alt(admin: Cloud) -> Iterator[Cloud]:
    """Another one."""
    with tenant(admin, "alt") as made:
        yield made


@contextmanager
def tenant(admin: Cloud, name: str) -> Iterator[Cloud]:
    """A project with one user, a member of it; an admin of the cloud has his role there as well."""
    keystone, name = admin.keystone, f"{name}-{secrets.token_hex(3)}"
    roles = {role["name"]: role["id"] for role in keystone.get("/roles")["roles"]}
    project = keystone.post("/projects", {"project": {"name": name, "domain_id": "default"}})["project"]["id"]
    body = {"name": name, "password": PASSWORD, "domain_id": "default"}
    user = keystone.post("/users", {"user": body})["user"]["id"]
    granted = [(user, "member"), (user, "reader"), (admin.login.get_user_id(), "admin")]
    for whom, role in granted:
        keystone.put(f"/projects/{project}/users/{whom}/roles/{roles[role]}")
    yield Cloud(name)
    keystone.delete(f"/users/{user}")
    keystone.delete(f"/projects/{project}")


@pytest.fixture(scope="module")
def raksha(tmp_path_factory: pytest.TempPathFactory, admin: Cloud) -> Iterator[Service]:
    """A deployment of Raksha, on a bus of its own."""
    folder: Path = tmp_path_factory.mktemp("raksha")
    folder.chmod(0o755)
    with Service(folder, admin) as made:
        yield made


@pytest.fixture
def server(demo: Cloud, admin: Cloud) -> Iterator[Guest]:
    """A server of the tenant `demo` that has booted, without volumes; gone at the end, and the project's volumes."""
    made = demo.server("tested")
    try:
        guest = Guest(admin, made)
        guest.wait_until_ready()
        yield guest
    finally:
        if made in {each["id"] for each in demo.nova.get("/servers")["servers"]}:
            demo.delete_server(made)
        for volume in (each["id"] for each in demo.cinder.get("/volumes")["volumes"]):
            demo.wait_for_volume(volume, "available")
            demo.delete_volume(volume)
