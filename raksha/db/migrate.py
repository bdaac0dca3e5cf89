"""Schemas of the database: which one it has, and the way to another.

The migrations are in `alembic/` at the top of the checkout, and inside the package in what is installed from a wheel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

import raksha
from raksha.db.session import Database
from raksha.errors import BadArgument, DatabaseUnavailable, SchemaWrong

_PACKAGE = Path(raksha.__file__).parent
_LOCK = "CONCAT('raksha-migrate-', DATABASE())"


def scripts() -> Path:
    """The directory of the migrations."""
    inside = _PACKAGE / "alembic"
    return inside if inside.is_dir() else _PACKAGE.parent / "alembic"


def head() -> str:
    """The schema that this Raksha needs."""
    revision = ScriptDirectory(str(scripts())).get_current_head()
    if revision is None:
        raise SchemaWrong(found="unknown", wanted=f"one of the migrations in {scripts()}, and there are none")
    return revision


def current(database: Database) -> str | None:
    """The schema of the database; None if it is empty. Raises `DatabaseUnavailable`."""
    try:
        with database.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    except DBAPIError as error:
        raise DatabaseUnavailable(detail=error.orig) from error


def check(database: Database) -> None:
    """Raises `SchemaWrong` if this Raksha cannot work with the database as it is."""
    found, wanted = current(database), head()
    if found != wanted:
        raise SchemaWrong(found=found or "none", wanted=wanted)


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the database forward. Raises `BadArgument` for a revision that there is none of, `DatabaseUnavailable`."""
    _run(database, lambda config: command.upgrade(config, revision), revision)


def downgrade(database: Database, revision: str) -> None:
    """Bring the database back; `base` leaves nothing. What the older schema has no place for is lost.

    Raises like `upgrade`.
    """
    _run(database, lambda config: command.downgrade(config, revision), revision)


def _run(database: Database, act: Callable[[Config], None], revision: str) -> None:
    # `%` interpolates there
    config = Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    try:
        with _alone(database) as connection:
            config.attributes["connection"] = connection
            act(config)
    except CommandError as error:
        raise BadArgument(argument=revision, detail=error) from error
    except DBAPIError as error:
        raise DatabaseUnavailable(detail=error.orig) from error


@contextmanager
def _alone(database: Database) -> Iterator[Connection]:
    """A connection in a transaction, while no other process migrates the same database.

    On SQLite the transaction itself sees to that. MariaDB has none around DDL: a lock by name, and names are as wide as
    the server, so it bears that of the database. Both locks end with the connection, whatever happens.
    """
    with database.migrating() as connection:
        backend = connection.dialect.name
        if backend == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7234512398)"))
        elif backend != "sqlite" and connection.scalar(text(f"SELECT GET_LOCK({_LOCK}, 600)")) != 1:
            raise DatabaseUnavailable(detail="another process has been migrating it for ten minutes")
        yield connection
        if backend in ("mysql", "mariadb"):
            connection.execute(text(f"DO RELEASE_LOCK({_LOCK})"))
