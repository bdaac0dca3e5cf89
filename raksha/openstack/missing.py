"""What a restore into a cloud would not find there, said before anything is made. It may come and go meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raksha.errors import CloudMissing, CloudRefused
from raksha.openstack.lent import LentLogin, asking
from raksha.openstack.new_server import NewServers
from raksha.server import Needs


def missing(cloud: LentLogin, needs: Sequence[Needs]) -> Iterator[tuple[str, str]]:
    """Code and words of each problem. Raises `CloudRefused`, `CloudUnavailable`."""
    servers = NewServers(cloud)
    if "image" not in cloud.endpoints:
        yield "image_service_missing", "the cloud has no image service, which disks go through"
    flavors: list[Mapping[str, Any]] = []
    for each in needs:
        if each.server:
            yield from _of_server(servers, each, flavors)
    volumes = [volume for each in needs for volume in each.volumes]
    yield from _volume_types(cloud, {kind for _, kind in volumes if kind is not None})
    yield from _room_for_servers(cloud, sum(each.server for each in needs), flavors)
    yield from _room_for_volumes(cloud, volumes)


def unfit(cloud: LentLogin, project_id: str, volumes: Sequence[tuple[str, str, int]]) -> Iterator[tuple[str, str]]:
    """Of volumes that are to be written over (field, id, bytes): field and words of each that cannot be.

    `cloud` acts for whoever asks. Raises `CloudRefused`, `CloudUnavailable`.
    """
    for field, volume, size in volumes:
        try:
            with asking("block-storage"):
                shown = cloud.volumes().volumes.get(volume).to_dict()
        except CloudMissing:
            shown = {}
        # an admin sees those of others as well
        if not shown or shown.get("os-vol-tenant-attr:tenant_id", project_id) != project_id:
            yield field, f"The project has no volume {volume}."
        elif shown["status"] != "available":
            yield field, f"Volume {volume} is {shown['status']}, not available."
        elif shown["multiattach"]:
            yield field, f"Volume {volume} may be attached more than once."
        elif shown["size"] * 1024**3 < size:
            yield field, f"Volume {volume} has {shown['size']} GiB, and the disk {size} bytes."


def _of_server(servers: NewServers, needs: Needs, flavors: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    had = needs.had
    if had is None and (needs.flavor is None or needs.networks is None):
        yield "server_unknown", "what the server was like is not part of the backup: say flavor and networks"
        return
    try:
        flavors.append(servers.flavor(needs.flavor, had.flavor if had else None))
    except CloudRefused as error:
        yield "flavor_missing", str(error)
    wanted = needs.networks
    if wanted is None:
        wanted = tuple(sorted({port.network_id for port in had.ports})) if had else ()
    there = servers.networks(wanted)
    for network in wanted:
        if network not in there:
            yield "network_missing", f"network {network} is not there for this project"
    for network, address in servers.taken([each for each in needs.addresses if each[0] in there]):
        yield "address_taken", f"address {address} of network {network} is taken"
    key = had.key_name if had and needs.key_name is None else needs.key_name
    if key and not servers.has_key(key):
        yield "key_missing", f"the caller has no key pair {key}"


def _volume_types(cloud: LentLogin, wanted: set[str]) -> Iterator[tuple[str, str]]:
    if not wanted:
        return
    with asking("block-storage"):
        kinds = cloud.volumes().client.get("/types")[1]["volume_types"]
    known = {kind["name"] for kind in kinds} | {kind["id"] for kind in kinds}
    for kind in sorted(wanted - known):
        yield "volume_type_missing", f"there is no volume type {kind}"


def _room_for_servers(
    cloud: LentLogin, servers: int, flavors: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    if not servers:
        return
    with asking("compute"):
        limits = cloud.compute().client.get("/limits")[1]["limits"]["absolute"]
        cores, ram = sum(int(each["vcpus"]) for each in flavors), sum(int(each["ram"]) for each in flavors)
    yield from _left(limits, servers, "maxTotalInstances", "totalInstancesUsed", "servers")
    yield from _left(limits, cores, "maxTotalCores", "totalCoresUsed", "CPUs")
    yield from _left(limits, ram, "maxTotalRAMSize", "totalRAMUsed", "MiB of memory")


def _room_for_volumes(cloud: LentLogin, volumes: Sequence[tuple[int, str | None]]) -> Iterator[tuple[str, str]]:
    if not volumes:
        return
    with asking("block-storage"):
        limits = cloud.volumes().client.get("/limits")[1]["limits"]["absolute"]
    yield from _left(limits, len(volumes), "maxTotalVolumes", "totalVolumesUsed", "volumes")
    gib = sum(size for size, _ in volumes)
    yield from _left(limits, gib, "maxTotalVolumeGigabytes", "totalGigabytesUsed", "GiB of volumes")


def _left(limits: Any, wanted: int, most: str, used: str, what: str) -> Iterator[tuple[str, str]]:
    limit = int(limits.get(most, -1))
    if limit >= 0 and int(limits.get(used, 0)) + wanted > limit:
        free = max(0, limit - int(limits.get(used, 0)))
        yield "quota_reached", f"{wanted} {what} are needed, and the project's quota leaves {free}"
