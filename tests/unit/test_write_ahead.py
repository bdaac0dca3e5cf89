"""Many that open a new file of SQLite at once."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from raksha.journal import Journal
from raksha.write_ahead import use_write_ahead_log


def test_all_that_switch_a_new_file_at_once_get_there(tmp_path: Path) -> None:
    """SQLite itself tells about one in three hundred of them that the database is locked."""
    results: list[object] = []

    def one(path: Path, start: threading.Barrier) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            start.wait()
            use_write_ahead_log(connection, 30)
            results.extend(connection.execute("PRAGMA journal_mode").fetchone())
        except Exception as error:  # the outcome is what is tested
            results.append(error)
        finally:
            connection.close()

    for number in range(100):
        start = threading.Barrier(4)
        threads = [threading.Thread(target=one, args=(tmp_path / f"{number}.sqlite", start)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert results == ["wal"] * 400


def test_it_does_not_wait_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "held.sqlite"
    holder, other = (sqlite3.connect(path, isolation_level=None, timeout=0) for _ in range(2))
    try:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            use_write_ahead_log(other, 0.1)
        holder.execute("ROLLBACK")
        use_write_ahead_log(other, 0.1)
    finally:
        holder.close()
        other.close()


def test_journals_of_one_host_opened_at_once(tmp_path: Path) -> None:
    failed: list[object] = []

    def one(folder: Path) -> None:
        try:
            Journal(folder).close()
        except Exception as error:  # the outcome is what is tested
            failed.append(error)

    for number in range(20):
        threads = [threading.Thread(target=one, args=(tmp_path / str(number),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert failed == []
