"""Migrations on every server: what they make is what the models say, and they can be taken back."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from raksha.db import jobs, migrate, runs
from raksha.db.columns import now
from raksha.db.models import Base, VmResourceBackup
from raksha.db.rows import clock
from raksha.db.session import Database
from raksha.errors import BadArgument, SchemaWrong
from tests.bed.databases import BACKENDS, make_copy, make_job, make_run, make_vault, new_url, opened


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return new_url(request.param, request, tmp_path)


def test_empty_to_head_is_what_the_models_say(url: str) -> None:
    with opened(url) as database:
        assert migrate.current(database) is None
        with pytest.raises(SchemaWrong, match="schema none"):
            migrate.check(database)
        migrate.upgrade(database)
        migrate.check(database)
        assert _differences(database) == []
        # and the comparison does see what differs
        with database.engine.begin() as connection:
            connection.execute(text("ALTER TABLE tasks ADD COLUMN surplus INTEGER"))
            connection.execute(text("DROP INDEX ix_pins_holder_id" + _on(database, "pins")))
        assert {difference[0] for difference in _differences(database)} == {"remove_column", "add_index"}


def test_head_to_base_leaves_nothing_and_back(url: str) -> None:
    with opened(url) as database:
        migrate.upgrade(database)
        made = set(inspect(database.engine).get_table_names())
        assert made == {*Base.metadata.tables, "alembic_version"}
        migrate.downgrade(database, "base")
        assert migrate.current(database) is None
        assert set(inspect(database.engine).get_table_names()) <= {"alembic_version"}
        migrate.upgrade(database)
        assert _differences(database) == []


def test_two_processes_upgrade_at_once(url: str) -> None:
    """As a deployment does that starts several copies together."""
    results: list[object] = []

    def one() -> None:
        with opened(url) as database:
            try:
                migrate.upgrade(database)
                results.append(migrate.current(database))
            except Exception as error:  # the outcome is what is tested
                results.append(error)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert results == [migrate.head()] * 3


def test_a_revision_that_there_is_none_of(url: str) -> None:
    with opened(url) as database, pytest.raises(BadArgument, match="nonsense"):
        migrate.upgrade(database, "nonsense")


def test_manage_from_the_command_line(url: str) -> None:
    def manage(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "raksha.cmd.manage", "--database", url, "db", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    head = migrate.head()
    assert manage("current").stdout == f"empty (this Raksha needs {head})\n"
    assert manage("upgrade").stdout == f"{head} (up to date)\n"
    assert manage("upgrade").stdout == f"{head} (up to date)\n"
    assert manage("downgrade", "base").stdout == f"empty (this Raksha needs {head})\n"
    failed = manage("upgrade", "nonsense")
    assert failed.returncode == 2
    assert failed.stderr.startswith("raksha-manage: nonsense: ")
    assert "Traceback" not in failed.stderr


# -- what the database itself keeps -----------------------------------------------------------------


def test_a_copy_that_others_build_on_cannot_go(database: Database) -> None:
    def chain(session: Session) -> tuple[str, str, str]:
        job, vault = make_job(session), make_vault(session)
        parent = make_copy(session, make_run(session, job), vault)
        child = make_copy(session, make_run(session, job), vault, parent=parent)
        return job.id, parent.id, child.id

    job, parent, _child = database.run(chain)
    with pytest.raises(IntegrityError):
        database.run(lambda s: s.execute(VmResourceBackup.__table__.delete().where(VmResourceBackup.id == parent)))
    with pytest.raises(IntegrityError):
        database.run(lambda s: s.delete(jobs.get(s, None, job)))


def test_strings_are_compared_to_the_byte_and_kept_whole(database: Database) -> None:
    names = ["web", "Web", "wéb", "web2", "名前 🗄"]
    database.run(lambda s: [make_job(s, name) for name in names])
    with database.reading() as session:
        for name in names:
            found = jobs.listed(session, None, jobs.Wanted(), [jobs.COLUMNS["name"] == name]).rows
            assert [job.name for job in found] == [name]


def test_what_does_not_fit_is_an_error_never_cut_off(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        # it has no lengths: the value is kept whole
        database.run(lambda s: make_job(s, "x" * 300))
        return
    with pytest.raises((DataError, OperationalError)):
        database.run(lambda s: make_job(s, "x" * 300))


def test_documents_and_large_numbers(database: Database) -> None:
    # more than 64 KiB, and a size beyond 2^53
    hints = {"a": ["ü", 1, None, 1.5, True], "b": "x" * 100_000}

    def work(session: Session) -> tuple[str, str]:
        job = make_job(session, hints=hints)
        run = make_run(session, job, bytes_total=2**62 + 1)
        return job.id, run.id

    job, run = database.run(work)
    with database.reading() as session:
        assert jobs.get(session, None, job).hints == hints
        assert runs.get(session, None, run).bytes_total == 2**62 + 1


def test_the_clock_of_the_database_is_utc_and_goes_on(database: Database) -> None:
    with database.engine.connect() as connection:
        if database.engine.dialect.name in ("mysql", "mariadb"):
            connection.execute(text("SET time_zone = '-05:30'"))
        elif database.engine.dialect.name == "postgresql":
            connection.execute(text("SET timezone = 'Asia/Kolkata'"))
        before = time.time()
        first = connection.execute(now().select()).scalar_one()
        after = time.time()
        assert before - 0.01 <= first / 1e6 <= after + 0.01
        time.sleep(0.05)
        # within one transaction as well
        assert 50_000 <= connection.execute(now().select()).scalar_one() - first < 5_000_000
    assert abs(database.run(clock) / 1e6 - time.time()) < 5


def _differences(database: Database) -> list[tuple[object, ...]]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return [d[0] if isinstance(d, list) else d for d in compare_metadata(context, Base.metadata)]


def _on(database: Database, table: str) -> str:
    return f" ON {table}" if database.engine.dialect.name in ("mysql", "mariadb") else ""
