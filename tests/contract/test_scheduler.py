"""Schedulers that race and die, on real servers: each fire time makes one run, each run has all its slots or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.db import restores, tasks
from raksha.db.columns import SECOND
from raksha.db.jobs import Member
from raksha.db.models import BackupJob, BackupJobRun, Service
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.scheduler import restore_start
from raksha.scheduler.advance import advance
from raksha.scheduler.dispatch import dispatch
from raksha.scheduler.reap import reap
from raksha.scheduler.tick import Ticked, tick
from raksha.states import RunState, ServiceKind, TaskState
from tests.bed.databases import empty, make_copy, make_job, make_run, make_vault, opened
from tests.bed.scheduling import HOUR, SETTINGS, agent_with, held, job_due, runs_of, tasks_of

JOBS = 200


def together(*steps: Callable[[], Any]) -> list[Any]:
    """Each in a thread of its own, all at once. What they returned; an error is raised here."""
    results: list[Any] = [None] * len(steps)
    start = threading.Barrier(len(steps))

    def one(index: int) -> None:
        start.wait(30)
        try:
            results[index] = steps[index]()
        except Exception as error:  # told below, not in a thread that nobody hears
            results[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def test_a_restore_that_schedulers_see_together_is_made_once(database: Database) -> None:
    def asked(session: Session) -> list[str]:
        agent_with(session, "host-a", ["vm-1"])
        run = make_run(session, make_job(session))
        make_copy(session, run, make_vault(session), resource="vda")
        for state in (RunState.READY, RunState.RUNNING, RunState.COMMITTING, RunState.AVAILABLE):
            transition(session, BackupJobRun, run.id, state)
        vm = {"vm": "vm-1", "disks": [], "name": "again"}
        target = {"kind": "domain", "host": None, "directory": None, "format": None, "start": False, "vms": [vm]}
        return [restores.create(session, run, target=target).id for _ in range(10)]

    ids = database.run(asked)
    together(*[partial(restore_start.start, database, SETTINGS)] * 4)
    with database.reading() as session:
        made = {id: len(tasks.of_restore(session, id)) for id in ids}
    assert made == dict.fromkeys(ids, 1)


def make_due(database: Database) -> dict[str, int]:
    """Fire times by job."""
    made = database.run(lambda s: [job_due(s, f"job {n}", late=10 + n % 7) for n in range(JOBS)])
    return {job.id: job.next_run_at or 0 for job in made}


def check_fired_once(database: Database, fire_times: dict[str, int]) -> None:
    fired = sorted((run.backupjob_id, run.scheduled_at) for run in runs_of(database))
    assert fired == sorted(fire_times.items())
    with database.reading() as session:
        for job in session.scalars(select(BackupJob)):
            assert job.next_run_at == fire_times[job.id] + HOUR * SECOND
            assert (job.missed_runs, job.runs_since_full) == (0, 0)


def test_two_schedulers_fire_200_jobs_once_each(database: Database) -> None:
    fire_times = make_due(database)
    first, second = together(partial(tick, database), partial(tick, database))
    assert isinstance(first, Ticked)
    # whoever came late to all of them gave up early: what is left is for the next look
    third = tick(database)
    assert first.fired + second.fired + third.fired == JOBS
    check_fired_once(database, fire_times)


def test_overlapping_groups_neither_wait_for_each_other_nor_start_by_half(database: Database) -> None:
    vms = [f"vm-{n}" for n in range(6)]

    def setup(session: Any) -> list[str]:
        make_vault(session)
        for host in range(3):
            agent_with(session, f"host-{host}", vms[host::3], capacity=3)
        # each shares a VM with the next, each names them in another order
        groups = [[vms[n], vms[(n + 1) % 6], vms[(n + 3) % 6]][:: -1 if n % 2 else 1] for n in range(6)]
        jobs = [make_job(session, f"group {n}", members=map(Member, group)) for n, group in enumerate(groups)]
        return [make_run(session, job).id for job in jobs]

    ids = database.run(setup)
    for _round in range(20):
        together(*[partial(dispatch, database, SETTINGS)] * 4)
        started = [run for run in runs_of(database) if run.state == RunState.READY]
        check_whole(database, {run.id for run in started})
        if not started and all(run.state == RunState.CANCELLED for run in runs_of(database)):
            break
        assert started, "nobody got anything"
        for run in started:
            database.run(partial(ask_for_its_end, id=run.id))
        together(*[partial(advance, database, SETTINGS)] * 2)
    assert {run.id: run.state for run in runs_of(database)} == dict.fromkeys(ids, RunState.CANCELLED)
    assert held(database) == {}


def ask_for_its_end(session: Any, id: str) -> None:
    transition(session, BackupJobRun, id, RunState.CANCELLING)


def check_whole(database: Database, started: set[str]) -> None:
    """Who has started holds all that he needs, who has not holds nothing and has no task."""
    by_holder: dict[str, list[tuple[str, str]]] = {}
    for slot, holders in held(database).items():
        if slot[0] == "vm":
            assert len(holders) == 1
        for holder in holders:
            by_holder.setdefault(holder, []).append(slot)
    assert set(by_holder) == started
    for run in runs_of(database):
        mine = tasks_of(database, run.id)
        if run.id in started:
            wanted = sorted([*[("vm", t.vm_id) for t in mine], *[("host", t.host) for t in mine]])
            assert sorted(slot for slot in by_holder[run.id] if slot[0] in ("vm", "host")) == wanted
            assert len(mine) == 3
            assert {task.state for task in mine} == {TaskState.READY}
        elif run.state == RunState.QUEUED:
            assert mine == []


def test_four_schedulers_that_do_everything_at_once_agree(database: Database) -> None:
    database.run(make_vault)
    database.run(lambda s: agent_with(s, "host-a", [f"vm-{n}" for n in range(40)], capacity=12))
    database.run(lambda s: [job_due(s, f"job {n}", members=[Member(f"vm-{n}")]) for n in range(40)])

    def everything() -> None:
        for _ in range(3):
            reap(database, SETTINGS)
            advance(database, SETTINGS)
            tick(database)
            dispatch(database, SETTINGS)

    together(*[everything] * 4)
    everything()
    found = runs_of(database)
    assert len(found) == 40
    # ten runs of a project at once: the default
    started = [run for run in found if run.state == RunState.READY]
    assert len(started) == SETTINGS.max_runs_per_project
    assert len(held(database)["host", "host-a"]) == SETTINGS.max_runs_per_project
    assert {len(tasks_of(database, run.id)) for run in started} == {1}


@pytest.mark.parametrize("backend", ["sqlite", "mariadb"])
def test_a_scheduler_killed_in_mid_tick_loses_nothing_and_doubles_nothing(
    schemas: Callable[[str], str], backend: str, tmp_path: Path
) -> None:
    url = schemas(backend)
    with opened(url) as database:
        try:
            fire_times = make_due(database)
            left = []
            # twice in the first batch, and in the second, which takes half a second at least
            for patience in (0.0, 0.3):
                kill_while_it_fires(url, tmp_path, partial(time.sleep, patience))
                left.append(len(runs_of(database)))
            kill_while_it_fires(url, tmp_path, lambda: wait_until(lambda: len(runs_of(database)) > left[-1]))
            left.append(len(runs_of(database)))
            assert left == sorted(left)
            assert any(0 < count < JOBS for count in left), f"it was never killed half-way: {left}"
            # another one goes on where it was killed, under the same name
            process = start(url, tmp_path)
            wait_until(lambda: len(runs_of(database)) == JOBS, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            check_fired_once(database, fire_times)
            with database.reading() as session:
                (row,) = session.scalars(select(Service).where(Service.kind == ServiceKind.SCHEDULER)).all()
                assert row.name == "killed"
        finally:
            empty(database)


def kill_while_it_fires(url: str, folder: Path, wait: Callable[[], None]) -> None:
    process = start(url, folder)
    try:
        wait_until(lambda: heard_of(process, folder), process)
        wait()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)


def heard_of(process: subprocess.Popen[bytes], folder: Path) -> bool:
    return (folder / f"begun-{process.pid}").exists()


def start(url: str, folder: Path) -> subprocess.Popen[bytes]:
    """`raksha-scheduler` itself; it tells by a file that it is about to fire, and then fires slowly."""
    conf = folder / "raksha.conf"
    conf.write_text(f"[database]\nconnection = {url}\n[scheduler]\nname = killed\ninterval = 0.1\n")
    return subprocess.Popen([sys.executable, "-c", SLOW, str(folder), "--config", str(conf)])


#: a pause after each run that is written: a batch takes half a second, so that a kill meets it half-way
SLOW = """
import pathlib, sys, os, time
from raksha.cmd import scheduler
from raksha.db import runs
fire, folder = runs.fire, pathlib.Path(sys.argv[1])
def slowly(*args, **more):
    (folder / f"begun-{os.getpid()}").touch()
    done = fire(*args, **more)
    time.sleep(0.01)
    return done
runs.fire = slowly
scheduler.main(sys.argv[2:])
"""


def wait_until(done: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    until = time.monotonic() + 60
    while not done():
        assert process is None or process.poll() is None, "the scheduler has ended"
        assert time.monotonic() < until
        time.sleep(0.02)
