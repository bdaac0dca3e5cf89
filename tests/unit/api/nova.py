"""A stand-in for Nova over HTTP, for what a real one cannot be made to do at a given moment; and tokens for it.

It shows servers as Nova's default policy does: a token's own project, an admin's all. With a real Nova:
tests/openstack/test_servers.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import flask
from keystoneauth1 import access

from raksha.api.auth import Identity, with_implied
from raksha.api.http_basic import HttpBasic

Answer = tuple[int, dict[str, str], bytes]


def server(id: str, name: str, project: str, **more: Any) -> dict[str, Any]:
    """As Nova shows it."""
    plain = {"status": "ACTIVE", "OS-EXT-STS:power_state": 1, "tags": [], "metadata": {},
             "os-extended-volumes:volumes_attached": []}  # fmt: skip
    return {"id": id, "name": name, "tenant_id": project, **plain, **more}


class Nova:
    """`answer` is for `serving`. `fault`: what it answers instead, if that is anything."""

    def __init__(self, *servers: dict[str, Any]) -> None:
        self.servers = {each["id"]: each for each in servers}
        #: by token: project, and whether it is an admin's
        self.tokens: dict[str, tuple[str, bool]] = {}
        #: entries of a page
        self.most = 2
        self.fault: Callable[[str], Answer | None] = lambda path: None

    def answer(self, _method: str, path: str, headers: dict[str, str], _body: bytes) -> Answer:
        instead = self.fault(path)
        if instead is not None:
            return instead
        token = headers.get("X-Auth-Token", "")
        if token not in self.tokens:
            return _said(401, {"error": {"code": 401, "message": "The request you have made requires authentication."}})
        project, admin = self.tokens[token]
        split = urlsplit(path)
        if split.path == "/v2.1/servers/detail":
            return self._listed(dict(parse_qsl(split.query)), project, admin)
        found = self.servers.get(split.path.removeprefix("/v2.1/servers/"))
        if found is None or not (admin or found["tenant_id"] == project):
            return _said(404, {"itemNotFound": {"code": 404, "message": "Instance could not be found."}})
        return _said(200, {"server": found})

    def _listed(self, query: dict[str, str], project: str, admin: bool) -> Answer:
        if "all_tenants" in query and not admin:
            message = "Policy doesn't allow os_compute_api:servers:detail:get_all_tenants to be performed."
            return _said(403, {"forbidden": {"code": 403, "message": message}})
        wanted = query.get("project_id") if "all_tenants" in query else project
        found = [each for each in self.servers.values() if wanted in (None, each["tenant_id"])]
        if "marker" in query:
            ids = [each["id"] for each in found]
            if query["marker"] not in ids:
                return _said(400, {"badRequest": {"code": 400, "message": f"marker [{query['marker']}] not found"}})
            found = found[ids.index(query["marker"]) + 1 :]
        return _said(200, {"servers": found[: min(self.most, int(query["limit"]))]})


def _said(status: int, body: Any) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(body).encode()


class WithTokens(HttpBasic):
    """Says who a caller is as Keystone would, with what is known of a token."""

    def __init__(self, file: Any, nova: Nova, catalog: list[Any] | None) -> None:
        super().__init__(file)
        self._nova = nova
        self.catalog = catalog

    def identify(self, request: flask.Request) -> Identity:
        who = super().identify(request)
        token = f"gAAAA-{who.user_id}"
        self._nova.tokens.setdefault(token, (who.project_id, who.is_admin))
        return Identity(who.user_id, who.project_id, with_implied(who.roles), token, self._access(who, token))

    def _access(self, who: Identity, token: str) -> Any:
        body = said_of(who.user_id, who.project_id, sorted(who.roles), self.catalog)
        return access.create(body=body, auth_token=token)


def said_of(user: str, project: str, roles: Sequence[str], catalog: list[Any] | None) -> dict[str, Any]:
    """What Keystone says of a token."""
    now = datetime.now(UTC)
    token: dict[str, Any] = {
        "methods": ["password"],
        "issued_at": now.strftime("%Y-%m-%dT%H:%M:%S.000000Z"),
        "expires_at": (now + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.000000Z"),
        "user": {"id": user, "name": user, "domain": {"id": "default", "name": "Default"}},
        "project": {"id": project, "name": project, "domain": {"id": "default", "name": "Default"}},
        "roles": [{"id": role, "name": role} for role in roles],
    }
    return {"token": token if catalog is None else {**token, "catalog": catalog}}


def catalog(url: str, region: str = "north", service: str = "compute") -> list[Any]:
    endpoint = {"id": "e", "interface": "public", "region": region, "region_id": region, "url": f"{url}/v2.1"}
    return [{"id": "s", "type": service, "name": service, "endpoints": [endpoint]}]
