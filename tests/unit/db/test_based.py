"""Which jobs an increment can build on."""

from __future__ import annotations

from raksha.db import runs
from raksha.db.models import BackupJobRun
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.states import BackupKind, RunState
from tests.bed.databases import make_job, make_run

_WAY = (RunState.READY, RunState.RUNNING, RunState.COMMITTING, RunState.AVAILABLE)


def brought(database: Database, run: str, to: RunState) -> None:
    for state in _WAY[: _WAY.index(to) + 1]:
        database.run(lambda s, state=state: transition(s, BackupJobRun, run, state))


def based(database: Database, job: str) -> bool:
    with database.reading() as session:
        return job in runs.based(session, [job])


def test_a_job_goes_on_incrementally_when_its_first_run_is_gone(sqlite: Database) -> None:
    job = sqlite.run(make_job)
    assert not based(sqlite, job.id)
    full = sqlite.run(lambda s: make_run(s, job)).id
    assert based(sqlite, job.id)  # soon
    brought(sqlite, full, RunState.AVAILABLE)
    increment = sqlite.run(lambda s: make_run(s, job, kind=BackupKind.INCREMENTAL)).id
    brought(sqlite, increment, RunState.AVAILABLE)
    sqlite.run(lambda s: runs.begin_deleting(s, full))
    assert based(sqlite, job.id)
    sqlite.run(lambda s: runs.begin_deleting(s, increment))
    assert not based(sqlite, job.id)


def test_an_increment_that_is_under_way_is_nothing_to_build_on(sqlite: Database) -> None:
    job = sqlite.run(make_job)
    increment = sqlite.run(lambda s: make_run(s, job, kind=BackupKind.INCREMENTAL)).id
    brought(sqlite, increment, RunState.COMMITTING)
    assert not based(sqlite, job.id)
    sqlite.run(lambda s: transition(s, BackupJobRun, increment, RunState.AVAILABLE))
    assert based(sqlite, job.id)
