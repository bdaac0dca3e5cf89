"""Notifications over a real RabbitMQ, as another service of a cloud hears them: by a listener of oslo.messaging."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import msgspec
import pytest
from oslo_config import cfg
from sqlalchemy.orm import Session

from raksha import rpc
from raksha.api.http_basic import line
from raksha.config_database import DatabaseSettings
from raksha.config_notifications import NotificationSettings
from raksha.db import jobs, migrate, outbox, restores, runs
from raksha.db.session import Database, connect
from raksha.errors import BusUnavailable, TrustBroken
from raksha.notifications import RECORDS
from raksha.rpc import Notice, Notices
from raksha.scheduler import restore_start
from raksha.scheduler.access import Access
from raksha.scheduler.deleting import remove_jobs
from raksha.scheduler.notifying import Notifying
from raksha.states import TaskKind
from raksha.tasks import Restored
from tests.bed.rabbitmq import RabbitMq
from tests.bed.swift import free_ports
from tests.unit.api import world
from tests.unit.api.conftest import COST, PASSWORD, basic, write_private
from tests.unit.cmd.test_api import wait_until_it_listens
from tests.unit.scheduler.service import Service
from tests.unit.scheduler.test_access import Keystone

ON = NotificationSettings(enabled=True)
#: imported by itself, before that module, it would look for eventlet
oslo_messaging = rpc.oslo_messaging


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    made = RabbitMq(tmp_path_factory.mktemp("rabbit"))
    made.prepare()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def noting(tmp_path: Path) -> Iterator[Database]:
    made = connect(DatabaseSettings(f"sqlite:///{tmp_path}/raksha.db"), notify=True)
    migrate.upgrade(made)
    yield made
    made.close()


class Listener:
    """What came, by queue, without what was there before (`message_id`)."""

    def __init__(self) -> None:
        self.heard: dict[str, list[tuple[str, dict[str, Any]]]] = {"info": [], "error": []}
        self.twice = 0
        self._ids: set[str] = set()

    def info(self, _ctxt: Any, _publisher: str, event: str, payload: Any, about: Any) -> None:
        self._note("info", event, payload, about)

    def error(self, _ctxt: Any, _publisher: str, event: str, payload: Any, about: Any) -> None:
        self._note("error", event, payload, about)

    def _note(self, queue: str, event: str, payload: dict[str, Any], about: dict[str, str]) -> None:
        kind = RECORDS[event.split(".")[1]]
        assert msgspec.to_builtins(msgspec.convert(payload, kind)) == payload
        if about["message_id"] in self._ids:
            self.twice += 1
            return
        self._ids.add(about["message_id"])
        self.heard[queue].append((event.removeprefix("raksha."), payload))

    def said(self, queue: str) -> list[str]:
        return [event for event, _ in self.heard[queue]]


@contextmanager
def listening(url: str, topic: str) -> Iterator[Listener]:
    endpoint = Listener()
    transport = oslo_messaging.get_notification_transport(cfg.CONF, url=url)
    targets = [oslo_messaging.Target(topic=topic)]
    server = oslo_messaging.get_notification_listener(transport, targets, [endpoint], executor="threading")
    server.start()
    try:
        yield endpoint
    finally:
        server.stop()
        server.wait()
        transport.cleanup()


def until(done: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_life_of_a_job_is_heard_in_order(noting: Database, tmp_path: Path, broker: RabbitMq) -> None:
    keystone = Keystone()
    service = Service(noting, tmp_path, access=Access(keystone))  # type: ignore[arg-type]
    agent = service.agent()
    agent.have("vm-1", clusters=2)
    notices = Notices(broker.url, ["life"])
    sender = Notifying(noting, ON, notices.send, "one", interval=0.1)
    with listening(broker.url, "life") as listener, sender:
        job = service.job("vm-1", trust_id="trust-1")
        point = service.backup(job)
        _restore(service, point)
        service.delete(point)
        keystone.fault = TrustBroken(detail="Unauthorized (401)")
        service.queue(job)
        service.round()
        keystone.fault = None

        def take_over(session: Session) -> None:
            jobs.take_over(session, job, jobs.get(session, None, job).version, user_id="ben", trust_id="trust-2")
            jobs.begin_deleting(session, job)

        noting.run(take_over)
        agent.work()
        service.go_on_deleting()
        remove_jobs(noting, access=service.access)
        until(lambda: "backupjob.delete" in listener.said("info"))
    notices.close()
    assert listener.said("info") == [
        "backupjob.create", "backupjobrun.start", "backupjobrun.end", "restore.start", "restore.end",
        "backupjobrun.delete", "backupjob.take_over", "backupjob.update", "backupjobrun.delete", "backupjob.delete",
    ]  # fmt: skip
    assert listener.said("error") == ["backupjobrun.error", "backupjob.suspend"]
    suspended = listener.heard["error"][1][1]
    assert suspended["reason"]["code"] == "trust_broken" and suspended["id"] == job
    ended = listener.heard["info"][2][1]
    assert ended["id"] == point and ended["bytes_stored"] > 0 and ended["vms"][0]["state"] == "stored"
    assert "trust-" not in str(listener.heard) and listener.twice == 0


def _restore(service: Service, point: str) -> None:
    vm = {"vm": "vm-1", "disks": [], "name": "again"}
    target = {"kind": "domain", "directory": None, "format": None, "start": False, "host": None, "vms": [vm]}
    service.database.run(lambda s: restores.create(s, runs.get(s, None, point), target=target))
    restore_start.start(service.database, service.settings)
    (agent,) = service.agents
    (task,) = agent.claim(kinds=[TaskKind.RESTORE])
    agent.finish(task, Restored(vm="uuid", name="again"))


def test_while_the_bus_is_away_it_waits_and_nothing_else_does(noting: Database, tmp_path: Path) -> None:
    broker = RabbitMq(tmp_path)
    broker.prepare()
    notices = Notices(broker.url, ["notifications", "billing"])
    service = Service(noting, tmp_path)
    agent = service.agent()
    agent.have("vm-1", clusters=2)
    try:
        with Notifying(noting, ON, notices.send, "one", interval=0.1):
            # from before the start of the process
            job = service.job("vm-1")
            service.backup(job)
            broker.start()
            until(lambda: not _waits(noting))
            found = ["raksha.backupjob.create", "raksha.backupjobrun.start", "raksha.backupjobrun.end"]
            for queue in ("notifications.info", "billing.info"):
                assert [message["event_type"] for message in _drained(broker, queue)] == found
            broker.kill()
            second = service.backup(job)
            time.sleep(1)
            assert _waits(noting)
            broker.start()
            until(lambda: not _waits(noting))
            came = {message["message_id"]: message for message in _drained(broker, "notifications.info")}
            assert [message["event_type"] for message in came.values()] == found[1:]
            assert {message["payload"]["id"] for message in came.values()} == {second}
    finally:
        broker.stop()


def _waits(database: Database) -> bool:
    with database.reading() as session:
        return outbox.waits(session)


def _drained(broker: RabbitMq, queue: str) -> list[dict[str, Any]]:
    """What stands in a queue: that nobody listened when it came is no loss."""
    found = []
    with kombu.Connection(broker.url.replace("rabbit://", "amqp://")) as connection:
        channel = connection.channel()
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            found.append(json.loads(json.loads(message.body)["oslo.message"]))
    return found


def test_a_broker_that_stands_still_is_told_as_away_or_waited_for_by_nobody_else(
    noting: Database, tmp_path: Path
) -> None:
    """Its connections are open, and nothing comes back: the end of the process does not wait."""
    (port,) = free_ports(1)
    silent = subprocess.Popen(
        [sys.executable, "-c", f"import socket,time; s=socket.create_server(('127.0.0.1',{port})); time.sleep(600)"]
    )
    try:
        notices = Notices(f"rabbit://raksha:secret@127.0.0.1:{port}/", ["notifications"])
        with Notifying(noting, ON, notices.send, "one", interval=0.1):
            time.sleep(1)
            began = time.monotonic()
            Service(noting, tmp_path).job("vm-1")
            assert time.monotonic() - began < 5
            time.sleep(1)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        assert _waits(noting)
    finally:
        silent.send_signal(signal.SIGKILL)
        silent.wait(30)


def test_a_message_that_the_broker_refuses_is_not_taken_as_sent(broker: RabbitMq) -> None:
    """The queue is there already, of another kind: what listens must agree with who sends."""
    with kombu.Connection(broker.url.replace("rabbit://", "amqp://")) as connection:
        kombu.Queue(
            "odd.info", durable=True, queue_arguments={"x-max-length": 1}, channel=connection.channel()
        ).declare()
        notice = Notice("id", "raksha.one", "raksha.backupjob.create", "INFO", {}, "2026-01-01 00:00:00.000000")
        notices = Notices(broker.url, ["odd"])
        with pytest.raises(BusUnavailable, match="PRECONDITION_FAILED"):
            notices.send(notice)
        notices.close()


# -- the processes ------------------------------------------------------------------------------------


@contextmanager
def processes(directory: Path, url: str) -> Iterator[int]:
    """An API and a scheduler, as operators configure them. The API's port."""
    (port,) = free_ports(1)
    settings = DatabaseSettings(f"sqlite:///{directory}/raksha.db")
    database = connect(settings)
    migrate.upgrade(database)
    world.agents(database)
    database.close()
    users = write_private(directory / "users", line("member", PASSWORD, "p1", "member", COST))
    config = directory / "raksha.conf"
    config.write_text(
        f"[api]\nbind = 127.0.0.1:{port}\nusers_file = {users}\n[database]\nconnection = {settings.connection}\n"
        f"[scheduler]\nname = scheduler-1\ninterval = 0.5\ntransport_url = {url}\n"
        "[notifications]\nenabled = true\ntopics = processes\n"
    )
    started: list[subprocess.Popen[bytes]] = []
    with (directory / "log").open("wb") as log:
        for name in ("api", "scheduler"):
            command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", f"raksha.cmd.{name}", "--config", config]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        try:
            wait_until_it_listens(port, started[0])  # type: ignore[arg-type]
            yield port
        finally:
            for process in started:
                process.send_signal(signal.SIGTERM)
            codes = [process.wait(60) for process in started]
    said = (directory / "log").read_text()
    assert codes == [0, 0] and "Traceback" not in said, said


def _ask(port: int, method: str, path: str, body: object = None, **headers: str) -> tuple[Any, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    given = {**basic("member"), "Content-Type": "application/json", **headers} if body else basic("member")
    connection.request(method, path, json.dumps(body) if body else None, given)
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status < 300, text
    connection.close()
    return (json.loads(text) if text else None), answer.getheader("ETag")


def test_what_is_asked_of_the_api_is_heard(tmp_path: Path, broker: RabbitMq) -> None:
    jobs_ = "/v1/p1/backupjobs"
    with listening(broker.url, "processes") as listener, processes(tmp_path, broker.url) as port:
        job, etag = _ask(port, "POST", jobs_, {"name": "nightly", "vms": [{"id": world.WEB}]})
        for enabled in (False, True):
            _, etag = _ask(port, "PUT", f"{jobs_}/{job['id']}", {"enabled": enabled}, **{"If-Match": str(etag)})
        _ask(port, "DELETE", f"{jobs_}/{job['id']}")
        until(lambda: "backupjob.delete" in listener.said("info"))
    assert listener.said("info") == [
        f"backupjob.{what}"
        for what in ("create", "update", "pause", "update", "resume", "update", "delete")
    ]  # fmt: skip
    assert listener.said("error") == []
    assert {payload["user_id"] for _, payload in listener.heard["info"]} == {"member"}
