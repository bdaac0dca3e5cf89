"""What Nova shows to the caller's own token, where users come from Keystone and the cloud has a Nova.

    found = servers.mine(tenant_id)      # None: there is no Nova to ask; agents alone say what the project has

Asked before a transaction begins: nothing waits for Nova while rows are locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raksha.api.services import identity, services

if TYPE_CHECKING:
    from raksha.openstack.compute import ListedServer, Servers
    from raksha.server import Needs


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


def among(project_id: str, ids: frozenset[str]) -> frozenset[str]:
    """Those of some ids that are servers of the project. Raises what `one` does."""
    found = _nova() if ids else None
    if found is None:
        return frozenset()
    nova, access = found
    return nova.among(access, project_id, ids)


def lacking(needs: Sequence[Needs]) -> list[tuple[str, str]]:
    """What a restore would not find in the caller's cloud: code and words. Raises what `one` does."""
    from raksha.openstack.missing import missing

    found = _nova()
    if found is None:
        return [("no_cloud", "this service has no cloud to restore into")]
    nova, access = found
    return list(missing(nova.cloud(access), needs))


def _nova() -> tuple[Servers, Any] | None:
    """Raises `CloudUnavailable`."""
    nova, access = services().servers, identity().access
    return (nova, access) if nova is not None and access is not None and nova.known(access) else None
