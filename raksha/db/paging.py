"""Lists a page at a time: limit, marker (id of the last row seen), sort by named columns.

A page costs the same wherever it is in the list, when an index has its columns: where the list goes on is a
comparison with the marker's row, never an OFFSET. Rows that are added or removed meanwhile shift nothing.
Columns to sort by are never NULL: databases do not agree where NULL belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from msgspec import Struct
from sqlalchemy import ColumnElement, Select, and_, or_, true
from sqlalchemy.orm import InstrumentedAttribute, Session

from raksha.errors import MarkerUnknown, SortKeyUnknown

T = TypeVar("T")

MAX_LIMIT = 1000

Columns = Mapping[str, InstrumentedAttribute[Any]]


class Sort(Struct, frozen=True):
    """One column of an order."""

    key: str
    descending: bool = False


class Wanted(Struct, frozen=True):
    """Which part of a list is asked for."""

    #: rows, 1 … MAX_LIMIT
    limit: int = 100
    #: id of the last row of the page before
    marker: str | None = None
    #: empty: newest first
    sort: tuple[Sort, ...] = ()


class Page(Struct, Generic[T], frozen=True):
    """Rows in their order."""

    rows: list[T]
    #: there are more: the id of the last row is the marker of the next page
    more: bool


def page(session: Session, statement: Select[T], columns: Columns, wanted: Wanted) -> Page[T]:
    """One page of what `statement` selects. `columns`: those that may be sorted by, `id` and `created_at` among them.

    Raises `SortKeyUnknown`, `MarkerUnknown`.
    """
    order = _order(columns, wanted.sort)
    keys = [columns[sort.key] for sort in order]
    limit = max(1, min(wanted.limit, MAX_LIMIT))
    narrowed = statement
    if wanted.marker is not None:
        at = session.execute(statement.with_only_columns(*keys).where(columns["id"] == wanted.marker)).one_or_none()
        if at is None:
            raise MarkerUnknown(marker=wanted.marker)
        narrowed = statement.where(_after(keys, order, tuple(at)))
    ordered = narrowed.order_by(*(k.desc() if s.descending else k for k, s in zip(keys, order, strict=True)))
    rows = list(session.scalars(ordered.limit(limit + 1)))
    return Page(rows[:limit], len(rows) > limit)


def page_of(entries: Iterable[T], keys: Mapping[str, Callable[[T], Any]], wanted: Wanted) -> Page[T]:
    """One page of what is not in one table, in the same order and by the same names. `keys`: as `columns` of `page`.

    Raises `SortKeyUnknown`, `MarkerUnknown`.
    """
    ordered = list(entries)
    for sort in reversed(_order(keys, wanted.sort)):
        ordered.sort(key=keys[sort.key], reverse=sort.descending)
    begin = 0
    if wanted.marker is not None:
        ids = [keys["id"](entry) for entry in ordered]
        if wanted.marker not in ids:
            raise MarkerUnknown(marker=wanted.marker)
        begin = ids.index(wanted.marker) + 1
    limit = max(1, min(wanted.limit, MAX_LIMIT))
    return Page(ordered[begin : begin + limit], len(ordered) > begin + limit)


def _order(columns: Mapping[str, Any], wanted: Sequence[Sort]) -> list[Sort]:
    """What was asked for, made unique by the id, in the direction of the column before it: so an index serves."""
    order = list(wanted) or [Sort("created_at", True)]
    for sort in order:
        if sort.key not in columns:
            raise SortKeyUnknown(key=sort.key, known=", ".join(sorted(columns)))
    if all(sort.key != "id" for sort in order):
        order.append(Sort("id", order[-1].descending))
    return order


def _after(keys: Sequence[Any], order: Sequence[Sort], at: Sequence[Any]) -> ColumnElement[bool]:
    """Rows that come after `at`: equal in the first columns, beyond it in the next."""
    alternatives = []
    for position, (key, sort) in enumerate(zip(keys, order, strict=True)):
        same = [earlier == value for earlier, value in zip(keys[:position], at[:position], strict=True)]
        alternatives.append(and_(true(), *same, _beyond(key, sort, at[position])))
    # said once more of the first column alone: from this an index knows where to begin
    first = keys[0] <= at[0] if order[0].descending else keys[0] >= at[0]
    return and_(first, or_(*alternatives))


def _beyond(key: Any, sort: Sort, value: Any) -> ColumnElement[bool]:
    beyond: ColumnElement[bool] = key < value if sort.descending else key > value
    return beyond
