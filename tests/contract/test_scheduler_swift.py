"""The scheduler's work on a vault, on a real Swift: commits, a point that goes, garbage."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from raksha.db import migrate
from raksha.db.session import Database
from raksha.states import BackupKind
from raksha.vault.address import open_store
from raksha.vault.store import SEGMENTS
from tests.bed.databases import opened
from tests.bed.swift import SwiftBed
from tests.unit.scheduler.service import Service


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    with opened(f"sqlite:///{tmp_path}/raksha.db") as database:
        migrate.upgrade(database)
        yield database


def test_points_are_made_go_and_leave_no_garbage(
    sqlite: Database, tmp_path: Path, swift: SwiftBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in swift.env.items():
        monkeypatch.setenv(name, value)
    service = Service(sqlite, tmp_path, swift=f"t{uuid.uuid4().hex[:12]}")
    agent = service.agent()
    agent.have("web", "vda", "vdb", clusters=70)
    job = service.job("web")
    made = [service.backup(job, BackupKind.FULL)]
    for number in range(2):
        agent.write("web", number, seed=number)
        made.append(service.backup(job))
    service.check(job, *made)
    before = segments(service)
    service.delete(made[0])
    service.go_on_deleting()
    assert not is_there(service, made[0])
    assert is_there(service, made[1])
    done = service.collect()
    assert done is not None
    # tables of images that build on others, and what was overwritten since; not the tables that took their place
    assert done.segments == len(before - segments(service)) > 0
    service.check(job, *made[1:])
    agent.write("web", 3)
    made.append(service.backup(job))
    service.check(job, *made[1:])


def segments(service: Service) -> set[str]:
    with closing(open_store(service.url)) as store:
        return set(store.names(SEGMENTS))


def is_there(service: Service, run_id: str) -> bool:
    with closing(open_store(service.url)) as store:
        return any(f"/{run_id}/" in name for name in store.names("backupjobs"))
