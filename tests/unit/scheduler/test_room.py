"""A project at a limit: nothing starts, one run of each job waits and says why, and starts once there is room."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import update

from raksha.db import rows, runs, usage
from raksha.db.columns import SECOND
from raksha.db.jobs import Member
from raksha.db.models import BackupJob, BackupJobRun
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.scheduler.dispatch import dispatch
from raksha.scheduler.retaining import retain
from raksha.scheduler.tick import tick
from raksha.states import JobState, RunState, Trigger
from tests.bed.databases import PROJECT, make_copy, make_job, make_run, make_vault
from tests.bed.scheduling import HOUR, SETTINGS, aged, agent_with, job_due, job_of, runs_of

KEEP_TWO = {"keep_last": 2}


@pytest.fixture
def job(sqlite: Database) -> str:
    """Due now, with a VM that is there."""
    sqlite.run(lambda s: make_vault(s))
    sqlite.run(lambda s: agent_with(s, "host-a", ["web", "db"], capacity=9))
    return sqlite.run(lambda s: job_due(s, members=[Member("web")]).id)


def point(database: Database, job_id: str) -> str:
    """A restore point of 1000 bytes, an hour older than the one before."""

    def work(session: Any) -> str:
        run = make_run(session, session.get_one(BackupJob, job_id))
        for state in (RunState.READY, RunState.RUNNING, RunState.COMMITTING, RunState.AVAILABLE):
            transition(session, BackupJobRun, run.id, state)
        older = rows.clock(session) - (1 + len(runs.restore_points(session, job_id))) * HOUR * SECOND
        session.execute(update(BackupJobRun).where(BackupJobRun.id == run.id).values(taken_at=older))
        make_copy(session, run, make_vault(session))
        return run.id

    return str(database.run(work))


def limit(database: Database, name: str, value: int) -> None:
    database.run(lambda s: usage.set_limit(s, PROJECT, name, value))


def change(database: Database, job_id: str, **values: Any) -> None:
    database.run(lambda s: s.execute(update(BackupJob).where(BackupJob.id == job_id).values(**values)))


def waiting(database: Database, job_id: str) -> str | None:
    """Why the job's last run waits; None: it does not."""
    last = runs_of(database, job_id)[-1]
    return last.queued_reason["code"] if last.state == RunState.QUEUED and last.queued_reason else None


@pytest.mark.parametrize(
    ("name", "most", "said"),
    [("runs", 1, "restore points of its project is 1; with this run it would be 2"),
     ("stored_bytes", 1000, "stored bytes of its project is 1000; with this run it would be 1001")],
)  # fmt: skip
def test_a_scheduled_run_waits_until_there_is_room(sqlite: Database, job: str, name: str, most: int, said: str) -> None:
    old = point(sqlite, job)
    limit(sqlite, name, most)
    assert tick(sqlite).fired == 1
    assert dispatch(sqlite, SETTINGS).started == 0
    run = runs_of(sqlite, job)[-1]
    assert (run.state, run.trigger) == (RunState.QUEUED, Trigger.SCHEDULE)
    assert run.queued_reason["code"] == f"max_{name}_reached"
    assert said in run.queued_reason["message"]
    assert dispatch(sqlite, SETTINGS).started == 0
    sqlite.run(lambda s: runs.begin_deleting(s, old))
    if name == "stored_bytes":  # they count until they are gone
        assert dispatch(sqlite, SETTINGS).started == 0
        limit(sqlite, name, 1001)
    assert dispatch(sqlite, SETTINGS).started == 1


def test_limits_of_the_configuration_hold_as_well(sqlite: Database, job: str) -> None:
    point(sqlite, job)
    tick(sqlite)
    assert dispatch(sqlite, replace(SETTINGS, max_runs=1)).started == 0
    assert waiting(sqlite, job) == "max_runs_reached"
    assert dispatch(sqlite, replace(SETTINGS, max_stored_bytes=1000)).started == 0
    assert waiting(sqlite, job) == "max_stored_bytes_reached"
    limit(sqlite, "runs", -1)
    assert dispatch(sqlite, replace(SETTINGS, max_runs=1)).started == 1, "its own limit counts, not the general one"


def test_runs_that_are_under_way_take_room(sqlite: Database, job: str) -> None:
    other = sqlite.run(lambda s: job_due(s, "other", members=[Member("db")]).id)
    limit(sqlite, "runs", 1)
    assert tick(sqlite).fired == 2
    assert dispatch(sqlite, SETTINGS).started == 1
    assert sorted([waiting(sqlite, job) or "", waiting(sqlite, other) or ""]) == ["", "max_runs_reached"]


def test_what_retention_will_remove_takes_no_room(sqlite: Database, job: str) -> None:
    """A job that keeps as many as its project may have goes on."""
    limit(sqlite, "runs", 2)
    change(sqlite, job, retention=KEEP_TWO)
    old = [point(sqlite, job) for _ in range(2)]
    tick(sqlite)
    assert dispatch(sqlite, SETTINGS).started == 1
    new = runs_of(sqlite, job)[-1].id
    for state in (RunState.RUNNING, RunState.COMMITTING, RunState.AVAILABLE):
        sqlite.run(lambda s, state=state: transition(s, BackupJobRun, new, state))
    assert retain(sqlite, SETTINGS, job) == [old[-1]]
    with sqlite.reading() as session:
        assert usage.runs(session, PROJECT, runs.POINTS) == 2


def test_another_jobs_retention_makes_no_room(sqlite: Database, job: str) -> None:
    limit(sqlite, "runs", 2)
    other = sqlite.run(lambda s: make_job(s, "other", retention=KEEP_TWO).id)
    for _ in range(2):
        point(sqlite, other)
    change(sqlite, job, retention=KEEP_TWO)
    tick(sqlite)
    dispatch(sqlite, SETTINGS)
    assert waiting(sqlite, job) == "max_runs_reached"


def test_a_retention_that_cannot_be_read_stops_nobody_else(sqlite: Database, job: str) -> None:
    limit(sqlite, "runs", 1)
    point(sqlite, job)
    change(sqlite, job, retention={"keep_last": 1, "zone": "Nowhere/Atall"})
    tick(sqlite)
    dispatch(sqlite, SETTINGS)
    assert waiting(sqlite, job) == "max_runs_reached"


def test_no_flood_of_runs_while_a_limit_holds(sqlite: Database, job: str) -> None:
    """It waits `max_wait`, fails and says why, and is tried again; what comes due meanwhile is counted as missed."""
    limit(sqlite, "runs", 1)
    point(sqlite, job)
    settings, due = replace(SETTINGS, retries=1), job_of(sqlite, job)
    for _ in range(50):  # the same hour again and again
        change(sqlite, job, next_run_at=due.next_run_at, fired_upto=due.fired_upto)
        tick(sqlite)
        dispatch(sqlite, settings)
    (_, run) = runs_of(sqlite, job)
    assert run.state == RunState.QUEUED
    missed = job_of(sqlite, job)
    assert missed.missed_runs == 49
    assert missed.last_missed_reason["code"] == "previous_run_under_way"
    for attempt in (1, 2):
        last = runs_of(sqlite, job)[-1]
        assert last.attempt == attempt
        sqlite.run(lambda s, id=last.id: aged(s, BackupJobRun, id, settings.max_wait + 1))
        dispatch(sqlite, settings)
    failed = [run for run in runs_of(sqlite, job) if run.state == RunState.ERROR]
    assert [run.error["code"] for run in failed] == ["max_runs_reached"] * 2
    assert len(runs_of(sqlite, job)) == 3
    assert job_of(sqlite, job).state == JobState.ACTIVE
