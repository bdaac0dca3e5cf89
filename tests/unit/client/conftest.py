"""The client against the real API, in-process: requests go through its whole WSGI stack, without a socket."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from keystoneauth1.http_basic import HTTPBasicAuth
from keystoneauth1.session import Session
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from raksha.client import Client
from raksha.db.session import Database
from tests.unit.api import world
from tests.unit.api.conftest import PASSWORD, Api, database, make_api, users_file

__all__ = ["database", "make_api", "users_file"]

URL = "http://api.example"


class Wire(BaseAdapter):
    """To an API; `sent` keeps what went over it, `before` may answer in its place."""

    def __init__(self, api: Api) -> None:
        super().__init__()
        self.api = api
        self.sent: list[requests.PreparedRequest] = []
        self.before: Callable[[requests.PreparedRequest], tuple[int, dict[str, str], bytes] | None] = lambda _: None

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        self.sent.append(request)
        status, headers, data = self.before(request) or self._asked(request)
        response = requests.Response()
        response.status_code, response.request, response.url = status, request, request.url or ""
        response.headers.update(headers)
        response.raw = HTTPResponse(io.BytesIO(data), status=status, headers=headers, preload_content=False)
        return response

    def _asked(self, request: requests.PreparedRequest) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(request.url or "")
        answer = self.api.client.open(
            f"{parts.path}?{parts.query}", method=request.method, headers=dict(request.headers), data=request.body
        )
        return answer.status_code, dict(answer.headers), answer.get_data()

    def close(self) -> None:
        pass


@pytest.fixture
def wire(make_api: Callable[..., Api], database: Database) -> Wire:
    """With VMs to protect, and a vault."""
    world.agents(database)
    world.vault(database)
    return Wire(make_api())


def logged_in(wire: Wire, user: str = "member", password: str = PASSWORD, url: str = URL) -> Session:
    connection = requests.Session()
    connection.mount("http://", wire)
    return Session(HTTPBasicAuth(url, user, password), session=connection)


@pytest.fixture
def client(wire: Wire) -> Client:
    return Client(logged_in(wire), project_id="p1")
