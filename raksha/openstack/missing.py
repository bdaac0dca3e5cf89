"""What a restore into a cloud would not find there, said before anything is made. It may come and go meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raksha.errors import CloudRefused
from raksha.openstack.lent import LentLogin, asking
from raksha.openstack.new_server import NewServers
from raksha.server import Needs


def missing(cloud: LentLogin, needs: Sequence[Needs]) -> Iterator[tuple[str, str]]:
    """Code and words of each problem. Raises `CloudRefused`, `CloudUnavailable`."""
    servers = NewServers(cloud)
    for each in needs:
        if each.server:
            yield from _of_server(servers, each)
    volumes = [volume for each in needs for volume in each.volumes]
    yield from _volume_types(cloud, {kind for _, kind in volumes if kind is not None})
    yield from _room(cloud, sum(each.server for each in needs), volumes)


def _of_server(servers: NewServers, needs: Needs) -> Iterator[tuple[str, str]]:
    had = needs.had
    if had is None and (needs.flavor is None or needs.networks is None):
        yield "server_unknown", "what the server was like is not part of the backup: say flavor and networks"
        return
    try:
        servers.flavor(needs.flavor, had.flavor if had else None)
    except CloudRefused as error:
        yield "flavor_missing", str(error)
    wanted = needs.networks
    if wanted is None:
        wanted = tuple(sorted({port.network_id for port in had.ports})) if had else ()
    there = servers.networks(wanted)
    for network in wanted:
        if network not in there:
            yield "network_missing", f"network {network} is not there for this project"
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


def _room(cloud: LentLogin, servers: int, volumes: Sequence[tuple[int, str | None]]) -> Iterator[tuple[str, str]]:
    if servers:
        with asking("compute"):
            limits = cloud.compute().client.get("/limits")[1]["limits"]["absolute"]
        yield from _left(limits, servers, "maxTotalInstances", "totalInstancesUsed", "servers")
    if volumes:
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
