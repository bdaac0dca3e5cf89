"""Types of columns and the clock, the same on every database.

Ids are UUIDs in their usual spelling, times are microseconds since 1970 UTC in a 64-bit integer, documents are JSON
in a text, words of `raksha.states` are their strings. Nothing here needs a feature that one of the databases lacks.
"""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
from sqlalchemy import BigInteger, Dialect, String, Text
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

SECOND = 1_000_000

E = TypeVar("E", bound=StrEnum)


def new_id() -> str:
    return str(uuid.uuid4())


class Word(TypeDecorator[E]):
    """A member of a StrEnum, stored as its string. An unknown string raises `ValueError` when it is read."""

    impl = String(32)
    cache_ok = True

    def __init__(self, words: type[E]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: E | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else self.words(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> E | None:  # noqa: ARG002
        return None if value is None else self.words(value)


class Json(TypeDecorator[Any]):
    """A document of lists, dicts, strings, numbers and None, up to some MiB. Never queried by its content."""

    # TEXT of MariaDB ends at 64 KiB: the NVRAM of one VM is larger
    impl = Text().with_variant(LONGTEXT(), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else msgspec.json.decode(value)


class now(FunctionElement[int]):
    """Microseconds since 1970 UTC by the clock of the database: of the current statement, not of the transaction."""

    type = BigInteger()
    inherit_cache = True
    name = "now_microseconds"


@compiles(now, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    # to the millisecond: SQLite has no finer clock. 'now' is the same throughout a statement
    seconds, milliseconds = "strftime('%s', 'now')", "substr(strftime('%f', 'now'), 4)"
    return f"(CAST({seconds} AS INTEGER) * 1000000 + CAST({milliseconds} AS INTEGER) * 1000)"


@compiles(now, "mysql")
@compiles(now, "mariadb")
def _now_mariadb(*_: Any, **__: Any) -> str:
    # not UNIX_TIMESTAMP: that goes through the session's time zone, and is an hour off in the hour that comes twice
    return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"


@compiles(now, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000000 AS BIGINT)"
