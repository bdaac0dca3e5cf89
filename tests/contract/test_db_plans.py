"""The statements that run all the time find their rows by an index, whatever else is in the tables.

20,000 runs and 2,000 jobs: enough for an optimizer to have an opinion. What is checked is the plan, not the time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.orm import Session

from raksha.db import jobs, runs, tasks
from raksha.db.columns import new_id
from raksha.db.models import BackupJob, BackupJobRun, Task
from raksha.db.paging import Sort, Wanted
from raksha.db.session import Database
from raksha.db.usage import usage
from raksha.states import BackupKind, JobState, RunState, TaskKind, TaskState, Trigger
from tests.bed.databases import BACKENDS, empty, make_agent, opened

JOBS, RUNS = 2000, 20000


@pytest.fixture(scope="module", params=BACKENDS)
def full(request: pytest.FixtureRequest, schemas: Callable[[str], str]) -> Iterator[Database]:
    with opened(schemas(request.param)) as database:
        database.run(_fill)
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in ("backupjobs", "backupjobruns", "tasks"):
                analyze = "ANALYZE TABLE" if database.engine.dialect.name in ("mysql", "mariadb") else "ANALYZE"
                connection.execute(text(f"{analyze} {table}"))
        yield database
        empty(database)


def _fill(session: Session) -> None:
    job_ids = [f"job-{n:05}" for n in range(JOBS)]
    session.execute(
        insert(BackupJob),
        [
            {"id": id, "project_id": f"project-{n % 10}", "name": id, "created_at": n, "next_run_at": 10**17 + n}
            for n, id in enumerate(job_ids)
        ],
    )
    session.execute(text("UPDATE backupjobs SET next_run_at = 5 WHERE name = 'job-00077'"))
    states = [RunState.AVAILABLE, RunState.ERROR, RunState.DELETING]
    session.execute(
        insert(BackupJobRun),
        [
            {
                "id": f"run-{n:06}", "backupjob_id": job_ids[n % 20], "project_id": f"project-{n % 20}",
                "kind": BackupKind.FULL, "trigger": Trigger.SCHEDULE, "scheduled_at": n, "created_at": n,
                "state": states[n % 50 // 48 + n % 50 // 49],
            }
            for n in range(RUNS)
        ],
    )  # fmt: skip
    done = {"kind": TaskKind.BACKUP, "project_id": "p", "state": TaskState.DONE}
    session.execute(insert(Task), [{"id": new_id(), "host": f"host-{n % 9}", **done} for n in range(RUNS // 4)])


def job_list(session: Session) -> Any:
    return jobs.listed(session, "project-7", Wanted(limit=20))


def run_list(session: Session) -> Any:
    return runs.listed(session, "project-7", Wanted(limit=20))


def run_list_of_a_job(session: Session) -> Any:
    return runs.listed(session, "project-7", Wanted(limit=20), job_id="job-00007")


def run_list_far_in(session: Session) -> Any:
    return runs.listed(session, "project-7", Wanted(limit=20, marker="run-010007"))


def run_list_oldest_first(session: Session) -> Any:
    return runs.listed(session, "project-7", Wanted(limit=20, marker="run-010007", sort=(Sort("created_at"),)))


def due(session: Session) -> Any:
    found = jobs.due(session, 100)
    assert [job.name for job in found] == ["job-00077"]
    return found


def queued(session: Session) -> Any:
    return runs.queued(session, 100)


def claim(session: Session) -> Any:
    return tasks.claim(session, make_agent(session, "host-3").id, [TaskKind.BACKUP], 4, 30, ())


def expired(session: Session) -> Any:
    return tasks.expired(session, 100)


def usage_of(session: Session) -> Any:
    return usage(session, "project-7")


@pytest.mark.parametrize(
    "query",
    [
        job_list, run_list, run_list_of_a_job, run_list_far_in, run_list_oldest_first, due, queued, claim, expired,
        usage_of,
    ],
)  # fmt: skip
def test_large_tables_are_never_read_whole(full: Database, query: Callable[[Session], Any]) -> None:
    plans = full.run(lambda session: _plans(session, query))
    large = [plan for statement, plan in plans if re.search(r"FROM (backupjobs|backupjobruns|tasks)\b", statement)]
    assert large
    for plan in large:
        assert _reads_all(full, plan) is None, plan


@pytest.mark.parametrize("query", [job_list, run_list, run_list_of_a_job, run_list_far_in, run_list_oldest_first, due])
def test_pages_come_out_of_the_index_in_their_order(full: Database, query: Callable[[Session], Any]) -> None:
    plans = full.run(lambda session: _plans(session, query))
    for plan in [plan for statement, plan in plans if "ORDER BY" in statement]:
        assert not re.search(r"TEMP B-TREE|filesort|Sort Key", plan), plan


def test_the_check_of_plans_sees_a_table_that_is_read_whole(full: Database) -> None:
    def by_description(session: Session) -> Any:
        return session.execute(text("SELECT id FROM backupjobruns WHERE description = 'x'")).all()

    ((_statement, plan),) = full.run(lambda session: _plans(session, by_description))
    assert _reads_all(full, plan) is not None


def test_pages_join_to_the_whole_list(full: Database) -> None:
    for sort in ((), (Sort("created_at"),), (Sort("state"), Sort("created_at", True)), (Sort("id", True),)):
        seen: list[str] = []
        marker = None
        with full.reading() as session:
            while True:
                page = runs.listed(session, "project-7", Wanted(limit=300, marker=marker, sort=sort))
                seen += [run.id for run in page.rows]
                if not page.more:
                    break
                marker = page.rows[-1].id
            everything = runs.listed(session, "project-7", Wanted(limit=1000, sort=sort))
        assert len(seen) == len(set(seen)) == RUNS // 20
        assert seen == [run.id for run in everything.rows]


def test_states_of_the_fixture(full: Database) -> None:
    with full.reading() as session:
        found = usage(session, "project-7")
        assert jobs.get(session, "project-7", "job-00007").state == JobState.ACTIVE
    assert (found.jobs, found.stored_bytes, found.runs_under_way) == (JOBS // 10, 0, 0)
    assert 900 <= found.runs <= 1000


def _plans(session: Session, query: Callable[[Session], Any]) -> list[tuple[str, str]]:
    """Each SELECT that a query makes, with its plan."""
    seen: list[tuple[str, Any]] = []
    with _listening(session, seen):
        query(session)
    explain = "EXPLAIN QUERY PLAN" if session.get_bind().dialect.name == "sqlite" else "EXPLAIN"
    connection = session.connection()
    plans = []
    for statement, parameters in seen:
        rows = connection.exec_driver_sql(f"{explain} {statement}", parameters).mappings().all()
        plans.append((statement, "\n".join(str(dict(row)) for row in rows)))
    return plans


@contextmanager
def _listening(session: Session, seen: list[tuple[str, Any]]) -> Iterator[None]:
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    connection = session.connection()
    event.listen(connection, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", note)


def _reads_all(database: Database, plan: str) -> str | None:
    """What in a plan reads a whole table, or a whole index."""
    if database.engine.dialect.name == "sqlite":
        found = re.search(r"SCAN (backupjobs|backupjobruns|tasks)\b.*", plan)
    elif database.engine.dialect.name == "postgresql":
        found = re.search(r"Seq Scan on (backupjobs|backupjobruns|tasks)\b.*", plan)
    else:
        found = re.search(r"'table': '(backupjobs|backupjobruns|tasks)'.*'type': '(ALL|index)'.*", plan)
    return found.group() if found else None
