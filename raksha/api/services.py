"""What the views are given: settings and services, passed to the application when it is made. No globals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import flask
from msgspec import Struct

from raksha.api.auth import Authenticator, Identity
from raksha.api.policy import Policy
from raksha.config_api import ApiSettings
from raksha.db.session import Database

if TYPE_CHECKING:
    from raksha.api.delegation import Grantor
    from raksha.openstack.compute import Servers

_KEY = "raksha"


class Services(Struct, frozen=True):
    """Made at the entry point, used by all threads."""

    database: Database
    authenticator: Authenticator
    #: what `/healthcheck` asks, by name: each raises a `RakshaError` if something is not as it should be
    checks: Mapping[str, Callable[[], object]]
    #: tells schedulers that there is something to look at; never waits, never fails
    wake: Callable[[], object] = lambda: None
    #: makes trusts for jobs; None: they act as the service
    grantor: Grantor | None = None
    #: asks Nova with tokens of callers; None: there is no cloud
    servers: Servers | None = None


class Frame(Struct, frozen=True):
    """What belongs to one application."""

    settings: ApiSettings
    services: Services
    policy: Policy


def attach(app: flask.Flask, frame: Frame) -> None:
    app.extensions[_KEY] = frame


def frame() -> Frame:
    return cast(Frame, flask.current_app.extensions[_KEY])


def settings() -> ApiSettings:
    return frame().settings


def services() -> Services:
    return frame().services


def identity() -> Identity:
    """Of the caller. Only in views that have a rule."""
    return cast(Identity, flask.g.identity)
