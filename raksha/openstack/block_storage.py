"""Whose a volume is, and whether it is in use: as Cinder shows it to the caller's own token.

As in `compute`: nothing logs in here, a volume of another project than the one that is asked for is not there, also
where the token is an operator's, and where Cinder does not say whose a volume is, nothing is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from cinderclient import exceptions as cinder_errors
from keystoneauth1 import exceptions
from msgspec import Struct

from raksha.errors import CloudMissing, CloudRefused, NotAuthenticated
from raksha.openstack.lent import LentLogin, asking

_SERVICE = "block-storage"
_OWNER = "os-vol-tenant-attr:tenant_id"
#: ids that are asked for one by one; for more the list is read, so many at a time
_FEW, _PAGE = 10, 200


class ListedVolume(Struct, frozen=True, kw_only=True):
    id: str
    name: str | None
    #: `available`, `in-use`, …
    status: str
    project_id: str
    #: ids of those that it is attached to
    servers: tuple[str, ...] = ()

    @property
    def in_use(self) -> bool:
        return self.status != "available"


def among(cloud: LentLogin, project_id: str, ids: frozenset[str]) -> dict[str, ListedVolume]:
    """Those of some ids that are volumes of the project.

    Raises `CloudRefused`, `CloudUnavailable`, `NotAuthenticated`.
    """
    found = _each(cloud, sorted(ids)) if len(ids) <= _FEW else _all(cloud, project_id)
    return {volume.id: volume for volume in found if volume.id in ids and volume.project_id == project_id}


def _each(cloud: LentLogin, ids: list[str]) -> Iterator[ListedVolume]:
    for id in ids:
        try:
            yield _listed(_ask(cloud, f"/volumes/{id}")["volume"])
        except CloudMissing:
            continue


def _all(cloud: LentLogin, project_id: str) -> Iterator[ListedVolume]:
    query = {"limit": str(_PAGE)}
    while True:
        answer = _ask(cloud, f"/volumes/detail?{urlencode(query)}")
        page = answer["volumes"]
        # those of others, which an operator sees, say nothing of what they are
        mine = [each for each in page if each.get(_OWNER, project_id) == project_id]
        yield from map(_listed, mine)
        if not page or not answer.get("volumes_links"):
            return
        query["marker"] = str(page[-1]["id"])


def _ask(cloud: LentLogin, path: str) -> Any:
    with asking(_SERVICE):
        try:
            # not by cinderclient's own lists: they write names and ids into a file below the home, for completion
            return cloud.volumes().client.get(path)[1]
        except (cinder_errors.Unauthorized, exceptions.Unauthorized) as error:
            # Keystone has just let it in: it was revoked, or has expired since
            raise NotAuthenticated(challenge="Keystone") from error


def _listed(shown: Mapping[str, Any]) -> ListedVolume:
    """Raises `CloudUnavailable`: this is none. `CloudRefused`: nobody knows whose it is."""
    if _OWNER not in shown:
        raise CloudRefused(service=_SERVICE, detail=f"it does not show {_OWNER}, so nobody knows whose a volume is")
    with asking(_SERVICE):
        return ListedVolume(
            id=str(shown["id"]),
            name=shown.get("name") or None,
            status=str(shown["status"]),
            project_id=str(shown[_OWNER]),
            servers=tuple(str(each["server_id"]) for each in shown.get("attachments") or () if each.get("server_id")),
        )
