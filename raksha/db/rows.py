"""What the queries of every noun share: one row, changed rows, rows that may be there already."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from sqlalchemy import CursorResult, Select, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import Delete, Update

from raksha.db.columns import now
from raksha.db.models import Base
from raksha.errors import ChangedMeanwhile, RowNotFound

T = TypeVar("T", bound=Base)


def clock(session: Session) -> int:
    """The database's time, in microseconds since 1970 UTC."""
    return session.execute(select(now())).scalar_one()


def one(session: Session, statement: Select[T], noun: str, id: str) -> T:
    """The one row of a statement. Raises `RowNotFound`."""
    row = session.scalars(statement).one_or_none()
    if row is None:
        raise RowNotFound(noun=noun, id=id)
    return row


def changed(session: Session, statement: Update | Delete) -> int:
    """Rows that a statement met, past the rows which the session holds."""
    session.flush()
    result = session.execute(statement, execution_options={"synchronize_session": False})
    return cast("CursorResult[Any]", result).rowcount


def reread(session: Session, noun: type[Base]) -> None:
    """Rows of this noun that the session holds become what the database says: they may be read after the session."""
    for row in list(session.identity_map.values()):
        if isinstance(row, noun):
            session.refresh(row)


def inserted(session: Session, *rows: Base) -> bool:
    """Add rows, all or none. False: a UNIQUE constraint says that others were first. The transaction goes on."""
    session.flush()
    try:
        with session.begin_nested():
            session.add_all(rows)
    except IntegrityError as error:
        if not _duplicate(error):
            raise
        return False
    return True


def _duplicate(error: IntegrityError) -> bool:
    """A UNIQUE constraint spoke, not another one."""
    code = error.orig.args[0] if error.orig is not None and error.orig.args else None
    return (
        code == 1062  # MariaDB
        or getattr(error.orig, "sqlstate", None) == "23505"  # PostgreSQL
        or (isinstance(code, str) and code.startswith("UNIQUE constraint failed"))  # SQLite
    )


def change_version(
    session: Session, noun: type[Base], name: str, id: str, version: int, values: dict[str, Any]
) -> None:
    """Change a row that its reader knew at `version`; it gets the next. Raises `RowNotFound`, `ChangedMeanwhile`."""
    table = cast(Any, noun)
    statement = update(noun).where(table.id == id, table.version == version).values(**values, version=version + 1)
    if changed(session, statement) == 1:
        reread(session, noun)
        return
    found = session.execute(select(table.version).where(table.id == id)).scalar_one_or_none()
    if found is None:
        raise RowNotFound(noun=name, id=id)
    raise ChangedMeanwhile(noun=name, id=id, found=found, given=version)
