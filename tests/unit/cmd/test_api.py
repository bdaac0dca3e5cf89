"""`raksha-api` as a process of its own: what never reaches the application is answered in JSON as well."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha import config_api
from raksha.api.http_basic import line
from raksha.cmd.api import authenticator, make_application
from raksha.config_database import DatabaseSettings
from raksha.db import migrate
from raksha.db.session import connect
from tests.unit.api.conftest import COST, PASSWORD, basic, write_private

PROGRAM = [sys.executable, "-m", "raksha.cmd.api", "--config"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Place:
    """A configuration with all that it names."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.database = f"sqlite:///{directory}/raksha.db"
        self.users = write_private(directory / "users", line("member", PASSWORD, "p1", "member", COST))
        self.config = directory / "raksha.conf"
        self.config.write_text(
            f"[api]\nbind = 127.0.0.1:{self.port}\nusers_file = {self.users}\n"
            f"[database]\nconnection = {self.database}\n"
        )

    def migrate(self) -> None:
        database = connect(DatabaseSettings(self.database))
        migrate.upgrade(database)
        database.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("api"))
    made.migrate()
    return made


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[Place]:
    process = subprocess.Popen([*PROGRAM, place.config], stderr=subprocess.PIPE, text=True)
    try:
        wait_until_it_listens(place.port, process)
        yield place
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in log, log


def wait_until_it_listens(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("raksha-api does not listen")


def raw(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Bytes as they are, and the answer to them."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_it_serves(server: Place) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", "/v1/p1/limits", headers=basic("member"))
    answer = connection.getresponse()
    assert answer.status == 200
    assert json.load(answer)["limits"]["max_jobs"] == 1000
    connection.request("GET", "/healthcheck")
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)) == (200, {"healthy": True})
    connection.close()


CHUNKED = (
    b"POST /v1/p1/schedule-preview HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n"
)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: br, chunked\r\n\r\n", 501),
        (CHUNKED + "Authorization: {}\r\n\r\nzz\r\n".format(basic("member")["Authorization"]).encode(), 400),
        (CHUNKED + "Authorization: {}\r\n\r\n5\r\nab".format(basic("member")["Authorization"]).encode(), 400),
    ],
)
def test_what_is_no_http_is_told_so_in_json(server: Place, request_: bytes, status: int) -> None:
    found, headers, body = raw(server.port, request_)
    assert found == status, body
    assert headers["content-type"] == "application/json"
    (entry,) = json.loads(body)["errors"]
    assert entry["status"] == status
    assert entry["request_id"] == headers["x-openstack-request-id"]


def test_headers_with_underscores_claim_nothing(server: Place) -> None:
    claims = b"X_Identity_Status: Confirmed\r\nX_User_Id: m\r\nX_Project_Id: p1\r\nX_Roles: admin\r\n"
    assert raw(server.port, b"GET /v1/p1/limits HTTP/1.1\r\nHost: x\r\n" + claims + b"\r\n")[0] == 401


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda place: place.users.chmod(0o644), 2, "0600"),
        (lambda place: place.users.unlink(), 2, "cannot be read"),
        (lambda place: place.config.write_text("[api]\nthreads = none\n"), 2, "threads"),
        (lambda place: None, 4, "has schema none"),
    ],
    ids=["open users", "no users", "wrong option", "no schema"],
)
def test_what_cannot_work_is_told_at_the_start(tmp_path: Path, change: object, code: int, says: str) -> None:
    place = Place(tmp_path)
    change(place)  # type: ignore[operator]
    found = subprocess.run([*PROGRAM, place.config], capture_output=True, text=True, timeout=60)
    assert found.returncode == code, found.stderr
    assert found.stderr.startswith("raksha-api: ") and says in found.stderr
    assert "Traceback" not in found.stderr


def test_no_connection_is_open_when_processes_are_forked(place: Place) -> None:
    database = connect(DatabaseSettings(place.database))
    settings = config_api.load(place.config)
    make_application(settings, database, authenticator(settings, place.config)[0])
    assert database.engine.pool.checkedin() == 0  # type: ignore[attr-defined]


def test_the_module_for_other_servers(place: Place) -> None:
    code = (
        "from raksha import config_api, config_database; from pathlib import Path; import sys; "
        "file = Path(sys.argv[1]); config_api.STANDARD_FILE = config_database.STANDARD_FILE = file; "
        "from raksha.cmd.api_wsgi import application; from werkzeug.test import Client; "
        "print(Client(application).get('/v1/').status_code)"
    )
    found = subprocess.run([sys.executable, "-c", code, place.config], capture_output=True, text=True, timeout=60,
                           env={**os.environ, "PYTHONWARNINGS": "error"})  # fmt: skip
    assert found.stdout.strip() == "200", found.stderr
