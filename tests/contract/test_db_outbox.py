"""Notifications on every server: what happens to one thing is numbered as it happens, and one sends at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.config_database import DatabaseSettings
from raksha.db import outbox
from raksha.db.models import BackupJob, Notification
from raksha.db.session import Database, connect
from raksha.db.transition import transition
from raksha.errors import StateConflict
from raksha.states import JobState
from tests.bed.databases import make_job, race


@pytest.fixture
def noting(database: Database) -> Iterator[Database]:
    made = connect(DatabaseSettings(database.engine.url.render_as_string(hide_password=False)), notify=True)
    yield made
    made.close()


def events(database: Database) -> list[str]:
    with database.reading() as session:
        return list(session.scalars(select(Notification.event).order_by(Notification.number)))


def test_what_many_do_to_one_job_at_once_is_told_in_its_order(noting: Database) -> None:
    job = noting.run(make_job).id

    def often(to: JobState, start: JobState) -> Any:
        def work(_session: Session) -> None:
            for _ in range(15):
                with suppress(StateConflict):
                    noting.run(lambda s: transition(s, BackupJob, job, to, start={start}))

        return work

    paused, active = JobState.PAUSED, JobState.ACTIVE
    for _ in range(3):
        each = [often(paused, active), often(active, paused)]
        # SQLite has one writer at a time: who only wants a thread must hold no transaction
        if noting.engine.dialect.name == "sqlite":
            for work in each:
                work(None)
        else:
            assert race(noting, *each, *each) == [None] * 4
    told = events(noting)
    assert told[0] == "raksha.backupjob.create" and len(told) > 3
    words = [event.rpartition(".")[2] for event in told[1:]]
    assert words == ["pause" if n % 2 == 0 else "resume" for n in range(len(words))]


def test_of_many_that_would_send_one_does(noting: Database) -> None:
    for name in "abc":
        noting.run(lambda s, name=name: make_job(s, name))
    takers = [lambda s, n=n: outbox.take(s, f"sender-{n}", 60, 2) for n in range(4)]
    results = race(noting, *takers)
    (taken,) = [rows for rows in results if rows]
    assert [row.payload["name"] for row in taken] == ["a", "b"]
    (sender,) = [f"sender-{n}" for n, rows in enumerate(results) if rows]
    noting.run(lambda s: outbox.sent(s, [row.number for row in taken], sender))
    (left,) = noting.run(lambda s: outbox.take(s, "another", 60, 2))
    assert left.payload["name"] == "c"
    noting.run(lambda s: outbox.drop(s, -1))
    assert events(noting) == []
