"""A long walk in no particular order: backups of two jobs that share VMs, deletions, readers, collections, and deaths
at any step. After each step every restore point, and whatever somebody reads, restores from the vault alone.
WALK_STEPS and WALK_SEEDS make it longer."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select, update

from raksha.db import backups, runs
from raksha.db.models import Task, Vault, VmResourceBackup
from raksha.db.session import Database
from raksha.errors import StateConflict
from raksha.scheduler.housekeeping import tidy
from raksha.scheduler.reap import reap
from raksha.states import BackupKind, PinHolder, RunState, TaskKind
from tests.bed.scheduling import runs_of
from tests.unit.scheduler.service import Killed, Points, Service

STEPS = int(os.environ.get("WALK_STEPS", "40"))


class Walk:
    def __init__(self, service: Service, points: Points, seed: int) -> None:
        self.service = service
        self.points = points
        self.random = random.Random(seed)
        self.agent = service.agent()
        self.agent.have("web", "vda", "vdb", clusters=4)
        self.agent.have("db", clusters=3)
        both = service.job("web", "db", name="both", consistency_group=False)
        self.jobs = [both, service.job("web", name="web alone")]
        #: runs that somebody reads, by reader
        self.readers: dict[str, str] = {}
        self.deaths = 0
        self.backup()

    def step(self) -> str:
        does = self.random.choices(
            [self.backup, self.delete, self.read, self.end_reading, self.collect, self.go_on], [6, 3, 2, 2, 3, 2]
        )[0]
        does()
        self.points.arm(None)
        self.check()
        return does.__name__

    def perhaps_dies(self, work: Callable[[], object]) -> None:
        self.points.arm(self.random.randrange(25) if self.random.random() < 0.8 else None)
        try:
            work()
        except Killed:
            self.deaths += 1
        self.points.arm(None)

    def backup(self) -> None:
        service = self.service
        self.agent.write(*self.random.choice([("web", 1), ("web", 3), ("db", 2)]), seed=self.random.random())
        kind = BackupKind.FULL if self.random.random() < 0.2 else BackupKind.INCREMENTAL
        id = service.to_commit(self.random.choice(self.jobs), kind)
        self.perhaps_dies(lambda: service.commit(id, "first"))
        service.lease_over(id)
        if service.run_row(id).state == RunState.COMMITTING:
            assert service.commit(id, "second") == RunState.AVAILABLE
        self.agent.work()

    def available(self) -> list[str]:
        return [run.id for run in runs_of(self.service.database) if run.state == RunState.AVAILABLE]

    def delete(self) -> None:
        if found := self.available():
            victim = self.random.choice(found)
            self.perhaps_dies(lambda: self.service.delete(victim))

    def go_on(self) -> None:
        """Leases end, what the dead have left is taken up."""
        database = self.service.database
        mine = Task.kind == TaskKind.CONSOLIDATE
        database.run(lambda s: s.execute(update(Task).where(mine).values(lease_until=1)) and None)
        reap(database, self.service.settings)
        tidy(database, self.service.settings)
        self.perhaps_dies(self.service.go_on_deleting)

    def read(self) -> None:
        if found := self.available():
            run, reader = self.random.choice(found), f"reader {len(self.readers)} {self.random.random()}"[:36]
            self.readers[reader] = run
            self.service.database.run(lambda s: self.pin(s, run, reader))

    def pin(self, session: object, run: str, reader: str) -> None:
        chains = [backups.chain(session, copy.id) for copy in backups.of_run(session, run)]
        try:
            backups.pin(session, PinHolder.EXPORT, reader, {copy.id for chain in chains for copy in chain})
        except StateConflict:  # what it builds on is in the trash; a restore would ask again later
            del self.readers[reader]
            backups.unpin(session, reader)

    def end_reading(self) -> None:
        if self.readers:
            reader = self.random.choice(sorted(self.readers))
            del self.readers[reader]
            self.service.database.run(lambda s: backups.unpin(s, reader))

    def collect(self) -> None:
        self.perhaps_dies(self.service.collect)
        self.service.database.run(lambda s: s.execute(update(Vault).values(collector_until=0)) and None)

    def check(self) -> None:
        wanted = {*self.available(), *self.readers.values()}
        for job in self.jobs:
            mine = [run.id for run in runs_of(self.service.database, job) if run.id in wanted]
            self.service.check(job, *mine)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("WALK_SEEDS", "2"))))
def test_whatever_happens_what_is_there_restores(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    service = Service(sqlite, tmp_path)
    walk = Walk(service, Points(monkeypatch), seed)
    done = [walk.step() for _ in range(STEPS)]
    assert walk.deaths > 3
    # at the end everybody is done, everything goes, and nothing is left
    walk.readers.clear()
    with sqlite.reading() as session:
        holders = [id for _, id in backups.pin_holders(session)]
    for holder in holders:
        sqlite.run(lambda s, holder=holder: backups.unpin(s, holder))
    for job in walk.jobs:
        sqlite.run(lambda s, job=job: runs.delete_ended(s, job))
    monkeypatch.undo()
    for _ in range(4):
        walk.go_on()
    assert runs_of(sqlite) == [], done
    walk.collect()
    assert service.files() == set()
    assert {path.parts[1] for path in service.files("backupjobs")} == {"vault.json", "keys", "epochs"}
    with sqlite.reading() as session:
        assert session.scalars(select(VmResourceBackup)).all() == []
