"""The engine, and transactions that are done again when the database gave them up.

    database = connect(DatabaseSettings(connection="mysql+pymysql://..."))
    run = database.run(lambda session: runs.fire(session, ...))     # written; again after a deadlock
    with database.reading() as session: ...                         # one snapshot; nothing is written

Guarantees of `run`: `work` is called in one transaction; after a deadlock, a lock that was not to be had, or a
connection lost before the commit, it is called again in a new one, so it must do nothing but database work. When the
connection is lost *during* the commit, nobody knows: `CommitUnknown`, never again by itself.
SQLite: one writer at a time (BEGIN IMMEDIATE), readers never wait (WAL).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import tenacity
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from raksha.config_database import DatabaseSettings
from raksha.errors import CommitUnknown, DatabaseBusy, DatabaseUnavailable, SettingsWrong
from raksha.write_ahead import use_write_ahead_log

__all__ = ["NOTIFY", "Database", "DatabaseSettings", "connect"]

T = TypeVar("T")

#: in `info` of a session: what becomes of jobs, runs and restores is noted for others (`raksha.db.telling`)
NOTIFY = "raksha_notify"
#: of a connection: it will write; it reads one moment of everything
_WRITES, _SNAPSHOT = "raksha_writes", "raksha_snapshot"
#: the server ended this transaction in favour of another: deadlock, lock wait, changed since read, Galera not ready
_MARIADB_AGAIN = frozenset({1213, 1205, 1020, 1047})
#: serialization failure, deadlock, lock not available
_POSTGRESQL_AGAIN = frozenset({"40001", "40P01", "55P03"})
_SQLITE_AGAIN = ("database is locked", "database table is locked")


class Database:
    """One per process; threads share it."""

    def __init__(self, engine: Engine, settings: DatabaseSettings, *, notify: bool = False) -> None:
        self.engine = engine
        self._info = {NOTIFY: notify}
        self._attempts = settings.max_attempts
        self._writing = engine.execution_options(**{_WRITES: True})
        self._snapshot = engine.execution_options(**{_SNAPSHOT: True})

    def run(self, work: Callable[[Session], T]) -> T:
        """What `work` returns, committed. Its errors roll everything back.

        Raises `DatabaseUnavailable`, `DatabaseBusy`, `CommitUnknown`. Rows that it returns can be read afterwards.
        """
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_again),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=tenacity.wait_random_exponential(multiplier=0.01, max=1),
            reraise=True,
        )
        try:
            return cast(T, attempts(self._once, work))
        except DBAPIError as error:
            if _again(error):
                if _lost(error):
                    raise DatabaseUnavailable(detail=error.orig) from error
                raise DatabaseBusy(attempts=self._attempts, detail=error.orig) from error
            if isinstance(error, OperationalError):  # no such file, no access, disk full
                raise DatabaseUnavailable(detail=error.orig) from error
            raise
        except PoolTimeout as error:
            raise DatabaseUnavailable(detail=error) from error

    def _once(self, work: Callable[[Session], T]) -> T:
        with Session(self._writing, expire_on_commit=False, info=self._info) as session:
            result = work(session)
            session.flush()
            try:
                session.commit()
            except DBAPIError as error:
                if _lost(error):
                    raise CommitUnknown(detail=error.orig) from error
                raise
            return result

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one moment of the database. What is written in it is dropped.

        Raises `DatabaseUnavailable`.
        """
        session = Session(self._snapshot, expire_on_commit=False, autoflush=False)
        try:
            yield session
        except PoolTimeout as error:
            raise DatabaseUnavailable(detail=error) from error
        except DBAPIError as error:
            if _lost(error) or isinstance(error, OperationalError):
                raise DatabaseUnavailable(detail=error.orig) from error
            raise
        finally:
            try:
                session.close()
            except DBAPIError as error:
                # what was read before the server went was read
                if not _lost(error):
                    raise

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """A connection of its own, in one transaction: committed at the end, rolled back by an error.

        On SQLite a table is changed by copying it, so references are checked at the end, not on the way.
        """
        connection = self._writing.connect()
        try:
            local = connection.dialect.name == "sqlite"
            if local:
                _references_unchecked(connection)
            with connection.begin():
                yield connection
                if local and (wrong := connection.exec_driver_sql("PRAGMA foreign_key_check").first()) is not None:
                    raise IntegrityError("migration", None, ValueError(f"a reference to nothing: {tuple(wrong)}"))
        finally:
            # not back to the pool: it is not as the others are
            connection.invalidate()
            connection.close()

    def close(self) -> None:
        self.engine.dispose()


def connect(settings: DatabaseSettings, *, notify: bool = False) -> Database:
    """Nothing is opened yet. `notify`: notifications are written. Raises `SettingsWrong` for an address that cannot be
    used."""
    try:
        url = make_url(settings.connection)
        engine = create_engine(url, **_options(url, settings))
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise SettingsWrong(detail=f"[database] connection: {error}") from error
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _sqlite_connected(settings.lock_timeout))
        event.listen(engine, "begin", _sqlite_begin)
    else:
        event.listen(engine, "begin", _server_begin)
        if url.get_backend_name() in ("mysql", "mariadb"):
            event.listen(engine, "connect", _mariadb_connected(settings.lock_timeout))
    return Database(engine, settings, notify=notify)


def _options(url: URL, settings: DatabaseSettings) -> dict[str, Any]:
    backend = url.get_backend_name()
    if backend not in ("sqlite", "mysql", "mariadb", "postgresql"):
        raise SettingsWrong(detail=f"[database] connection: {backend} is none of mysql, postgresql, sqlite")
    if backend == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise SettingsWrong(detail="[database] connection: SQLite needs a file, its threads share nothing else")
    options: dict[str, Any] = {
        "pool_size": settings.max_pool_size,
        "max_overflow": settings.max_overflow,
        "pool_timeout": settings.pool_timeout,
        "pool_recycle": settings.connection_recycle_time,
        # what a row holds is nothing for a log
        "hide_parameters": True,
    }
    if backend != "sqlite":
        # a conditional UPDATE sees the newest committed row; READ COMMITTED locks no gaps, so fewer deadlocks
        options |= {"isolation_level": "READ COMMITTED", "pool_pre_ping": True}
    if backend == "postgresql":
        milliseconds = round(settings.lock_timeout * 1000)
        options["connect_args"] = {"options": f"-c lock_timeout={milliseconds} -c timezone=UTC"}
    if backend in ("mysql", "mariadb"):
        options["connect_args"] = {"connect_timeout": 10, "charset": "utf8mb4"}
    return options


# -- what each database needs to be told ------------------------------------------------------------


def _sqlite_connected(lock_timeout: float) -> Callable[[Any, Any], None]:
    def connected(connection: Any, _record: Any) -> None:
        # the module begins no transactions of its own: `_sqlite_begin` does
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {round(lock_timeout * 1000)}")
        use_write_ahead_log(connection, lock_timeout)
        for pragma in (
            # a commit survives a power cut: other processes and vaults rely on it
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    return connected


def _sqlite_begin(connection: Connection) -> None:
    # a transaction that reads first and writes later fails at once when another wrote meanwhile: lock at the start
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _server_begin(connection: Connection) -> None:
    # of this transaction alone: a level of the connection is taken back at its end, and where the server is gone by
    # then, SQLAlchemy raises what nobody expects, and never gives the connection's place in the pool back
    if connection.get_execution_options().get(_SNAPSHOT, False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _references_unchecked(connection: Connection) -> None:
    # past SQLAlchemy, which would begin a transaction, and in one the pragma does nothing
    raw: Any = connection.connection.driver_connection
    raw.execute("PRAGMA foreign_keys = OFF")


def _mariadb_connected(lock_timeout: float) -> Callable[[Any, Any], None]:
    def connected(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {max(1, round(lock_timeout))}")
            # an overlong or wrong value is an error, never cut off
            cursor.execute("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'")

    return connected


# -- which errors mean: again -----------------------------------------------------------------------


def _again(error: BaseException) -> bool:
    """The transaction left nothing, and the same one may succeed."""
    return isinstance(error, DBAPIError) and (_lost(error) or _given_up(error.orig))


def _lost(error: DBAPIError) -> bool:
    """The connection is gone, or was not to be had."""
    code = error.orig.args[0] if error.orig is not None and error.orig.args else None
    # 2002, 2003: refused; 2006, 2013: gone; 1053: the server is going down; 1040: too many connections
    refused = code in (2002, 2003, 2006, 2013, 1053, 1040)
    return error.connection_invalidated or refused or "connection failed" in str(code)


def _given_up(error: BaseException | None) -> bool:
    if error is None:
        return False
    code = error.args[0] if error.args else None
    return (
        code in _MARIADB_AGAIN
        or getattr(error, "sqlstate", None) in _POSTGRESQL_AGAIN
        or (isinstance(code, str) and code.startswith(_SQLITE_AGAIN))
    )
