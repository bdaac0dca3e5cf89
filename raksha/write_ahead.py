"""SQLite's write-ahead log, for files that several processes may open first at the same time."""

from __future__ import annotations

import sqlite3
import time

_PAUSE = 0.01


def use_write_ahead_log(connection: sqlite3.Connection, patience: float) -> None:
    """Waits so many seconds for others that do the same.

    SQLite does not wait for that by itself, whatever the busy timeout: of two that switch a new file at once it tells
    one that the database is locked. Raises `sqlite3.Error`.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
        else:
            return
