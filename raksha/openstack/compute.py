"""Whose a server is, which servers a project has, and where they are: as Nova shows them to a token of the project.

Nothing logs in here. `access` is what Keystone has said of the token of a request (keystoneauth's `AccessInfo`): it is
that token that is shown, alone, at the addresses that its own catalog names. Redirects are not followed: the token is
for Nova and nobody else.
A server of another project than the one that is asked for is not there, also where the token is an operator's.

Which host a server is on, Nova tells its owner only as a digest (`host_id`): enough to check what a host says of
itself, and it takes no more rights than the owner's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from keystoneauth1 import exceptions
from keystoneauth1.access import AccessInfo
from keystoneauth1.identity.access import AccessInfoPlugin
from keystoneauth1.session import Session
from msgspec import Struct
from novaclient import client as nova
from novaclient import exceptions as nova_errors

from raksha.errors import CloudMissing, CloudUnavailable, NotAuthenticated, TooManyServers
from raksha.openstack import trusts
from raksha.openstack.lent import LentLogin, asking
from raksha.server import CLOUD_SERVICES

_TYPE = "compute"
#: the first that tells tags
_VERSION = "2.26"
#: seconds for each answer
_PATIENCE = 10.0
#: servers of one answer; Nova's own limit may be lower
_PAGE = 200
#: servers of a project that are listed
MOST = 5000
#: ids that are asked for one by one; for more the list is read
_FEW = 10

#: Nova's numbers, in the words of hypervisors
_POWER = {1: "running", 3: "paused", 4: "shut off", 6: "paused", 7: "shut off"}
UNKNOWN = "unknown"


class ListedServer(Struct, frozen=True, kw_only=True):
    """A server as lists show it."""

    id: str
    name: str
    #: ACTIVE, SHUTOFF, SHELVED_OFFLOADED, …
    status: str
    #: `running`, `paused`, `shut off` or `unknown`
    power: str
    project_id: str
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    #: ids of those that are attached
    volumes: tuple[str, ...] = ()
    #: as `host_id` makes it; empty: it is on none
    host_id: str = ""


def host_id(project_id: str, host: str) -> str:
    """What Nova calls a host (its `[DEFAULT] host`) to a project."""
    return hashlib.sha224((project_id + host).encode()).hexdigest()


def placed(cloud: LentLogin, project_id: str, ids: frozenset[str] | None) -> dict[str, ListedServer]:
    """Servers of the project, by id: those of some ids, or (None) all. What is not there is none of its servers.

    Raises `CloudRefused`, `CloudUnavailable`, `TooManyServers`.
    """

    def ask(path: str, key: str) -> Any:
        with asking(_TYPE):
            return _got(cloud.compute(), path, key)

    if ids is None or len(ids) > _FEW:
        found = list(islice(_walk(lambda path: ask(path, "servers"), {"limit": str(_PAGE)}), MOST + 1))
        if len(found) > MOST:
            raise TooManyServers(limit=MOST)
    else:
        found = []
        for id in sorted(ids):
            with suppress(CloudMissing):
                found.append(_listed(ask(f"/servers/{id}", "server")))
    return {each.id: each for each in found if each.project_id == project_id and (ids is None or each.id in ids)}


class Servers:
    """For any thread."""

    def __init__(
        self,
        *,
        interface: str = "public",
        region: str | None = None,
        verify: str | bool = True,
        patience: float = _PATIENCE,
    ) -> None:
        """`interface`, `region`: which of the addresses in the catalog."""
        self._where: dict[str, Any] = {"interface": interface, "region_name": region}
        self._session = Session(verify=verify, timeout=patience, redirect=False)

    def known(self, access: AccessInfo) -> bool:
        """Whether the cloud has a Nova at all. Raises `CloudUnavailable`: that cannot be told."""
        if not access.has_service_catalog():
            raise CloudUnavailable(service=_TYPE, detail="the token came without a catalog")
        return any(access.service_catalog.get_endpoints_data(service_type=_TYPE).values())

    def cloud(self, access: AccessInfo) -> LentLogin:
        """What acts with that token alone, at the addresses of its catalog. Raises `CloudUnavailable`."""
        found = {service: self._endpoint(access, service) for service in CLOUD_SERVICES}
        endpoints = {service: url for service, url in found.items() if url}
        return LentLogin(str(access.auth_token), endpoints, self._session.verify or False)

    def _endpoint(self, access: AccessInfo, service: str) -> str | None:
        with asking(service):
            try:
                return str(access.service_catalog.url_for(service_type=service, **self._where))
            except exceptions.CatalogException:
                return None

    def all(self, access: AccessInfo, project_id: str) -> Iterator[ListedServer]:
        """The project's servers, each once, in no order that means anything.

        Raises `CloudRefused`, `CloudUnavailable`, `NotAuthenticated`.
        """
        query = {"limit": str(_PAGE)}
        if access.project_id != project_id:
            # Nova decides whether this token may see them
            query |= {"all_tenants": "1", "project_id": project_id}
        every = _walk(lambda path: self._ask(access, path, "servers"), query)
        yield from (server for server in every if server.project_id == project_id)

    def listed(self, access: AccessInfo, project_id: str) -> list[ListedServer]:
        """All at once, or none. Raises what `all` does, and `TooManyServers`."""
        found = list(islice(self.all(access, project_id), MOST + 1))
        if len(found) > MOST:
            raise TooManyServers(limit=MOST)
        return found

    def get(self, access: AccessInfo, project_id: str, server_id: str) -> ListedServer | None:
        """None: the project has no such server. Raises `CloudRefused`, `CloudUnavailable`, `NotAuthenticated`."""
        try:
            server = _listed(self._ask(access, f"/servers/{server_id}", "server"))
        except CloudMissing:
            return None
        return server if server.project_id == project_id else None

    def among(self, access: AccessInfo, project_id: str, ids: frozenset[str]) -> frozenset[str]:
        """Those of some ids that are servers of the project. Raises what `all` does."""
        if len(ids) <= _FEW:
            return frozenset(id for id in ids if self.get(access, project_id, id) is not None)
        found: set[str] = set()
        for server in self.all(access, project_id):
            if server.id in ids:
                found.add(server.id)
                if len(found) == len(ids):
                    break
        return frozenset(found)

    def _ask(self, access: AccessInfo, path: str, key: str) -> Any:
        with asking(_TYPE):
            try:
                # not its `servers.list`: that writes names and ids into a cache on disk, for completion in a shell
                where = {"session": self._session, "auth": AccessInfoPlugin(access)}
                made = nova.Client(_VERSION, endpoint_override=self._url(access), **where)
                return _got(made, path, key)
            except (nova_errors.Unauthorized, exceptions.Unauthorized) as error:
                # Keystone has just let it in: it was revoked, or has expired since
                raise NotAuthenticated(challenge="Keystone") from error

    def _url(self, access: AccessInfo) -> str:
        return str(access.service_catalog.url_for(service_type=_TYPE, **self._where)).rstrip("/")


def load(file: Path | None, verify: str | bool = True) -> Servers:
    """As `[trustee] interface` and `region_name` of a configuration file say. Raises `SettingsWrong`."""
    interface, region = trusts.side(file)
    return Servers(interface=interface, region=region, verify=verify)


def _got(compute: Any, path: str, key: str) -> Any:
    """Raises what novaclient raises, and `CloudUnavailable`."""
    try:
        return compute.client.get(path)[1][key]
    except nova_errors.BadRequest as error:
        if "marker=" not in path:
            raise
        raise CloudUnavailable(service=_TYPE, detail="its list changed while it was read") from error


def _walk(ask: Callable[[str], Any], query: Mapping[str, str]) -> Iterator[ListedServer]:
    """A list, page for page; each once."""
    seen: set[str] = set()
    wanted = dict(query)
    while True:
        page = [_listed(each) for each in ask(f"/servers/detail?{urlencode(wanted)}")]
        fresh = [server for server in page if server.id not in seen]
        if not fresh:
            return
        seen.update(server.id for server in fresh)
        yield from fresh
        wanted["marker"] = page[-1].id


def _listed(shown: Mapping[str, Any]) -> ListedServer:
    """Raises `CloudUnavailable`: this is none."""
    with asking(_TYPE):
        return ListedServer(
            id=str(shown["id"]),
            name=str(shown["name"]),
            status=str(shown["status"]),
            power=_POWER.get(shown.get("OS-EXT-STS:power_state", 0), UNKNOWN),
            project_id=str(shown["tenant_id"]),
            tags=tuple(sorted(str(tag) for tag in shown.get("tags") or ())),
            metadata={str(key): str(value) for key, value in (shown.get("metadata") or {}).items()},
            volumes=tuple(str(each["id"]) for each in shown.get("os-extended-volumes:volumes_attached") or ()),
            host_id=str(shown.get("hostId") or ""),
        )
