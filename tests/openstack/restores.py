"""Restores, as tests of the cloud ask for them, and what a project has before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.openstack.cloud.rest import Cloud
from tests.openstack.service import Service

#: of restores
ENDED = ("done", "error", "cancelled", "needs_attention")


def asked_for(raksha: Service, cloud: Cloud, run: Any, target: dict[str, Any], **more: Any) -> Callable[[], Any]:
    """Begins a restore of a run; what comes back waits until it has ended, and returns it."""
    path = f"/backupjobs/{run['backupjob_id']}/backupjobruns/{run['id']}"
    asked = raksha.of(cloud).post(path, {"target": target, **more})

    def ended() -> Any:
        found = raksha.of(cloud).get(f"/restores/{asked['id']}")
        return found if found["state"] in ENDED else None

    return lambda: raksha.wait(ended, 600)


def restored(raksha: Service, cloud: Cloud, run: Any, target: dict[str, Any], **more: Any) -> Any:
    """The restore, when it has ended."""
    return asked_for(raksha, cloud, run, target, **more)()


def left(cloud: Cloud) -> dict[str, set[str]]:
    """What the project has."""
    return {
        "images": {each["id"] for each in cloud.glance.get("/images?visibility=private")["images"]},
        "volumes": {each["id"] for each in cloud.cinder.get("/volumes")["volumes"]},
        "servers": {each["id"] for each in cloud.nova.get("/servers")["servers"]},
    }


def remove(cloud: Cloud, before: dict[str, set[str]]) -> None:
    """All that the project had not then."""
    now = left(cloud)
    for server in now["servers"] - before["servers"]:
        cloud.delete_server(server)
    for volume in now["volumes"] - before["volumes"]:
        cloud.delete_volume(volume)
    for image in now["images"] - before["images"]:
        cloud.glance.delete(f"/images/{image}")
