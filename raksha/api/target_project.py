"""Another project of the caller's that a restore goes into.

    {"target": {"kind": "server", "project": "ID"}}     and, as X-Raksha-Target-Token, a token scoped to that project

Two tokens, one user: the request's own says what may be read, this one what may be made, and where. Keystone is asked
about it with itself. By it a trust is made, which the restore keeps until it has ended; the token is neither stored nor
logged, and no part of an answer or an error. What the policy asks of who restores, it asks there, too.

What is made there is that project's affair: to others of the source's project `raksha.api.restores` does not show it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flask
from msgspec import Struct

from raksha.api.auth import Identity
from raksha.api.services import frame, identity, services
from raksha.errors import NotAllowed, RequestInvalid, TargetTokenRefused

HEADER = "X-Raksha-Target-Token"
#: for the OpenAPI document
PARAMETER = {
    "in": "header",
    "name": HEADER,
    "schema": {"type": "string"},
    "description": "With `target.project`: a token of the same user, scoped to that project. Never stored",
}
#: a header that is none cannot be sent on
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}", re.ASCII)
#: whose rule it is, in both projects
_RULE = "backupjobruns:restore"
_MEMBER = "member"


class Target(Struct, frozen=True):
    """A project that the caller may restore into."""

    project_id: str
    #: as that project's; never logged, never stored
    token: str
    #: what Keystone says of that token: its catalog, too
    access: Any

    def __repr__(self) -> str:
        return f"Target({self.project_id!r})"


def of(tenant_id: str, body: Mapping[str, Any]) -> Target | None:
    """None: it goes into the project that it comes from. Raises `RequestInvalid`, `TargetTokenRefused`, `NotAllowed`,
    `IdentityUnavailable`."""
    wanted: str | None = body["target"].get("project")
    token = flask.request.headers.get(HEADER)
    if wanted is None:
        if token is not None:
            raise RequestInvalid(problems=[(HEADER, "It goes with target.project, which is not there.")])
        return None
    grantor = services().grantor
    if grantor is None:
        raise RequestInvalid(problems=[("target.project", "Without Keystone a service has no other project for you.")])
    if wanted == tenant_id:
        raise RequestInvalid(problems=[("target.project", "It comes from there: leave this out.")])
    if token is None:
        raise RequestInvalid(problems=[(HEADER, "A token of yours for the target project has to be here.")])
    if not _TOKEN.fullmatch(token):
        raise TargetTokenRefused(detail="Keystone does not know it")
    access = grantor.access(token)
    _require_same_user(access)
    if access.project_id != wanted:
        raise TargetTokenRefused(detail="it is not scoped to the project that target.project names")
    _require_roles(access)
    return Target(wanted, token, access)


def _require_same_user(access: Any) -> None:
    who = identity()
    mine = [(who.user_id, access.user_id)]
    if who.access is not None:
        mine.append((who.access.user_domain_id, access.user_domain_id))
    if any(one != other for one, other in mine):
        raise TargetTokenRefused(detail="it is another user's than the request's own")


def _require_roles(access: Any) -> None:
    """Keystone has said already what implies what."""
    roles = frozenset(role.lower() for role in access.role_names)
    if _MEMBER not in roles:
        raise TargetTokenRefused(detail=f"its user has not the role {_MEMBER} there")
    there = Identity(access.user_id, access.project_id, roles)
    if not frame().policy.allows(_RULE, there, access.project_id):
        raise NotAllowed(rule=_RULE)
