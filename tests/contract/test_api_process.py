"""`raksha-api` as several processes on a real message bus: its hints are heard, its metrics are those of all."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raksha.api.http_basic import line
from raksha.config_database import DatabaseSettings
from raksha.db import migrate
from raksha.db.session import connect
from raksha.rpc import Bus
from raksha.wake import SCHEDULERS, WAKE
from tests.bed.rabbitmq import RabbitMq
from tests.bed.swift import free_ports
from tests.unit.api import world
from tests.unit.api.conftest import COST, PASSWORD, basic, write_private
from tests.unit.cmd.test_api import wait_until_it_listens

WRITTEN = {"name": "nightly", "vms": [{"id": world.WEB}]}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    made = RabbitMq(tmp_path_factory.mktemp("rabbit"))
    made.prepare()
    made.start()
    yield made
    made.stop()


@contextmanager
def served(directory: Path, transport_url: str) -> Iterator[int]:
    """The port of an API of two processes, on a database with VMs to protect."""
    (port,) = free_ports(1)
    settings = DatabaseSettings(f"sqlite:///{directory}/raksha.db")
    database = connect(settings)
    migrate.upgrade(database)
    world.agents(database)
    database.close()
    users = write_private(directory / "users", line("member", PASSWORD, "p1", "member", COST))
    config = directory / "raksha.conf"
    config.write_text(
        f"[api]\nbind = 127.0.0.1:{port}\nusers_file = {users}\nworkers = 2\nmetrics = everybody\n"
        f"[database]\nconnection = {settings.connection}\n[scheduler]\ntransport_url = {transport_url}\n"
    )
    process = subprocess.Popen([sys.executable, "-m", "raksha.cmd.api", "--config", config],
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        wait_until_it_listens(port, process)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert "Traceback" not in log, log


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {**basic("member"), "Content-Type": "application/json"} if body is not None else basic("member")
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_schedulers_hear_of_what_is_new(tmp_path: Path, broker: RabbitMq) -> None:
    heard = threading.Event()
    bus = Bus(broker.url)
    try:
        with bus.serve(SCHEDULERS, "one", {WAKE: lambda hint: heard.set()}), served(tmp_path, broker.url) as port:
            for _ in range(4):  # whichever process answers
                status, body = ask(port, "POST", "/v1/p1/backupjobs", WRITTEN)
                assert status == 201, body
                assert heard.wait(20)
                heard.clear()
                time.sleep(0.3)
                heard.clear()
    finally:
        bus.close()


def test_a_bus_that_is_away_holds_nothing_up_and_metrics_are_those_of_all(tmp_path: Path) -> None:
    (nobody,) = free_ports(1)
    with served(tmp_path, f"rabbit://raksha:secret@127.0.0.1:{nobody}/") as port:
        took = []
        for _ in range(20):
            began = time.monotonic()
            assert ask(port, "POST", "/v1/p1/backupjobs", WRITTEN)[0] == 201
            took.append(time.monotonic() - began)
        assert sorted(took)[10] < 1
        for _ in range(3):
            text = ask(port, "GET", "/metrics")[1].decode()
            labels = 'method="POST",route="/v1/{tenant_id}/backupjobs",status="201"'
            values = re.findall(rf"^raksha_api_requests_total{{{re.escape(labels)}}} (\S+)$", text, re.MULTILINE)
            assert [float(value) for value in values] == [20.0]
