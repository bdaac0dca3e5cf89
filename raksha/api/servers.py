"""What Nova shows to the caller's own token, where users come from Keystone and the cloud has a Nova.

    found = servers.mine(tenant_id)      # None: there is no Nova to ask; agents alone say what the project has

Asked before a transaction begins: nothing waits for Nova while rows are locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from raksha.api.services import identity, services, settings

if TYPE_CHECKING:
    from raksha.openstack.block_storage import ListedVolume
    from raksha.openstack.compute import ListedServer, Servers
    from raksha.server import Needs


BLOCK_STORAGE = "block-storage"
#: servers that are asked for one by one; for more the list is read
_FEW = 10


class Named(Struct, frozen=True):
    """Some VMs, as far as Nova knows them."""

    #: those that are servers of the project
    servers: frozenset[str] = frozenset()
    #: whether any other is the project's because agents say so
    agents_say: bool = True


def mine(project_id: str) -> dict[str, ListedServer] | None:
    """All servers of the project by their ids. Raises `CloudRefused`, `CloudUnavailable`, `NotAuthenticated`,
    `TooManyServers`."""
    found = _nova()
    if found is None:
        return None
    nova, access = found
    return {server.id: server for server in nova.listed(access, project_id)}


def one(project_id: str, server_id: str) -> ListedServer | None:
    """None: the project has no such server, or there is no Nova. Raises what `mine` does but the last."""
    found = _nova()
    if found is None:
        return None
    nova, access = found
    return nova.get(access, project_id, server_id)


def among(project_id: str, ids: frozenset[str]) -> Named:
    """What of some VMs is the project's. Raises what `one` does."""
    found = _nova() if ids else None
    if found is None:
        return Named()
    nova, access = found
    return Named(nova.among(access, project_id, ids), settings().libvirt_vms)


def of(project_id: str, ids: frozenset[str]) -> dict[str, ListedServer] | None:
    """Those of some ids that are servers of the project. None: there is no Nova. Raises what `mine` does."""
    found = _nova()
    if found is None:
        return None
    nova, access = found
    if len(ids) > _FEW:
        return {server.id: server for server in nova.listed(access, project_id) if server.id in ids}
    shown = (nova.get(access, project_id, id) for id in sorted(ids))
    return {server.id: server for server in shown if server is not None}


def volumes(project_id: str, ids: frozenset[str]) -> dict[str, ListedVolume] | None:
    """Those of some ids that are volumes of the project. None: there is no cloud, or no Cinder. Raises what `one`
    does."""
    found = _nova()
    if found is None:
        return None
    nova, access = found
    cloud = nova.cloud(access)
    if BLOCK_STORAGE not in cloud.endpoints:
        return None
    if not ids:
        return {}
    from raksha.openstack.block_storage import among

    return among(cloud, project_id, ids)


def agents_say() -> bool:
    """Whether a VM that Nova does not show is a project's because agents say so: there is no Nova, or the operator has
    VMs beside it. Raises `CloudUnavailable`."""
    return _nova() is None or settings().libvirt_vms


def lacking(needs: Sequence[Needs], elsewhere: Any = None) -> list[tuple[str, str]]:
    """What a restore would not find in the caller's cloud: code and words. `elsewhere`: what Keystone says of a token
    for another project that it goes into. Raises what `one` does."""
    from raksha.openstack.missing import missing

    found = _nova(elsewhere)
    if found is None:
        return [("no_cloud", "this service has no cloud to restore into")]
    nova, access = found
    return list(missing(nova.cloud(access), needs))


def unfit(project_id: str, volumes: Sequence[tuple[str, str, int]], elsewhere: Any = None) -> list[tuple[str, str]]:
    """Of volumes that are to be written over (field, id, bytes) those that the project has not, or that cannot take it:
    field and words. `elsewhere`: as `lacking` has it. Raises what `one` does."""
    from raksha.openstack.missing import unfit

    found = _nova(elsewhere) if volumes else None
    if found is None:
        return [(field, "This service has no cloud.") for field, _, _ in volumes]
    nova, access = found
    return list(unfit(nova.cloud(access), project_id, volumes))


def _nova(elsewhere: Any = None) -> tuple[Servers, Any] | None:
    """Raises `CloudUnavailable`."""
    nova, access = services().servers, elsewhere or identity().access
    return (nova, access) if nova is not None and access is not None and nova.known(access) else None
