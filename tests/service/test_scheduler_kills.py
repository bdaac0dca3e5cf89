"""`raksha-scheduler` killed with SIGKILL in the middle of commits, consolidations and deletions, on a real server: the
next one goes on, and every restore point restores from the vault alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from raksha.db import jobs, vaults
from raksha.db.jobs import Member
from raksha.db.models import BackupJob, BackupJobRun
from raksha.db.session import Database
from raksha.scheduler.serve import handlers
from raksha.states import BackupKind, RunState
from tests.bed.databases import PROJECT, empty, make_job, make_run, opened
from tests.bed.pretend import PretendAgent, check_restores
from tests.bed.scheduling import SETTINGS, held, runs_of

#: where processes die, one after the other
POINTS = [
    "commit.number", "commit.number.done", "vault.put_manifest.Backup", "directory.rename",
    "vault.put.BackupMetadata.done", "vault.put.VMMetadata", "vault.put.epoch", "vault.put.epoch.done",
    "vault.put.run.json", "vault.put.run.json.done", "commit.publish", "commit.publish.done",
    "vault.put_file.BackupMap.done", "consolidate.swap", "consolidate.swap.done", "vault.delete.run.json",
    "vault.delete.BackupMetadata.done", "delete.copies.done", "delete.rows", "delete.rows.done", "vault.delete.segment",
]  # fmt: skip
KEEP = 2


@contextmanager
def scheduler(url: str, folder: Path, name: str, crash_at: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The process itself; it looks ten times a second, and collects garbage all the time."""
    conf = folder / f"{name}.conf"
    conf.write_text(
        f"[database]\nconnection = {url}\n[scheduler]\nname = {name}\ninterval = 0.1\ncommit_lease = 1\n"
        f"collect_interval = 1\nspool_dir = {folder}/spool\n"
    )
    environment = {**os.environ, **({} if crash_at is None else {"RAKSHA_CRASH_AT": crash_at})}
    with (folder / f"{name}.log").open("ab") as log:
        command = [sys.executable, "-m", "raksha.cmd.scheduler", "--config", str(conf)]
        process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(60)


def wait_until(done: Callable[[], bool], folder: Path, what: str, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not done():
        logs = "".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
        assert time.monotonic() < until, f"{what}:\n{logs}"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(580)
@pytest.mark.parametrize("backend", ["sqlite", "mariadb"])
def test_killed_anywhere_nothing_is_lost_doubled_or_stuck(
    schemas: Callable[[str], str], backend: str, tmp_path: Path
) -> None:
    url = schemas(backend)
    with opened(url) as database:
        try:
            walk(database, url, tmp_path)
        finally:
            empty(database)


def walk(database: Database, url: str, folder: Path) -> None:
    (folder / "spool").mkdir()
    (folder / "vaults").mkdir()
    root = f"file://{folder}/vaults"
    database.run(lambda s: vaults.declare(s, "main", kind="directory", url=root, is_default=True))
    agent = PretendAgent(handlers(database, replace(SETTINGS, interval=0.1), lambda: None), "host-a", folder / "spool")
    agent.have("web", "vda", "vdb", clusters=4)
    retention = {"keep_last": KEEP}
    job = database.run(lambda s: make_job(s, members=[Member("web")], retention=retention).id)
    made: list[str] = []
    killed = []
    for step, point in enumerate(["", "", *POINTS]):
        agent.write("web", step % 4, seed=step)
        kind = BackupKind.INCREMENTAL if made else BackupKind.FULL
        made.append(database.run(lambda s, kind=kind: make_run(s, s.get_one(BackupJob, job), kind=kind).id))
        if point:
            with scheduler(url, folder, "first", point) as process:
                if at_work(database, agent, made, folder, process) or dies_late(process):
                    assert process.returncode == -signal.SIGKILL
                    killed.append(point)
        with scheduler(url, folder, "second") as process:
            assert not at_work(database, agent, made, folder, process)
        check(database, agent, job, made, folder)
    assert set(POINTS) == set(killed)


def dies_late(process: subprocess.Popen[bytes]) -> bool:
    """Some points come when everything is as it should be."""
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        return False
    return True


def at_work(
    database: Database, agent: PretendAgent, made: list[str], folder: Path, process: subprocess.Popen[bytes]
) -> bool:
    """The agent works until all is as it should be, or the scheduler has died (True)."""

    def done() -> bool:
        agent.beat()
        agent.work()
        there = {run.id: run.state for run in runs_of(database)}
        return process.poll() is not None or (
            there == dict.fromkeys(made[-KEEP:], RunState.AVAILABLE) and held(database) == {}
        )

    wait_until(done, folder, "not as it should be")
    return process.poll() is not None


def check(database: Database, agent: PretendAgent, job: str, made: list[str], folder: Path) -> None:
    numbers = {run.id: run.commit_number for run in runs_of(database)}
    assert list(numbers.values()) == list(range(len(made) + 1 - len(numbers), len(made) + 1))
    assert {order.backupjobrun: order.number for order in agent.finished}[made[-1]] == len(made)
    check_restores(f"file://{folder}/vaults/{PROJECT}", job, [agent], folder / "spool", made[-KEEP:])
    with database.reading() as session:
        assert jobs.get(session, None, job).id == job
        assert session.query(BackupJobRun).count() == min(KEEP, len(made))
