"""A stand-in for Cinder over HTTP, for what a real one cannot be made to do at a given moment.

It knows volumes, snapshots and attachments, whose they are, and their metadata. With a real one: tests/openstack.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, dict[str, str], bytes]
_OWNER = "os-vol-tenant-attr:tenant_id"


class Cinder:
    """`answer` is for `serving`. `fault`: the status of all answers, if it is not 0."""

    def __init__(self) -> None:
        self.there: dict[str, dict[str, dict[str, Any]]] = {"volumes": {}, "snapshots": {}, "attachments": {}}
        #: by token: project, and whether it is an admin's
        self.tokens: dict[str, tuple[str, bool]] = {}
        self.fault = 0

    def volume(self, id: str, project: str = "p1", status: str = "available", **metadata: str) -> None:
        self.there["volumes"][id] = {
            "id": id, "name": f"name of {id}", "status": status, "size": 1, _OWNER: project, "metadata": metadata,
            "attachments": [],
        }  # fmt: skip

    def snapshot(self, id: str, volume: str, **metadata: str) -> None:
        self.there["snapshots"][id] = {
            "id": id, "volume_id": volume, "status": "available", "size": 1, "metadata": metadata,
        }  # fmt: skip

    def attachment(self, id: str, volume: str) -> None:
        self.there["attachments"][id] = {"id": id, "volume_id": volume}

    def ids(self, noun: str) -> set[str]:
        return set(self.there[noun])

    def answer(self, method: str, path: str, headers: dict[str, str], _body: bytes) -> Answer:
        if self.fault:
            return _said(self.fault, {"error": {"code": self.fault, "message": "It is not well."}})
        split = urlsplit(path)
        noun, _, id = split.path.rpartition("/v3/")[2].partition("/")
        project, admin = self.tokens.get(headers.get("X-Auth-Token", ""), ("p1", True))
        mine = {key: each for key, each in self.there[noun].items() if admin or each.get(_OWNER, project) == project}
        if id in ("", "detail"):
            wanted = {key: values[0] for key, values in parse_qs(split.query).items()}
            found = [each for each in mine.values() if wanted.get("volume_id") in (None, each.get("volume_id"))]
            return _said(200, {noun: found})
        if id not in mine:
            return _said(404, {"itemNotFound": {"code": 404, "message": f"{noun} {id} could not be found."}})
        if method == "DELETE":
            gone = self.there[noun].pop(id)
            if noun == "attachments":
                self.there["volumes"][gone["volume_id"]]["status"] = "available"
            return _said(202, {})
        return _said(200, {noun[:-1]: mine[id]})


def _said(status: int, body: Any) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(body).encode()
