"""Who a caller is.

An authenticator answers two questions: `identify(request)` who sent it, and `wrap(application)` what has to stand in
front of the application for that. `http_basic` has a file of users. Keystone is a WSGI middleware that checks the
token and tells in headers what it found; so these headers are taken from whatever came in from outside, always and
before anything reads them (`StripIdentity`), and are believed only by the authenticator that brings the middleware.

Not here: what an identity may do (`policy`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import flask
from msgspec import Struct

from raksha.errors import NotAuthenticated, NotScoped

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: what a role contains
_IMPLIED = {"admin": ("member", "reader"), "member": ("reader",)}


class Identity(Struct, frozen=True):
    """A caller who has proven to be one. Always of one project."""

    user_id: str
    project_id: str
    #: with those that they imply
    roles: frozenset[str]
    #: of Keystone, to act in the caller's name; never logged, never stored
    token: str | None = None
    #: what Keystone said of that token: its catalog, too
    access: Any = None

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles

    def __repr__(self) -> str:
        return f"Identity(user_id={self.user_id!r}, project_id={self.project_id!r}, roles={sorted(self.roles)})"


class Authenticator(Protocol):
    """Says who callers are."""

    def wrap(self, application: WSGIApplication) -> WSGIApplication:
        """What has to stand in front of the application, around it."""
        ...

    def identify(self, request: flask.Request) -> Identity:
        """Raises `NotAuthenticated`, `NotScoped`."""
        ...


def with_implied(roles: Iterable[str]) -> frozenset[str]:
    """Roles and those that they contain."""
    given = set(roles)
    return frozenset(given.union(*(_IMPLIED.get(role, ()) for role in given)))


_SAID_BY_MIDDLEWARE = re.compile(
    r"HTTP_(?:X_(?:SERVICE_)?(?:IDENTITY_STATUS|USER|PROJECT|TENANT|DOMAIN|ROLES?|IS_ADMIN_PROJECT|CATALOG)"
    r"|OPENSTACK_SYSTEM_SCOPE)(?:_.*)?",
    re.ASCII,
)


class StripIdentity:
    """Removes headers by which a caller could claim to be somebody. Tokens stay: they prove something."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        for name in [name for name in environ if _SAID_BY_MIDDLEWARE.fullmatch(name)]:
            del environ[name]
        return self._application(environ, start_response)


class Keystone:
    """Believes the middleware that it puts in front: keystonemiddleware's auth_token with `delay_auth_decision`."""

    def __init__(self, middleware: Callable[[WSGIApplication], WSGIApplication], auth_uri: str) -> None:
        self._middleware = middleware
        self._challenge = f'Keystone uri="{auth_uri}"'

    def wrap(self, application: WSGIApplication) -> WSGIApplication:
        return self._middleware(application)

    def identify(self, request: flask.Request) -> Identity:
        headers = request.headers
        user = headers.get("X-User-Id")
        if headers.get("X-Identity-Status") != "Confirmed" or not user:
            raise NotAuthenticated(challenge=self._challenge)
        project = headers.get("X-Project-Id")
        if not project:
            raise NotScoped
        roles = (role.strip().lower() for role in headers.get("X-Roles", "").split(","))
        return Identity(
            user_id=user,
            project_id=project,
            # Keystone has said already what implies what
            roles=frozenset(role for role in roles if role),
            token=headers.get("X-Auth-Token"),
            access=getattr(request.environ.get("keystone.token_auth"), "user", None),
        )
