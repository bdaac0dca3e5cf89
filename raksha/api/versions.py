"""Version discovery, and the microversion of each request.

    OpenStack-API-Version: data-protection 1.0        absent: the lowest; `latest`: the highest

A microversion is raised by any change that a client can notice. docs/api.md has their history. A view that differs
between them asks `negotiated()`.
"""

from __future__ import annotations

import re
from typing import Any

import flask
from msgspec import Struct

from raksha.api.errors import SERVICE_TYPE, shown
from raksha.errors import RequestInvalid, VersionNotServed

HEADER = "OpenStack-API-Version"


class Version(Struct, frozen=True, order=True):
    """Compares as numbers: 1.10 is above 1.9."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


MINIMUM = Version(1, 0)
MAXIMUM = Version(1, 0)

_WELL_FORMED = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})", re.ASCII)


def negotiate() -> None:
    """Settle the version of this request. Raises `RequestInvalid`, `VersionNotServed`."""
    flask.g.version = MINIMUM
    flask.g.version = asked(",".join(flask.request.headers.getlist(HEADER)))


def asked(header: str) -> Version:
    """What the header wants of this service; it may name others beside. The last one counts."""
    wanted = MINIMUM
    for part in header.split(","):
        service, _, text = part.strip().partition(" ")
        if service.lower() == SERVICE_TYPE:
            wanted = _version(text.strip())
    return wanted


def _version(text: str) -> Version:
    if text == "latest":
        return MAXIMUM
    found = _WELL_FORMED.fullmatch(text)
    if found is None:
        raise RequestInvalid(problems=[(HEADER, f"{shown(text)!r} is no version: X.Y or latest")])
    version = Version(int(found[1]), int(found[2]))
    if not MINIMUM <= version <= MAXIMUM:
        raise VersionNotServed(version=str(version), minimum=str(MINIMUM), maximum=str(MAXIMUM))
    return version


def negotiated() -> Version:
    """The version of this request; the lowest where none was settled."""
    version: Version = flask.g.get("version", MINIMUM)
    return version


def announce(response: flask.Response) -> flask.Response:
    """Every answer says its version, and that caches must tell versions apart."""
    response.headers[HEADER] = f"{SERVICE_TYPE} {negotiated()}"
    response.vary.add(HEADER)
    return response


def document(endpoint: str) -> dict[str, Any]:
    """What v1 is. `endpoint`: URL of the API, without a slash at its end."""
    return {
        "id": "v1.0",
        "status": "CURRENT",
        "min_version": str(MINIMUM),
        "version": str(MAXIMUM),
        "max_version": str(MAXIMUM),
        "links": [{"rel": "self", "href": f"{endpoint}/v1/"}],
    }
