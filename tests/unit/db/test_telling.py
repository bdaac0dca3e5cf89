"""What becomes of jobs, runs and restores is noted in the transaction that changes them, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.config_database import DatabaseSettings
from raksha.db import jobs, migrate, outbox, restores
from raksha.db.columns import now
from raksha.db.models import BackupJob, BackupJobRun, Notification, Restore
from raksha.db.session import Database, connect
from raksha.db.transition import transition, transition_all
from raksha.notifications import RECORDS
from raksha.states import JobState, RestoreState, RunState
from tests.bed.databases import make_job, make_run


@pytest.fixture
def noting(tmp_path: Path) -> Iterator[Database]:
    made = connect(DatabaseSettings(f"sqlite:///{tmp_path}/raksha.db"), notify=True)
    migrate.upgrade(made)
    yield made
    made.close()


def waiting(database: Database) -> list[Notification]:
    with database.reading() as session:
        return list(session.scalars(select(Notification).order_by(Notification.number)))


def noted(database: Database) -> list[tuple[str, str]]:
    """Events and states; every payload is a whole record."""
    found = []
    for row in waiting(database):
        kind = RECORDS[row.event.split(".")[1]]
        assert msgspec.to_builtins(msgspec.convert(row.payload, kind)) == row.payload
        found.append((row.event.removeprefix("raksha."), row.payload["state"]))
    return found


def test_a_job_from_its_beginning_to_its_end(noting: Database) -> None:
    job = noting.run(lambda s: make_job(s, user_id="ann", trust_id="trust-1")).id

    def change(session: Session) -> None:
        jobs.change(session, job, 1, name="weekly", members=[jobs.Member("vm-7")])
        transition(session, BackupJob, job, JobState.PAUSED)

    noting.run(change)
    reason = {"code": "trust_broken", "message": "It is gone.", "trust": "trust-1"}
    noting.run(lambda s: transition(s, BackupJob, job, JobState.SUSPENDED, state_reason=reason))
    suspended = waiting(noting)[-1].payload
    assert suspended["reason"] == {"code": "trust_broken", "message": "It is gone."}
    assert suspended["vms"] == [{"id": "vm-7", "source": "hypervisor"}]

    def take_over(session: Session) -> None:
        jobs.take_over(session, job, 2, user_id="ben", trust_id="trust-2")
        transition(session, BackupJob, job, JobState.ACTIVE, state_reason=None)

    noting.run(take_over)
    noting.run(lambda s: jobs.begin_deleting(s, job))
    noting.run(lambda s: jobs.remove(s, job, ["trust-1", "trust-2"]))
    assert noted(noting) == [
        ("backupjob.create", "active"),
        ("backupjob.update", "active"),
        ("backupjob.pause", "paused"),
        ("backupjob.suspend", "suspended"),
        ("backupjob.take_over", "suspended"),
        ("backupjob.resume", "active"),
        ("backupjob.update", "deleting"),
        ("backupjob.delete", "deleting"),
    ]
    assert [row.payload["user_id"] for row in waiting(noting)][3:5] == ["ann", "ben"]
    assert "trust-" not in str([row.payload for row in waiting(noting)])


def test_runs_begin_once_and_end(noting: Database) -> None:
    def go(session: Session, *states: RunState) -> str:
        run = make_run(session, make_job(session))
        for to in states:
            more: dict[str, Any] = {"started_at": now()} if to == RunState.RUNNING else {}
            if to == RunState.AVAILABLE and run.state == RunState.COMMITTING:
                more = {"commit_number": 1}
            transition(session, BackupJobRun, run.id, to, **more)
        return run.id

    ready, running, available = RunState.READY, RunState.RUNNING, RunState.AVAILABLE
    good = noting.run(lambda s: go(s, ready, running, RunState.COMMITTING, available))
    noting.run(lambda s: transition(s, BackupJobRun, good, RunState.DEGRADED))
    noting.run(lambda s: transition(s, BackupJobRun, good, available))
    noting.run(lambda s: go(s, RunState.ERROR))
    noting.run(lambda s: go(s, ready, RunState.CANCELLING, RunState.CANCELLED))
    held = noting.run(lambda s: go(s, ready, running, RunState.NEEDS_ATTENTION))
    noting.run(lambda s: transition(s, BackupJobRun, held, RunState.RUNNING, error=None))
    noting.run(lambda s: transition(s, BackupJobRun, good, RunState.DELETING))
    assert [each for each in noted(noting) if each[0].startswith("backupjobrun")] == [
        ("backupjobrun.start", "running"),
        ("backupjobrun.end", "available"),
        ("backupjobrun.degrade", "degraded"),
        ("backupjobrun.heal", "available"),
        ("backupjobrun.error", "error"),
        ("backupjobrun.cancel", "cancelled"),
        ("backupjobrun.start", "running"),
        ("backupjobrun.needs_attention", "needs_attention"),
    ]


def test_restores_begin_and_end(noting: Database) -> None:
    target = {"kind": "domain", "vms": [{"vm": "vm-1", "disks": []}]}

    def go(session: Session, *states: RestoreState) -> None:
        restore = restores.create(session, make_run(session, make_job(session)), target=target)
        for to in states:
            more: dict[str, Any] = {"started_at": now()} if to == RestoreState.RUNNING else {}
            transition(session, Restore, restore.id, to, **more)

    for end in (RestoreState.DONE, RestoreState.ERROR, RestoreState.NEEDS_ATTENTION):
        noting.run(lambda s, end=end: go(s, RestoreState.RUNNING, end))
    noting.run(lambda s: go(s, RestoreState.CANCELLED))
    found = [each for each in noted(noting) if each[0].startswith("restore")]
    start = ("restore.start", "running")
    assert found == [
        start, ("restore.end", "done"), start, ("restore.error", "error"),
        start, ("restore.needs_attention", "needs_attention"), ("restore.cancel", "cancelled"),
    ]  # fmt: skip
    assert waiting(noting)[-1].payload["vms"] == ["vm-1"]


@pytest.mark.parametrize("project", [None, "project-b"])
def test_what_failed_in_another_project_is_told_by_its_code_alone(noting: Database, project: str | None) -> None:
    """The restore is of the first project, whose members read of it; what it met belongs to the second."""
    target = {"kind": "server", "vms": [{"vm": "vm-1", "disks": []}], "project": project}
    error = {"code": "cloud_refused", "message": "Network 17 is full.", "fields": {"detail": "Network 17"}}

    def fails(session: Session) -> None:
        id = restores.create(session, make_run(session, make_job(session)), target=target).id
        transition(session, Restore, id, RestoreState.RUNNING, started_at=now())
        transition(session, Restore, id, RestoreState.ERROR, error=error)

    noting.run(fails)
    told = waiting(noting)[-1].payload
    assert told["error"]["code"] == "cloud_refused"
    assert ("Network 17" in str(told)) == (project is None)


def test_what_did_not_come_to_be_is_not_told(noting: Database) -> None:
    def fails(session: Session) -> None:
        make_job(session)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        noting.run(fails)
    assert waiting(noting) == []


def test_nothing_is_noted_where_nobody_wants_it(sqlite: Database) -> None:
    job = sqlite.run(make_job).id
    sqlite.run(lambda s: transition(s, BackupJob, job, JobState.PAUSED))
    assert waiting(sqlite) == []


def test_what_is_told_moves_one_by_one(noting: Database) -> None:
    with pytest.raises(ValueError, match="others are told of each"):
        noting.run(lambda s: transition_all(s, BackupJobRun, RunState.CANCELLED, []))


# -- who sends --------------------------------------------------------------------------------------


def take(database: Database, sender: str, lease: float = 60, limit: int = 10) -> list[int]:
    return [row.number for row in database.run(lambda s: outbox.take(s, sender, lease, limit))]


def test_one_sends_at_a_time_and_whoever_dies_is_followed(noting: Database) -> None:
    assert take(noting, "one") == []
    for name in ("a", "b", "c"):
        noting.run(lambda s, name=name: make_job(s, name))
    first = take(noting, "one", limit=2)
    assert len(first) == 2 and first == sorted(first)
    assert take(noting, "two") == []
    assert take(noting, "one", limit=2) == first, "its own lease is in nobody's way"
    noting.run(lambda s: outbox.sent(s, first[:1], "one"))
    second = take(noting, "two", lease=-1)
    assert second == [row.number for row in waiting(noting)] and second[0] == first[1]
    # its lease is over
    assert take(noting, "one") == second


def test_what_is_too_old_is_dropped(noting: Database) -> None:
    noting.run(make_job)
    assert noting.run(lambda s: outbox.drop(s, 60)) == 0
    assert noting.run(lambda s: outbox.drop(s, -1)) == 1
    assert waiting(noting) == []
