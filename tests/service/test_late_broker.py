"""Processes that are started before the message broker: they come up, can be stopped, and work once it is there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from raksha.db import migrate
from raksha.db.models import Service
from raksha.db.session import Database
from raksha.states import ServiceKind
from tests.bed import Bed
from tests.bed.databases import opened
from tests.bed.rabbitmq import RabbitMq
from tests.functional.agent_kit import until

pytestmark = pytest.mark.bed

#: seconds after which a process that has nothing to do has ended
GRACE = 30


class Started:
    """A process as operators start it."""

    def __init__(self, name: str, config: Path) -> None:
        self._log = config.with_suffix(f".{name}.log")
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", f"raksha.cmd.{name}", "--config", config]
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(GRACE) == 0, self.log
        assert "Traceback" not in self.log


@contextmanager
def both(bed: Bed, folder: Path, url: str) -> Iterator[tuple[Started, Started]]:
    config = folder / "raksha.conf"
    config.write_text(
        f"[database]\nconnection = sqlite:///{folder}/raksha.db\n"
        f"[scheduler]\nname = scheduler-1\ntransport_url = {url}\n[agent]\nhost = host-a\ntransport_url = {url}\n"
        f"[host]\nstate_dir = {folder}/state\nlibvirt_uri = {bed.host.uri}\n"
    )
    made = Started("scheduler", config), Started("agent", config)
    try:
        yield made
    finally:
        for each in made:
            each.process.kill()
            each.process.wait(30)


def known(database: Database) -> set[str]:
    with database.reading() as session:
        return set(session.scalars(select(Service.kind)))


def test_all_begins_before_the_broker(bed: Bed, tmp_path: Path) -> None:
    broker = RabbitMq(tmp_path)
    broker.prepare()
    with opened(f"sqlite:///{tmp_path}/raksha.db") as database:
        migrate.upgrade(database)
        with both(bed, tmp_path, broker.url) as (scheduler, agent):
            until(lambda: known(database) == {ServiceKind.SCHEDULER}, "the scheduler works without it", 60)
            until(lambda: "the bus is away" in agent.log, "the agent says what it waits for", 60)
            scheduler.stop()
            agent.stop()
            assert "scheduler-1 of raksha-scheduler is not to be heard yet: the bus is away" in scheduler.log
        with both(bed, tmp_path, broker.url) as (scheduler, agent):
            until(lambda: "the bus is away" in agent.log and "the bus is away" in scheduler.log, "both wait", 60)
            broker.start()
            try:
                began = time.monotonic()
                until(lambda: ServiceKind.AGENT in known(database), "the agent has registered", 60)
                assert time.monotonic() - began < 20
                scheduler.stop()
                agent.stop()
            finally:
                broker.stop()
