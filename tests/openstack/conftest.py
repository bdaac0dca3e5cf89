"""The cloud that these tests need: `./run-tests openstack` brings it up, and leaves it for the next time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.openstack.cloud import daemons, layout
from tests.openstack.cloud.rest import Cloud
from tests.openstack.guest import Guest


@pytest.fixture(scope="session", autouse=True)
def cloud_is_up() -> None:
    if not daemons.running("nova-compute"):
        raise daemons.CloudError(f"no cloud runs in {layout.ROOT}: make cloud-up")


@pytest.fixture(scope="session")
def admin() -> Cloud:
    return Cloud("admin")


@pytest.fixture(scope="session")
def demo() -> Cloud:
    """A tenant."""
    return Cloud("demo")


@pytest.fixture(scope="session")
def alt() -> Cloud:
    """Another one."""
    return Cloud("alt")


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
