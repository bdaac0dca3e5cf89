"""Three schedulers, each in a hurry to take over from the others, two agents, jobs that run again and again: what is
there at the end was made once, is numbered without a gap, and restores."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import select

from raksha.db import vaults
from raksha.db.jobs import Member
from raksha.db.models import BackupJob, BackupJobRun, Pin, Vault, VmResourceBackup
from raksha.db.session import Database
from raksha.scheduler.loop import Loop
from raksha.scheduler.serve import handlers
from raksha.states import BackupKind, BackupState, RunState
from tests.bed.databases import PROJECT, make_job, make_run
from tests.bed.pretend import PretendAgent, check_restores
from tests.bed.scheduling import SETTINGS, held, runs_of

RUNS, KEEP = 5, 2


@pytest.mark.slow
def test_schedulers_that_overtake_each_other_agree(database: Database, tmp_path: Path) -> None:
    (tmp_path / "vaults").mkdir()
    (tmp_path / "spool").mkdir()
    root = f"file://{tmp_path}/vaults"
    database.run(lambda s: vaults.declare(s, "main", kind="directory", url=root, is_default=True))
    hasty = replace(SETTINGS, interval=0.05, commit_lease=0.2, collect_interval=0.5, spool_dir=str(tmp_path / "spool"))
    loops = [Loop(database, replace(hasty, name=f"scheduler-{n}")) for n in range(3)]
    threads = [threading.Thread(target=loop.run) for loop in loops]
    agents = [PretendAgent(handlers(database, hasty, lambda: None), f"host-{n}", tmp_path / "spool") for n in range(2)]
    for number, agent in enumerate(agents):
        agent.have(f"vm-{number}", "vda", clusters=3)
        agent.have(f"vm-{number + 2}", "vda", clusters=3)
    # one over both hosts, two of one VM each
    groups = [["vm-0", "vm-1"], ["vm-2"], ["vm-3"]]
    retention = {"keep_last": KEEP}
    jobs = [
        database.run(lambda s, vms=vms: make_job(
            s, "+".join(vms), members=map(Member, vms), retention=retention, consistency_group=False).id)
        for vms in groups
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    try:
        made: dict[str, list[str]] = {job: [] for job in jobs}
        for step in range(RUNS):
            for agent in agents:
                for vm, _ in list(agent.disks):
                    agent.write(vm, step % 3, seed=step)
            kind = BackupKind.INCREMENTAL if step else BackupKind.FULL
            for job in jobs:
                made[job].append(database.run(lambda s, j=job, k=kind: make_run(s, s.get_one(BackupJob, j), kind=k).id))
            work_until_done(database, agents, made)
    finally:
        for loop in loops:
            loop.stop()
        for thread in threads:
            thread.join(60)
    check(database, agents, made, tmp_path)


def work_until_done(database: Database, agents: list[PretendAgent], made: dict[str, list[str]]) -> None:
    wanted = {id for ids in made.values() for id in ids[-KEEP:]}
    until = time.monotonic() + 90
    while True:
        for agent in agents:
            agent.beat()
            agent.work()
        there = {run.id: run.state for run in runs_of(database)}
        if there == dict.fromkeys(wanted, RunState.AVAILABLE) and held(database) == {}:
            return
        errors = [(run.id, run.error, run.queued_reason) for run in runs_of(database) if run.error or run.queued_reason]
        assert time.monotonic() < until, (there, errors)
        time.sleep(0.02)


def check(database: Database, agents: list[PretendAgent], made: dict[str, list[str]], folder: Path) -> None:
    url = f"file://{folder}/vaults/{PROJECT}"
    for job, ids in made.items():
        check_restores(url, job, agents, folder / "spool", ids[-KEEP:])
    told = sorted((order.backupjobrun, order.vm) for agent in agents for order in agent.finished)
    assert len(told) == len(set(told)) == RUNS * 4
    numbers = {order.backupjobrun: order.number for agent in agents for order in agent.finished}
    assert sorted(number or 0 for number in numbers.values()) == list(range(1, RUNS * len(made) + 1))
    epochs = sorted(int(path.name) for path in Path(f"{url[7:]}/backupjobs/epochs").iterdir())
    assert epochs == list(range(1, RUNS * len(made) + 1))
    with database.reading() as session:
        assert session.scalars(select(Vault.last_commit)).one() == RUNS * len(made)
        assert session.scalars(select(Pin)).all() == []
        states = set(session.scalars(select(VmResourceBackup.state)))
        assert states == {BackupState.AVAILABLE}
        assert session.query(BackupJobRun).count() == KEEP * len(made)
