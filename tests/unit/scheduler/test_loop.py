"""The process's loop: it works, wakes, goes on after faults, and stops when it is told to."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import select

from raksha.config_scheduler import OPTIONS, SchedulerSettings, load
from raksha.db.models import Service
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import SettingsWrong
from raksha.rpc import Bus
from raksha.scheduler.loop import Loop
from raksha.states import ServiceKind, ServiceState
from raksha.wake import SCHEDULERS, WAKE, Wake
from tests.bed.databases import opened
from tests.bed.scheduling import SETTINGS, job_due, runs_of

SAMPLE = Path(__file__).parents[3] / "etc/raksha.conf.sample"
#: nobody waits for the next round of itself
SLOW = replace(SETTINGS, interval=600)


@contextmanager
def running(loop: Loop) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield thread
    finally:
        loop.stop()
        thread.join(30)
        assert not thread.is_alive()


def eventually(done: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.02)


def row(database: Database) -> Service | None:
    with database.reading() as session:
        return session.scalars(select(Service).where(Service.kind == ServiceKind.SCHEDULER)).one_or_none()


def test_it_registers_fires_and_stops(sqlite: Database) -> None:
    sqlite.run(job_due)
    with running(Loop(sqlite, SLOW)):
        eventually(lambda: len(runs_of(sqlite)) == 1)
    found = row(sqlite)
    assert found is not None
    assert (found.name, found.state) == ("scheduler-1", ServiceState.ENABLED)


def test_a_hint_over_the_bus_begins_a_round_at_once(sqlite: Database) -> None:
    bus = Bus("fake://", patience=10)
    try:
        with running(Loop(sqlite, SLOW, bus)):
            eventually(lambda: row(sqlite) is not None)
            time.sleep(0.5)
            sqlite.run(job_due)
            assert bus.to(SCHEDULERS).cast(WAKE, Wake())
            eventually(lambda: len(runs_of(sqlite)) == 1)
    finally:
        bus.close()


def test_a_drained_scheduler_does_nothing_and_says_that_it_lives(sqlite: Database) -> None:
    loop = Loop(sqlite, SETTINGS)
    loop.round()
    before = row(sqlite)
    assert before is not None
    sqlite.run(lambda s: transition(s, Service, before.id, ServiceState.DISABLED))
    sqlite.run(job_due)
    time.sleep(0.01)
    loop.round()
    after = row(sqlite)
    assert after is not None
    assert after.heartbeat_at > before.heartbeat_at
    assert runs_of(sqlite) == []
    sqlite.run(lambda s: transition(s, Service, before.id, ServiceState.ENABLED))
    loop.round()
    assert len(runs_of(sqlite)) == 1


def test_a_database_that_is_away_does_not_end_it(
    sqlite: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sqlite.run(job_due)
    file, away = tmp_path / "raksha.db", tmp_path / "away.db"
    sqlite.close()
    file.rename(away)
    file.mkdir()
    caplog.set_level(logging.ERROR)
    often = replace(SETTINGS, interval=0.1)
    with opened(f"sqlite:///{file}") as later, running(Loop(later, often)) as thread:
        eventually(lambda: "heartbeat" in caplog.text)
        assert thread.is_alive()
        file.rmdir()
        away.rename(file)
        eventually(lambda: len(runs_of(later)) == 1)


def test_its_metrics_are_served_where_a_port_is_set(sqlite: Database) -> None:
    sqlite.run(job_due)
    loop = Loop(sqlite, SETTINGS)
    loop.round()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    end = loop.metrics.serve("127.0.0.1", port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        end()
    assert "raksha_scheduler_fired_total 1.0" in text
    assert 'raksha_scheduler_step_seconds_count{step="dispatch"} 1.0' in text
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


def test_settings_come_from_the_file_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "raksha.conf"
    path.write_text("[scheduler]\nname = one\ninterval = 2\nretries = 7\n")
    assert load(path) == SchedulerSettings(name="one", interval=2, retries=7)
    path.write_text("[scheduler]\nretries = -1\n")
    with pytest.raises(SettingsWrong):
        load(path)


def test_the_sample_shows_every_option_with_its_default(tmp_path: Path) -> None:
    section = SAMPLE.read_text().split("[scheduler]")[1].split("\n[")[0]
    shown = dict(re.findall(r"^#(\w+) = ?(.*)$", section, re.MULTILINE))
    assert set(shown) == {option.name for option in OPTIONS}
    path = tmp_path / "raksha.conf"
    path.write_text("[scheduler]\n" + "".join(f"{name} = {value}\n" for name, value in shown.items() if value))
    assert load(path) == SchedulerSettings(name=socket.gethostname())
