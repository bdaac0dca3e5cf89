"""Lists a page at a time.

    GET …/backupjobs?limit=50&sort=name:asc,created_at:desc&marker=<id of the last one seen>&state=active

`sort_key` and `sort_dir`, as older clients send them, mean the same for one column. A limit above the highest is that.
A page that is not the last has a link to the next. What can be sorted by is named by the noun (`raksha.db.paging`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import flask
from marshmallow import ValidationError, fields, validate

from raksha.api.bodies import Moment, Query, Text
from raksha.api.links import endpoint
from raksha.db.paging import Sort, Wanted
from raksha.errors import RequestInvalid

DEFAULT_LIMIT = 100
_MAX_SORTS = 5
_DIRECTIONS = ("asc", "desc")


class Limit(fields.Integer):
    """A number of entries in a URL: digits only."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **given: Any) -> Any:
        if not (isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18):
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **given)


class _SortKeys(fields.String):
    """key:dir,…; the direction may be left out."""

    def __init__(self, columns: Iterable[str], **more: Any) -> None:
        self._columns = tuple(sorted(columns))
        allowed = "|".join(self._columns)
        pattern = f"^({allowed})(:(asc|desc))?(,({allowed})(:(asc|desc))?)*$"
        super().__init__(metadata={"pattern": pattern, "description": "key:direction, several with commas"}, **more)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **given: Any) -> Any:
        sorts = []
        for part in super()._deserialize(value, attr, data, **given).split(","):
            key, _, direction = part.partition(":")
            if key not in self._columns or direction not in ("", *_DIRECTIONS):
                raise ValidationError(f"Not of the form key:asc or key:desc with one of {', '.join(self._columns)}.")
            sorts.append(Sort(key, direction == "desc"))
        if len({sort.key for sort in sorts}) != len(sorts) or len(sorts) > _MAX_SORTS:
            raise ValidationError(f"Up to {_MAX_SORTS} keys, each once.")
        return tuple(sorts)


class Choice(fields.String):
    """A word of a few, or `in:` and several: a list of them."""

    def __init__(self, words: Iterable[str], **more: Any) -> None:
        self._words = tuple(sorted(words))
        allowed = "|".join(self._words)
        pattern = f"^({allowed}|in:({allowed})(,({allowed}))*)$"
        super().__init__(metadata={"pattern": pattern, "description": "One of these, or in: and several"}, **more)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **given: Any) -> Any:
        text = super()._deserialize(value, attr, data, **given)
        wanted = text.removeprefix("in:").split(",") if text.startswith("in:") else [text]
        if not set(wanted) <= set(self._words):
            raise ValidationError(f"One of {', '.join(self._words)}, or in: and several of them.")
        return wanted


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COMPARED = {"gt:": operator.gt, "gte:": operator.ge, "lt:": operator.lt, "lte:": operator.le}


class When(fields.String):
    """Times before or after one: `gt:2027-01-31T18:00:00Z`, also `gte:`, `lt:`, `lte:`. Compares a column of µs."""

    def __init__(self, **more: Any) -> None:
        described = {"pattern": "^(gt|gte|lt|lte):.+$", "description": "gt:, gte:, lt: or lte:, and a time"}
        super().__init__(metadata=described, **more)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **given: Any) -> Any:
        text = super()._deserialize(value, attr, data, **given)
        how, colon, moment = text.partition(":")
        if how + colon not in _COMPARED:
            raise ValidationError("Begins with gt:, gte:, lt: or lte:.")
        # a plus that nobody has encoded is a space
        micros = (Moment().deserialize(moment.replace(" ", "+")) - _EPOCH) // timedelta(microseconds=1)
        return lambda column: _COMPARED[how + colon](column, micros)


def page_query(columns: Iterable[str], **filters: fields.Field[Any]) -> type[Query]:
    """The schema of a list's URL. `columns`: what can be sorted by; `filters`: parameters of this noun, by name."""
    names = sorted(columns)
    shared: dict[str, fields.Field[Any]] = {
        "limit": Limit(validate=validate.Range(min=1), metadata={"description": "Entries, up to max_page_size"}),
        "marker": Text(least=1, most=255, metadata={"description": "Id of the last one of the page before"}),
        "sort": _SortKeys(names),
        "sort_key": fields.String(validate=validate.OneOf(names)),
        "sort_dir": fields.String(validate=validate.OneOf(_DIRECTIONS)),
    }
    return Query.from_dict({**shared, **filters}, name="PageQuery")  # type: ignore[return-value]


def wanted(query: Mapping[str, Any], most: int) -> Wanted:
    """The page that a URL asks for. `most`: entries that one page may have. Raises `RequestInvalid`."""
    if "sort" in query and ("sort_key" in query or "sort_dir" in query):
        raise RequestInvalid(problems=[("sort", "Either sort, or sort_key and sort_dir.")])
    sort = query.get("sort", ())
    if "sort_key" in query:
        sort = (Sort(query["sort_key"], query.get("sort_dir", "desc") == "desc"),)
    elif "sort_dir" in query:
        raise RequestInvalid(problems=[("sort_dir", "Goes with sort_key.")])
    return Wanted(limit=min(query.get("limit", DEFAULT_LIMIT), most), marker=query.get("marker"), sort=sort)


def collection(name: str, entries: list[Any], last_id: str | None) -> dict[str, Any]:
    """The body of a page. `last_id`: of the last entry if there are more, else None."""
    body: dict[str, Any] = {name: entries}
    if last_id is not None:
        same = [(key, value) for key, value in flask.request.args.items() if key != "marker"]
        href = f"{endpoint()}{flask.request.path}?{urlencode([*same, ('marker', last_id)])}"
        body[f"{name}_links"] = [{"rel": "next", "href": href}]
    return body
