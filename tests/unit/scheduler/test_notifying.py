"""Notifications that wait are sent in their order, removed when the bus has them, and hold up nobody."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy.orm import Session

from raksha.cmd import embedded, scheduler
from raksha.config_database import DatabaseSettings
from raksha.config_notifications import NotificationSettings
from raksha.db import jobs, migrate, outbox
from raksha.db.models import BackupJob
from raksha.db.session import Database, connect
from raksha.db.transition import transition
from raksha.errors import BusFailed, BusUnavailable, DatabaseUnavailable, SettingsWrong
from raksha.rpc import Notice, Notices
from raksha.scheduler.notifying import Notifying
from raksha.states import JobState
from tests.bed.databases import make_job
from tests.unit.scheduler.test_loop import eventually

ON = NotificationSettings(enabled=True)


@pytest.fixture
def noting(tmp_path: Path) -> Iterator[Database]:
    made = connect(DatabaseSettings(f"sqlite:///{tmp_path}/raksha.db"), notify=True)
    migrate.upgrade(made)
    yield made
    made.close()


class Bus:
    """Takes what it is given, as long as it is there; `most`: so many."""

    def __init__(self) -> None:
        self.heard: list[Notice] = []
        self.away = False
        self.most = 10**6

    def __call__(self, notice: Notice) -> None:
        if self.away or len(self.heard) >= self.most:
            raise BusUnavailable(verb="notify", detail="the bus is away")
        self.heard.append(notice)

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(notice.event_type.rpartition(".")[2], notice.payload["name"]) for notice in self.heard]


def waits(database: Database) -> bool:
    with database.reading() as session:
        return outbox.waits(session)


def test_in_order_and_once(noting: Database) -> None:
    bus = Bus()
    sender = Notifying(noting, ON, bus, "one")
    assert sender.send_all() == 0
    # more than are sent under one lease
    for n in range(150):
        noting.run(lambda s, n=n: make_job(s, f"job {n}"))
    assert sender.send_all() == 150
    assert bus.said == [("create", f"job {n}") for n in range(150)]
    assert len({notice.message_id for notice in bus.heard}) == 150
    assert {(notice.publisher_id, notice.priority) for notice in bus.heard} == {("raksha.one", "INFO")}
    made, told = bus.heard[0].payload["created_at"].rstrip("Z"), bus.heard[0].timestamp
    assert abs(datetime.fromisoformat(told) - datetime.fromisoformat(made)).total_seconds() < 60
    assert not waits(noting) and sender.send_all() == 0


def test_a_suspended_job_is_an_error(noting: Database) -> None:
    bus = Bus()
    job = noting.run(make_job).id
    reason = {"code": "trust_broken", "message": "gone"}
    noting.run(lambda s: transition(s, BackupJob, job, JobState.SUSPENDED, state_reason=reason))
    Notifying(noting, ON, bus, "one").send_all()
    assert [(notice.event_type, notice.priority) for notice in bus.heard] == [
        ("raksha.backupjob.create", "INFO"), ("raksha.backupjob.suspend", "ERROR"),
    ]  # fmt: skip


def test_a_bus_that_is_away_is_waited_for_and_logged_once(noting: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bus = Bus()
    bus.most = 2
    sender = Notifying(noting, ON, bus, "one")
    for name in "abcd":
        noting.run(lambda s, name=name: make_job(s, name))
    assert [sender.send_all() for _ in range(4)] == [2, 0, 0, 0]
    assert [line.getMessage() for line in caplog.records] == ["notifications wait: the bus is away"]
    bus.most = 10
    # and anybody may go on, at once
    assert Notifying(noting, ON, bus, "two").send_all() == 2
    assert bus.said == [("create", name) for name in "abcd"]
    noting.run(lambda s: make_job(s, "e"))
    sender.send_all()
    assert caplog.messages[1:] == ["notifications are sent again"]


def test_who_dies_before_it_is_removed_has_it_sent_again_with_the_same_id(noting: Database) -> None:
    noting.run(lambda s: make_job(s, "a"))
    first, second = Bus(), Bus()

    def dies(notice: Notice) -> None:
        first(notice)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Notifying(noting, ON, dies, "one").send_all()
    noting.run(lambda s: make_job(s, "b"))
    other = Notifying(noting, ON, second, "two")
    assert other.send_all() == 0, "the lease of the dead one"
    with noting.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE notifications SET lease_until = 0")
    assert other.send_all() == 2
    assert second.said == [("create", "a"), ("create", "b")]
    assert second.heard[0].message_id == first.heard[0].message_id


def test_two_that_send_together_leave_out_nothing_and_keep_the_order(noting: Database) -> None:
    """Even where a lease ended under a slow one: what arrives for the first time arrives in order."""
    heard: list[tuple[str, str]] = []
    lock = threading.Lock()

    def slowly(notice: Notice) -> None:
        with lock:
            heard.append((notice.message_id, notice.payload["name"]))
        time.sleep(0.002)

    def change(n: int) -> None:
        noting.run(lambda s: jobs.change(s, job, n + 1, name=f"{n:03}"))

    job = noting.run(lambda s: make_job(s, "-")).id
    senders = [Notifying(noting, ON, slowly, name, interval=0.001) for name in ("one", "two")]
    with senders[0], senders[1]:
        for n in range(60):
            change(n)
            with noting.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE notifications SET lease_until = 0")
        eventually(lambda: not waits(noting))
    names = [name for _, name in dict(heard).items()]
    assert names == ["-", *(f"{n:03}" for n in range(60))]


def test_what_waited_too_long_is_dropped_and_said(noting: Database, caplog: pytest.LogCaptureFixture) -> None:
    noting.run(make_job)
    bus = Bus()
    assert Notifying(noting, replace(ON, keep=-1), bus, "one").send_all() == 0
    assert bus.heard == [] and not waits(noting)
    assert "1 notifications could not be sent in time" in caplog.text


def test_the_end_waits_for_no_bus(noting: Database) -> None:
    noting.run(make_job)
    began, over = threading.Event(), threading.Event()

    def stands_still(_notice: Notice) -> None:
        began.set()
        over.wait(60)

    with Notifying(noting, ON, stands_still, "one"):
        assert began.wait(20)
        # nobody else is held up
        since = time.monotonic()
        noting.run(lambda s: make_job(s, "another"))
    assert time.monotonic() - since < 10
    over.set()
    eventually(lambda: not any(thread.name == "notifying" for thread in threading.enumerate()))
    assert waits(noting)


def test_a_database_that_is_away_is_waited_for_and_logged_once(
    noting: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bus, looked, there = Bus(), [0], noting.reading

    def away() -> AbstractContextManager[Session]:
        looked[0] += 1
        if looked[0] < 5:
            raise DatabaseUnavailable(detail="gone")
        return there()

    noting.run(make_job)
    monkeypatch.setattr(noting, "reading", away)
    with Notifying(noting, ON, bus, "one", interval=0.01):
        eventually(lambda: len(bus.heard) == 1)
    assert caplog.text.count("gone") == 1


def test_what_the_scheduler_reads(tmp_path: Path) -> None:
    config = tmp_path / "raksha.conf"
    config.write_text("[notifications]\nenabled = true\n")
    with pytest.raises(SettingsWrong, match="needs a transport_url"):
        scheduler.notifications(config)
    asked = embedded.Asked(state_dir=tmp_path, bind=None, vault=None, connect=None, config=config)
    with pytest.raises(SettingsWrong, match=r"\[notifications\] enabled is for a service of several processes"):
        embedded.settings(asked)
    config.write_text("[notifications]\nenabled = true\n[scheduler]\ntransport_url = rabbit://a/\n")
    assert scheduler.notifications(config) == NotificationSettings(enabled=True, transport_url="rabbit://a/")
    config.write_text("[notifications]\ntransport_url = rabbit://b/\n[scheduler]\ntransport_url = rabbit://a/\n")
    assert scheduler.notifications(config) == NotificationSettings(transport_url="rabbit://b/")


def test_an_address_that_is_none() -> None:
    with pytest.raises(BusFailed, match="cannot be used"):
        Notices("nonsense://x", ["notifications"])
