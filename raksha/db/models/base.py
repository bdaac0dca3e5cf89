"""What all tables share."""

from __future__ import annotations

from typing import Annotated, Any

from sqlalchemy import BigInteger, ForeignKey, MetaData, String
from sqlalchemy.orm import DeclarativeBase, mapped_column

from raksha.db.columns import Json, new_id, now

#: bytes as they are compared, on MariaDB too; elsewhere without meaning
_OPTIONS = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}

#: every constraint has a name, so that a migration can drop it on every database
_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Id = Annotated[str, mapped_column(String(36), primary_key=True, default=new_id)]
#: microseconds since 1970 UTC
Micros = Annotated[int, mapped_column(BigInteger)]
CreatedAt = Annotated[int, mapped_column(BigInteger, default=now())]
Count = Annotated[int, mapped_column(BigInteger, default=0)]
Text36 = Annotated[str, mapped_column(String(36))]
#: a name that people or clouds give: project, host, zone, user
Name = Annotated[str, mapped_column(String(255))]
Url = Annotated[str, mapped_column(String(1024))]
Document = Annotated[Any, mapped_column(Json)]


def options(*constraints: Any) -> tuple[Any, ...]:
    """`__table_args__`: constraints and indexes, then what every table has."""
    return (*constraints, _OPTIONS)


def refers(to: str, on_delete: str = "CASCADE", **given: Any) -> Any:
    """A column with the id of a row of another table. RESTRICT: that row cannot go while this one is there."""
    return mapped_column(String(36), ForeignKey(to, ondelete=on_delete), **given)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMES)
