"""An API on a real SQLite database and a real file of users, called in-process through its whole WSGI stack."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from raksha.api import http_basic
from raksha.api.app import NOUNS, create_app
from raksha.api.auth import Authenticator
from raksha.api.delegation import Grantor
from raksha.api.services import Services
from raksha.config_api import ApiSettings, Limits
from raksha.config_database import DatabaseSettings
from raksha.db.models import Base
from raksha.db.session import Database, connect
from raksha.openstack.compute import Servers

PASSWORD = "correct horse"
#: bcrypt's lowest: the tests are not about its slowness
COST = 4
#: who has which role, in which project
USERS = {
    "reader": ("p1", "reader"),
    "member": ("p1", "member"),
    "admin": ("p1", "admin"),
    "stranger": ("p2", "member"),
    "nobody": ("p1", "auditor"),
}
#: a first line for users_file, and one hash for all, since each takes time
HASHED = http_basic.line("x", PASSWORD, "p", "r", COST).split(":")[1]


class Api:
    """Requests as a user, answers as they came."""

    def __init__(self, app: flask.Flask) -> None:
        self.app = app
        self.client: FlaskClient = app.test_client()

    def __call__(self, method: str, path: str, user: str | None = "member", **given: Any) -> TestResponse:
        headers = {**({} if user is None else basic(user)), **given.pop("headers", {})}
        return self.client.open(path, method=method, headers=headers, **given)


def basic(user: str, password: str = PASSWORD) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def write_private(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def error(answer: TestResponse, status: int, code: str) -> str:
    """The detail of an answer that has to be this error, in the form of all errors."""
    assert answer.status_code == status, answer.get_data(as_text=True)
    assert answer.mimetype == "application/json"
    (entry,) = answer.json["errors"]
    assert entry["request_id"] == answer.headers["X-Openstack-Request-Id"]
    assert (entry["status"], entry["code"]) == (status, f"data-protection.{code}")
    assert set(entry) <= {"request_id", "code", "status", "title", "detail", "min_version", "max_version"}
    return str(entry["detail"])


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    lines = (f"{name}:{HASHED}:{project}:{roles}\n" for name, (project, roles) in USERS.items())
    return write_private(tmp_path / "users", "".join(lines))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = connect(DatabaseSettings(f"sqlite:///{tmp_path}/raksha.db"))
    Base.metadata.create_all(made.engine)
    yield made
    made.close()


@pytest.fixture
def make_api(users_file: Path, database: Database) -> Callable[..., Api]:
    def make(
        *nouns: Any,
        authenticator: Authenticator | None = None,
        checks: dict[str, Callable[[], object]] | None = None,
        limits: Limits | None = None,
        wake: Callable[[], object] = lambda: None,
        grantor: Grantor | None = None,
        servers: Servers | None = None,
        **settings: Any,
    ) -> Api:
        who = authenticator or http_basic.HttpBasic(users_file)
        services = Services(database, who, checks or {}, wake, grantor, servers)
        return Api(create_app(ApiSettings(limits=limits or Limits(), **settings), services, (*NOUNS, *nouns)))

    return make


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    """As it is served, with no noun but its own."""
    return make_api()
