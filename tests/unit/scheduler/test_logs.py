"""What each line of the log is about."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from sqlalchemy import update

from raksha import logs
from raksha.db.models import BackupJob, Task
from raksha.db.session import Database
from raksha.scheduler.loop import Loop
from raksha.scheduler.reap import reap
from raksha.states import BackupKind, RunState
from tests.bed.databases import make_run
from tests.unit.scheduler.service import Service

REQUEST = "req-6f7b0e2c-1111-4222-8333-444455556666"


@pytest.fixture
def lines() -> Iterator[StringIO]:
    """As the processes write them."""
    handler, stream, root = logs.named(), StringIO(), logging.getLogger("raksha")
    handler.setStream(stream)
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def test_a_line_names_what_its_thread_is_at(lines: StringIO) -> None:
    log = logging.getLogger("raksha.x")
    log.info("before")
    with logs.about("t1", "r1", None):
        log.info("within")
        log.info("of another", extra={"backupjobrun": "r2"})
    log.info("after")
    said = [line.split(" raksha.x ")[1] for line in lines.getvalue().splitlines()]
    assert said == ["[- - -] before", "[t1 r1 -] within", "[t1 r2 -] of another", "[- - -] after"]


def requested(service: Service) -> str:
    """A run that somebody asked for."""
    service.agent().have("web", clusters=2)
    job, full = service.job("web"), {"kind": BackupKind.FULL, "request_id": REQUEST}
    return service.database.run(lambda s: make_run(s, s.get_one(BackupJob, job), **full).id)


def test_a_scheduler_names_run_and_request(sqlite: Database, tmp_path: Path, lines: StringIO) -> None:
    service = Service(sqlite, tmp_path)
    id = requested(service)
    service.round()
    service.agents[0].work()
    service.round()
    assert service.run_row(id).state == RunState.COMMITTING
    loop = Loop(sqlite, service.settings)
    loop._commit_one(id)
    about = f"[- {id} {REQUEST}]"
    said = [line for line in lines.getvalue().splitlines() if id in line]
    moves = [line.partition(f"{about} ")[2] for line in said if "raksha.scheduler.advance" in line]
    assert moves == ["the run is committing"]
    assert any(f"{about} run {id} is restore point 1" in line for line in said)
    assert all(about in line for line in said), said


def test_a_lost_task_is_named_with_its_run_and_request(
    sqlite: Database,
    tmp_path: Path,
    lines: StringIO,
) -> None:
    service = Service(sqlite, tmp_path)
    id = requested(service)
    service.round()
    (task,) = service.agents[0].claim()
    sqlite.run(lambda s: s.execute(update(Task).values(lease_until=1)) and None)
    reap(sqlite, service.settings)
    (line,) = [line for line in lines.getvalue().splitlines() if "its agent is lost" in line]
    assert f"[{task.task_id} {id} {REQUEST}] backup on host-a" in line
