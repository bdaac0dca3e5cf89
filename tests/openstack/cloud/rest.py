"""The services' APIs as a user has them: one login, plain requests (the `openstack` command takes five seconds)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any

from keystoneauth1 import session
from keystoneauth1.identity import v3

from tests.openstack.cloud.daemons import CloudError
from tests.openstack.cloud.layout import CINDER, GLANCE, IP, KEYSTONE_URL, NEUTRON, NOVA, PASSWORD, SWIFT

_BAD = ("ERROR", "error", "error_restoring", "error_deleting", "killed")


class Refused(CloudError):
    """A service answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Api:
    """One service, by its base address."""

    def __init__(self, login: session.Session, base: str, **headers: str) -> None:
        self._login = login
        self.base = base
        self._headers = headers

    def ask(self, verb: str, path: str, body: Any = None, **more: Any) -> Any:
        """The answer: JSON, or the response itself if it is something else. Raises `Refused`."""
        headers = {**self._headers, **more.pop("headers", {})}
        answer = self._login.request(self.base + path, verb, json=body, headers=headers, raise_exc=False, **more)
        if answer.status_code >= 400:
            raise Refused(answer.status_code, f"{verb} {path}: {answer.status_code} {answer.text[:600]}")
        if "json" in answer.headers.get("content-type", "") and answer.content:
            return answer.json()
        return answer

    def get(self, path: str) -> Any:
        return self.ask("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        return self.ask("POST", path, body)

    def put(self, path: str, body: Any = None, **more: Any) -> Any:
        return self.ask("PUT", path, body, **more)

    def delete(self, path: str) -> Any:
        return self.ask("DELETE", path)


class Cloud:
    """What one user of one project may do."""

    def __init__(self, user: str, project: str | None = None, password: str = PASSWORD, **more: Any) -> None:
        scope = {} if "trust_id" in more else {"project_name": project or user, "project_domain_id": "default"}
        auth = v3.Password(KEYSTONE_URL, username=user, password=password, user_domain_id="default", **scope, **more)
        self.login = session.Session(auth)
        #: of the project
        self.name = project or user
        self.keystone = Api(self.login, KEYSTONE_URL)
        self.glance = Api(self.login, f"http://{IP}:{GLANCE}/v2")
        self.nova = Api(self.login, f"http://{IP}:{NOVA}/v2.1", **{"OpenStack-API-Version": "compute 2.90"})
        self.neutron = Api(self.login, f"http://{IP}:{NEUTRON}/v2.0")

    @cached_property
    def project(self) -> str:
        return str(self.login.get_project_id())

    @property
    def token(self) -> str:
        return str(self.login.get_token())

    @cached_property
    def cinder(self) -> Api:
        base = f"http://{IP}:{CINDER}/v3/{self.project}"
        return Api(self.login, base, **{"OpenStack-API-Version": "volume 3.68"})

    @cached_property
    def swift(self) -> Api:
        return Api(self.login, f"http://{IP}:{SWIFT}/v1/AUTH_{self.project}")

    # -- what takes a while -----------------------------------------------------------------------

    def server(self, name: str, *, image: str = "raksha", flavor: str = "raksha", **more: Any) -> str:
        """A new server that is ACTIVE; its id."""
        images = self.glance.get(f"/images?name={image}")["images"]
        network = self.neutron.get("/networks?name=shared")["networks"][0]["id"]
        body = {"name": name, "flavorRef": flavor, "imageRef": images[0]["id"], "networks": [{"uuid": network}], **more}
        made = str(self.nova.post("/servers", {"server": body})["server"]["id"])
        self.wait_for_server(made, "ACTIVE")
        return made

    def wait_for_server(self, server: str, *wanted: str) -> Any:
        return wait_for(lambda: self.nova.get(f"/servers/{server}")["server"], wanted)

    def volume(self, name: str, kind: str, size: int = 1) -> str:
        """A new volume of `size` GiB; its id."""
        body = {"name": name, "size": size, "volume_type": kind}
        made = str(self.cinder.post("/volumes", {"volume": body})["volume"]["id"])
        self.wait_for_volume(made, "available")
        return made

    def wait_for_volume(self, volume: str, *wanted: str) -> Any:
        return wait_for(lambda: self.cinder.get(f"/volumes/{volume}")["volume"], wanted)

    def attach(self, server: str, volume: str) -> None:
        body = {"volumeAttachment": {"volumeId": volume}}
        self.nova.post(f"/servers/{server}/os-volume_attachments", body)
        self.wait_for_volume(volume, "in-use")

    def detach(self, server: str, volume: str) -> None:
        self.nova.delete(f"/servers/{server}/os-volume_attachments/{volume}")
        self.wait_for_volume(volume, "available")

    def delete_server(self, server: str) -> None:
        self.nova.delete(f"/servers/{server}")
        wait_until_gone(lambda: self.nova.get(f"/servers/{server}")["server"])

    def delete_volume(self, volume: str) -> None:
        self.cinder.delete(f"/volumes/{volume}")
        wait_until_gone(lambda: self.cinder.get(f"/volumes/{volume}")["volume"])


def wait_for(look: Callable[[], Any], wanted: Collection[str], seconds: float = 180) -> Any:
    """Until `status` is one of these. Raises `CloudError` when it is an error, or takes too long."""
    deadline = time.monotonic() + seconds
    while (found := look())["status"] not in wanted:
        if found["status"] in _BAD or time.monotonic() > deadline:
            raise CloudError(f"{found.get('name')} is {found['status']}, not {wanted}: {found.get('fault')}")
        time.sleep(0.5)
    return found


def wait_until_gone(look: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = look()
        except Refused as error:
            if error.status == 404:
                return
            raise
        if found["status"] in _BAD or time.monotonic() > deadline:
            raise CloudError(f"{found.get('name')} is still there: {found['status']} {found.get('fault')}")
        time.sleep(0.5)
