"""gunicorn's worker as a thread: it answers, refuses what is no HTTP, and ends what has come in before it stops."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from raksha.cmd.http_thread import HttpThread
from raksha.config_api import ApiSettings
from raksha.errors import SettingsWrong

SETTINGS = replace(ApiSettings(), bind="127.0.0.1:0", threads=2)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"well"]


def test_it_answers_until_it_is_stopped() -> None:
    made = HttpThread(application, SETTINGS)
    made.start()
    port = int(made.url.rpartition(":")[2])
    assert made.url == f"http://127.0.0.1:{port}" and not made.exposed
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for _ in range(2):  # the second on the same connection
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"well"
    connection.close()
    made.stop()
    assert not made.thread.is_alive()
    with socket.socket() as attempt:
        assert attempt.connect_ex(("127.0.0.1", port)) != 0


def test_what_is_no_http_is_told_so_in_json() -> None:
    made = HttpThread(application, SETTINGS)
    made.start()
    port = int(made.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["errors"][0]["status"]) == (400, 400)
    made.stop()


def test_a_request_under_way_is_answered_while_it_stops() -> None:
    reached, go_on = threading.Event(), threading.Event()

    def slow(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        reached.set()
        assert go_on.wait(20)
        return application(environ, start_response)

    made = HttpThread(slow, SETTINGS)
    made.start()
    connection = http.client.HTTPConnection("127.0.0.1", int(made.url.rpartition(":")[2]), timeout=20)
    connection.request("GET", "/")
    assert reached.wait(20)
    stopping = threading.Thread(target=made.stop)
    stopping.start()
    stopping.join(0.3)
    assert stopping.is_alive()
    go_on.set()
    assert connection.getresponse().read() == b"well"
    connection.close()
    stopping.join(20)
    assert not stopping.is_alive()


def test_a_socket_in_the_file_system(tmp_path: Path) -> None:
    made = HttpThread(application, replace(SETTINGS, bind=f"unix:{tmp_path}/api"))
    made.start()
    assert made.url == f"unix:{tmp_path}/api" and not made.exposed
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{tmp_path}/api")
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in connection.recv(1000)
    made.stop()
    assert not (tmp_path / "api").exists()


def test_whether_passwords_can_be_read_on_the_way() -> None:
    made = HttpThread(application, replace(SETTINGS, bind="0.0.0.0:0"))
    made.start()
    assert made.exposed and made.url.startswith("http://127.0.0.1:")
    made.stop()


def test_a_taken_port_is_told_at_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsWrong, match=f"{bind}: .*in use"):
            HttpThread(application, replace(SETTINGS, bind=bind))


def test_with_a_certificate_it_speaks_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=127.0.0.1"
    subprocess.run([*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
                   check=True, capture_output=True)  # fmt: skip
    made = HttpThread(application, replace(SETTINGS, bind="0.0.0.0:0", tls_certificate=cert, tls_key=key))
    made.start()
    assert made.url.startswith("https://127.0.0.1:") and not made.exposed
    with urllib.request.urlopen(made.url, context=ssl.create_default_context(cafile=cert), timeout=20) as answer:
        assert answer.read() == b"well"
    made.stop()


def test_a_certificate_that_is_none_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "cert").write_text("nonsense")
    with pytest.raises(SettingsWrong, match="certificate"):
        HttpThread(application, replace(SETTINGS, tls_certificate=tmp_path / "cert", tls_key=tmp_path / "cert"))
