"""A small service in one process: a database, a vault in a directory, agents that pretend; rounds by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import update

from raksha import crash
from raksha.db import runs, vaults
from raksha.db.jobs import Member
from raksha.db.models import BackupJob, BackupJobRun
from raksha.db.session import Database
from raksha.scheduler import collecting, committing, deleting
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.scheduler.advance import advance
from raksha.scheduler.dispatch import dispatch
from raksha.scheduler.reap import reap
from raksha.scheduler.serve import handlers
from raksha.states import BackupKind, RunState
from tests.bed.databases import PROJECT, make_job, make_run
from tests.bed.pretend import PretendAgent, check_restores
from tests.bed.scheduling import SETTINGS, runs_of


class Service:
    """`swift`: a prefix of containers; None: the vault is a folder."""

    def __init__(
        self, database: Database, folder: Path, swift: str | None = None, access: Access = ENVIRONMENT, **settings: Any
    ) -> None:
        self.database = database
        self.folder = folder
        self.access = access
        self.settings = replace(SETTINGS, **settings)
        (folder / "vaults").mkdir()
        (folder / "spool").mkdir()
        self.url = f"swift://{swift}-{PROJECT}" if swift else f"file://{folder}/vaults/{PROJECT}"
        kind, root = ("swift", f"swift://{swift}") if swift else ("directory", f"file://{folder}/vaults")
        database.run(lambda s: vaults.declare(s, "main", kind=kind, url=root, is_default=True))
        self.ask = handlers(database, self.settings, lambda: None, access)
        self.agents: list[PretendAgent] = []

    def agent(self, host: str = "host-a", **more: Any) -> PretendAgent:
        made = PretendAgent(self.ask, host, self.folder / "spool", **more)
        self.agents.append(made)
        return made

    def job(self, *vms: str, name: str = "nightly", **more: Any) -> str:
        return self.database.run(lambda s: make_job(s, name, members=[Member(vm) for vm in vms], **more).id)

    def queue(self, job_id: str, kind: BackupKind = BackupKind.INCREMENTAL) -> str:
        return self.database.run(lambda s: make_run(s, s.get_one(BackupJob, job_id), kind=kind).id)

    def run_row(self, id: str) -> BackupJobRun:
        return next(run for run in runs_of(self.database) if run.id == id)

    def round(self) -> None:
        """What a scheduler does, but for what it does in vaults."""
        reap(self.database, self.settings)
        advance(self.database, self.settings)
        dispatch(self.database, self.settings, self.access)

    def to_commit(self, job_id: str, kind: BackupKind = BackupKind.INCREMENTAL) -> str:
        """A new run, brought to where it is to be committed."""
        for agent in self.agents:
            agent.beat()
        id = self.queue(job_id, kind)
        self.round()
        assert sum(agent.work() for agent in self.agents) > 0, self.run_row(id).queued_reason
        self.round()
        assert self.run_row(id).state == RunState.COMMITTING, self.run_row(id).error
        return id

    def commit(self, id: str, me: str = "scheduler-1") -> RunState:
        committing.commit(self.database, self.settings, id, me, self.access)
        return self.run_row(id).state

    def backup(self, job_id: str, kind: BackupKind = BackupKind.INCREMENTAL) -> str:
        """A new restore point; its agents have heard of it."""
        id = self.to_commit(job_id, kind)
        assert self.commit(id) == RunState.AVAILABLE, self.run_row(id).error
        for agent in self.agents:
            agent.work()
        return id

    def delete(self, *run_ids: str, me: str = "scheduler-1") -> None:
        """As far as it goes: the newest first, each once."""
        for id in run_ids:
            self.database.run(lambda s, id=id: runs.begin_deleting(s, id))
        for id in deleting.waiting(self.database, 100):
            deleting.delete(self.database, self.settings, id, me, self.access)

    def go_on_deleting(self) -> None:
        for run in runs_of(self.database):
            self.lease_over(run.id)
        self.delete()

    def collect(self) -> collecting.Collected | None:
        with self.database.reading() as session:
            (vault,) = vaults.all_vaults(session)
        return collecting.collect(self.database, self.settings, vault, "scheduler-1", self.access)

    def files(self, container: str = "backupjobs_segments") -> set[Path]:
        """Of the project's vault."""
        root = self.folder / "vaults" / PROJECT
        return {path.relative_to(root) for path in (root / container).rglob("*") if path.is_file()}

    def lease_over(self, run_id: str) -> None:
        """Whoever committed or deleted it is gone."""
        mine = BackupJobRun.id == run_id, BackupJobRun.lease_until.is_not(None)
        self.database.run(lambda s: s.execute(update(BackupJobRun).where(*mine).values(lease_until=1)) and None)

    def check(self, job_id: str, *run_ids: str) -> None:
        """They restore, from the vault alone."""
        check_restores(self.url, job_id, self.agents, self.folder / "spool", run_ids)


class Killed(BaseException):
    """In place of SIGKILL: nothing that only catches errors goes on after it. tests/contract kills for real."""


class Points:
    """Passes crash points; does something at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed: list[str] = []
        self.at: int | None = None
        self.act: Callable[[], None] = self.kill
        monkeypatch.setattr(crash, "ON", True)
        monkeypatch.setattr(crash, "_pass", self._pass)

    def _pass(self, name: str) -> None:
        if name.startswith("directory."):  # within these an exception is not like a kill: the store tidies up
            return
        self.passed.append(name)
        if self.at == len(self.passed) - 1:
            self.at = None
            self.act()

    def kill(self) -> None:
        raise Killed(self.passed[-1])

    def arm(self, at: int | None, act: Callable[[], None] | None = None) -> None:
        self.passed, self.at, self.act = [], at, act or self.kill
