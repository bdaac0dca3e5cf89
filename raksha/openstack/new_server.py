"""Servers of Nova that a restore makes. Each bears the mark of its restore, by which it is found again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from msgspec import Struct

from raksha.errors import CloudMissing, CloudRefused, CloudUnavailable
from raksha.openstack.lent import MARK, LentLogin, asking
from raksha.server import Flavor

_SERVICE = "compute"
_POLL = 1.0
#: seconds for a server to be built, and to go
_BUILD, _GO = 1800.0, 300.0


class Nic(Struct, frozen=True):
    network_id: str
    #: None: any that is free
    fixed_ip: str | None = None


class NewServer(Struct, frozen=True, kw_only=True):
    name: str
    flavor_id: str
    #: None: it boots from the first of the volumes
    image_id: str | None
    #: ids, in the order of its disks
    volumes: tuple[str, ...] = ()
    nics: tuple[Nic, ...] = ()
    key_name: str | None = None
    #: names or ids
    security_groups: tuple[str, ...] = ()
    metadata: Mapping[str, str] = {}
    tags: tuple[str, ...] = ()
    availability_zone: str | None = None
    server_group: str | None = None
    config_drive: bool = False
    description: str | None = None


class NewServers:
    """Of one project."""

    def __init__(self, cloud: LentLogin) -> None:
        self._cloud = cloud

    def flavor(self, wanted: str | None, had: Flavor | None) -> Mapping[str, Any]:
        """The flavor that is asked for by name or id, else the one that the server had: the same name, or one that
        gives the same; as Nova shows it (`id`, `vcpus`, `ram` in MiB, …). Raises `CloudRefused` if there is none."""
        with asking(_SERVICE):
            there = self._get("/flavors/detail")["flavors"]
            if wanted is not None:
                found = [each for each in there if wanted in (each["id"], each["name"])]
            else:
                found = [each for each in there if had is not None and each["name"] == had.name]
                found += [each for each in there if had is not None and _gives(each, had)]
        if not found:
            told = wanted or (f"{had.name} ({had.vcpus} CPUs, {had.ram} MiB)" if had else "none was asked for")
            raise CloudRefused(service=_SERVICE, detail=f"there is no such flavor: {told}")
        flavor: Mapping[str, Any] = found[0]
        return flavor

    def taken(self, addresses: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Of addresses in networks those that the project has given to something. Raises `CloudRefused`,
        `CloudUnavailable`."""
        found = []
        with asking("network"):
            session, base = self._cloud.session(), f"{self._cloud.endpoint('network')}/v2.0/ports"
            for network, address in addresses:
                wanted = {"network_id": network, "fixed_ips": f"ip_address={address}", "fields": "id"}
                if session.get(base, params=wanted).json()["ports"]:
                    found.append((network, address))
        return found

    def has_key(self, name: str) -> bool:
        """Of the user that the restore acts for. Raises `CloudRefused`, `CloudUnavailable`."""
        return self._has(lambda compute: compute.keypairs.get(name))

    def has_group(self, group_id: str) -> bool:
        """Raises `CloudRefused`, `CloudUnavailable`."""
        return self._has(lambda compute: compute.server_groups.get(group_id))

    def _get(self, path: str) -> Any:
        """A list. Not by novaclient's own: that writes names and ids into a file below the home, for completion."""
        return self._cloud.compute().client.get(path)[1]

    def _has(self, look: Callable[[Any], object]) -> bool:
        try:
            with asking(_SERVICE):
                look(self._cloud.compute())
        except CloudMissing:
            return False
        return True

    def networks(self, ids: Sequence[str]) -> set[str]:
        """Those of these networks that the project can use. Raises `CloudRefused`, `CloudUnavailable`."""
        found: set[str] = set()
        with asking("network"):
            session, base = self._cloud.session(), f"{self._cloud.endpoint('network')}/v2.0/networks"
            for id in ids:
                found |= {each["id"] for each in session.get(base, params={"id": id}).json()["networks"]}
        return found

    def create(self, order: NewServer, restore_id: str) -> str:
        """The id of a server that is being built. Raises `CloudRefused`, `CloudUnavailable`."""
        nics: Any = [
            {"net-id": nic.network_id, **({"v4-fixed-ip": nic.fixed_ip} if nic.fixed_ip else {})} for nic in order.nics
        ]
        # of a server with an image, novaclient puts that in front
        first = 0 if order.image_id is None else 1
        disks: list[dict[str, Any]] = [
            {
                "uuid": volume,
                "source_type": "volume",
                "destination_type": "volume",
                "boot_index": 0 if first + number == 0 else -1,
                "delete_on_termination": False,
            }
            for number, volume in enumerate(order.volumes)
        ]
        with asking(_SERVICE):
            made = self._cloud.compute().servers.create(
                name=order.name,
                image=order.image_id,
                flavor=order.flavor_id,
                meta={**order.metadata, MARK: restore_id},
                nics=nics or "none",
                block_device_mapping_v2=disks or None,
                key_name=order.key_name,
                security_groups=list(order.security_groups) or None,
                availability_zone=order.availability_zone,
                scheduler_hints={"group": order.server_group} if order.server_group else None,
                config_drive=order.config_drive or None,
                description=order.description,
                tags=list(order.tags) or None,
            )
            return str(made.id)

    def wait_until_built(self, server_id: str, check: Callable[[], None]) -> None:
        """Raises what `check` raises, `CloudRefused` with what Nova says of the fault, `CloudUnavailable`."""
        deadline = time.monotonic() + _BUILD
        while True:
            with asking(_SERVICE):
                shown = self._cloud.compute().servers.get(server_id).to_dict()
            if shown["status"] == "ACTIVE":
                return
            if shown["status"] == "ERROR" or time.monotonic() > deadline:
                fault = (shown.get("fault") or {}).get("message") or f"it is {shown['status']}"
                raise CloudRefused(service=_SERVICE, detail=f"server {server_id} could not be built: {fault}")
            check()
            time.sleep(_POLL)

    def stop(self, server_id: str) -> None:
        """Raises `CloudRefused`, `CloudUnavailable`."""
        with asking(_SERVICE):
            self._cloud.compute().servers.stop(server_id)

    def of_restore(self, restore_id: str, name: str) -> list[str]:
        """Ids of those that it has made and that are still there. Raises `CloudRefused`, `CloudUnavailable`."""
        with asking(_SERVICE):
            found = self._get(f"/servers/detail?{urlencode({'name': f'^{re.escape(name)}$'})}")["servers"]
            return [str(each["id"]) for each in found if each["metadata"].get(MARK) == restore_id]

    def delete(self, server_id: str) -> None:
        """Until it is gone; one that is not there is as good. Raises `CloudRefused`, `CloudUnavailable`."""
        with suppress(CloudMissing), asking(_SERVICE):
            self._cloud.compute().servers.delete(server_id)
        deadline = time.monotonic() + _GO
        while self._has(lambda compute: compute.servers.get(server_id)):
            if time.monotonic() > deadline:
                raise CloudUnavailable(service=_SERVICE, detail=f"server {server_id} does not go")
            time.sleep(_POLL)


def _gives(flavor: Mapping[str, Any], had: Flavor) -> bool:
    same = (flavor["vcpus"], flavor["ram"], flavor["disk"]) == (had.vcpus, had.ram, had.disk)
    return same and (flavor.get("OS-FLV-EXT-DATA:ephemeral") or 0) == had.ephemeral
