"""A server that is killed, and what its clients are told. MariaDB, of which each test has one of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Update, func, select, update
from sqlalchemy.orm import Session

from raksha.db import migrate
from raksha.db.models import BackupJob
from raksha.db.session import Database
from raksha.errors import CommitUnknown, DatabaseBusy, DatabaseUnavailable, SettingsWrong
from tests.bed.databases import make_job, opened
from tests.bed.mariadb import MariaDb, running_mariadb


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDb]:
    with running_mariadb() as found:
        yield found


@pytest.fixture
def mortal(server: MariaDb) -> Iterator[Database]:
    with opened(server.url(), max_attempts=12) as database:
        migrate.upgrade(database)
        yield database


def test_work_is_done_again_after_the_server_came_back(server: MariaDb, mortal: Database) -> None:
    attempts: list[int] = []

    def work(session: Session) -> str:
        attempts.append(1)
        if len(attempts) == 3:  # the second found nobody
            server.start()
        job = make_job(session, "once")
        if len(attempts) == 1:
            server.kill()
        return session.scalars(select(BackupJob.id).where(BackupJob.id == job.id)).one()

    job = mortal.run(work)
    assert len(attempts) == 3
    with mortal.reading() as session:
        # the first attempt left nothing
        assert session.scalars(select(BackupJob.id)).all() == [job]


def test_a_connection_lost_in_the_commit_is_not_done_again(server: MariaDb, mortal: Database) -> None:
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempts.append(1)
        make_job(session, "who knows")
        session.flush()
        server.kill()  # everything is said, but for COMMIT

    with pytest.raises(CommitUnknown):
        mortal.run(work)
    server.start()
    assert attempts == [1]
    with mortal.reading() as session:
        assert session.scalar(select(func.count()).select_from(BackupJob)) in (0, 1)


def test_idle_connections_are_found_dead_before_they_are_used(server: MariaDb, mortal: Database) -> None:
    mortal.run(lambda s: make_job(s, "before"))
    server.stop()
    server.start()
    mortal.run(lambda s: make_job(s, "after"))
    with mortal.reading() as session:
        assert sorted(session.scalars(select(BackupJob.name))) == ["after", "before"]


def test_a_server_that_goes_while_somebody_reads_takes_no_place_in_the_pool(server: MariaDb) -> None:
    with opened(server.url(), max_pool_size=1, max_overflow=0, pool_timeout=2) as database:
        migrate.upgrade(database)
        for _ in range(2):
            with database.reading() as session:  # what was read was read
                assert session.scalars(select(BackupJob.id)).all() == []
                server.kill()
            with pytest.raises(DatabaseUnavailable), database.reading() as session:
                session.scalars(select(BackupJob.id)).all()
            server.start()
        database.run(lambda s: make_job(s, "after"))


def test_reading_sees_one_moment(mortal: Database) -> None:
    with mortal.reading() as session:
        assert session.scalars(select(BackupJob.name)).all() == []
        mortal.run(lambda s: make_job(s, "meanwhile"))
        assert session.scalars(select(BackupJob.name)).all() == []
    with mortal.reading() as session:
        assert session.scalars(select(BackupJob.name)).all() == ["meanwhile"]


def test_no_server_is_told_within_seconds(server: MariaDb) -> None:
    url = server.url()
    server.stop()
    try:
        started = time.monotonic()
        with opened(url, max_attempts=4) as database:
            with pytest.raises(DatabaseUnavailable, match="refused"):
                database.run(lambda s: make_job(s))
            with pytest.raises(DatabaseUnavailable), database.reading() as session:
                session.scalars(select(BackupJob.id)).all()
            with pytest.raises(DatabaseUnavailable):
                migrate.current(database)
        assert time.monotonic() - started < 10
    finally:
        server.start()


def test_a_lock_that_is_never_given_up(server: MariaDb) -> None:
    """Another transaction holds a row for longer than anybody waits."""
    url = server.url()
    with opened(url, lock_timeout=1, max_attempts=2) as database:
        migrate.upgrade(database)
        job = database.run(lambda s: make_job(s).id)

        def hold(session: Session) -> None:
            session.execute(_touch(job))
            with pytest.raises(DatabaseBusy, match="2 times"):
                database.run(lambda other: other.execute(_touch(job)))

        database.run(hold)


def test_sqlite_waits_for_the_other_writer_and_then_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/raksha.db"
    with opened(url, lock_timeout=0.3, max_attempts=2) as database:
        migrate.upgrade(database)

        def hold(session: Session) -> None:
            make_job(session, "holds")
            with pytest.raises(DatabaseBusy, match="locked"):
                database.run(lambda other: make_job(other, "waits"))
            with database.reading() as reader:  # readers never wait
                assert reader.scalars(select(BackupJob.name)).all() == []

        database.run(hold)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "oracle://x", "no url", "mysql+nodriver://x/y"])
def test_addresses_that_cannot_be_used(url: str) -> None:
    with pytest.raises(SettingsWrong, match=r"\[database\] connection"), opened(url):
        pass


def test_sqlite_without_a_directory(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/none/raksha.db") as database:
        with pytest.raises(DatabaseUnavailable, match="unable to open"):
            database.run(lambda s: make_job(s))
        with pytest.raises(DatabaseUnavailable, match="unable to open"):
            migrate.upgrade(database)


def _touch(job: str) -> Update:
    return update(BackupJob).where(BackupJob.id == job).values(description="x")
