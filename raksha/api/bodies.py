"""What a request may hold: strict by default, and bounded in time and memory.

A body is one JSON document in UTF-8, of application/json, up to the limit of bytes and of depth; a key that is given
twice, NaN, infinite numbers, NUL and half surrogate pairs are refused, since whatever reads them next disagrees about
them. A field that the schema does not know is an error, so is `"1"` or `true` where a number is meant. In a query a
parameter given twice is an error as well.

Schemas derive from `Body` and `Query` and use the fields below; those of marshmallow convert what they should refuse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

import flask
import marshmallow
import webargs.core
from marshmallow import fields, validate
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import UnsupportedMediaType

from raksha.api.errors import shown
from raksha.errors import RequestInvalid

MAX_DEPTH = 20
#: of a number, on every database
MAX_WHOLE = 2**63 - 1


class Body(marshmallow.Schema):
    """Of a request: unknown fields are errors."""

    class Meta:
        unknown = marshmallow.RAISE


class Query(marshmallow.Schema):
    """Parameters of a URL: unknown ones are errors."""

    class Meta:
        unknown = marshmallow.RAISE


class Text(fields.String):
    """A string of `least` to `most` characters, without control characters but line feeds and tabs."""

    def __init__(self, *, most: int, least: int = 0, pattern: str | None = None, **more: Any) -> None:
        checks: list[Any] = [validate.Length(min=least, max=most)]
        if pattern is not None:
            # documented as it is checked: of the whole text
            checks.append(validate.Regexp(f"^(?:{pattern})\\Z", error="Not of the form {regex}."))
            more["metadata"] = {"pattern": f"^(?:{pattern})$", **more.get("metadata", {})}
        super().__init__(validate=checks, **more)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **given: Any) -> str:
        text = super()._deserialize(value, attr, data, **given)
        if any(ord(sign) < 32 and sign not in "\n\t" for sign in text):
            raise marshmallow.ValidationError("Control characters are not allowed.")
        return text


class Whole(fields.Integer):
    """A whole number, and only that: no text, no true, no 1.0."""

    def __init__(self, *, least: int = 0, most: int = MAX_WHOLE, **more: Any) -> None:
        super().__init__(strict=True, validate=validate.Range(min=least, max=most), **more)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **given: Any) -> Any:
        if type(value) is not int:
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **given)


class Flag(fields.Boolean):
    """true or false."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **given: Any) -> Any:
        if type(value) is not bool:
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **given)


class Items(fields.List[Any]):
    """A list of up to `most`."""

    def __init__(self, inner: fields.Field[Any], *, most: int, least: int = 0, **more: Any) -> None:
        super().__init__(inner, validate=validate.Length(min=least, max=most), **more)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **given: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        if len(value) > self.most:
            # before a million of them are looked at
            raise marshmallow.ValidationError(f"Longer than maximum length {self.most}.")
        return super()._deserialize(value, attr, data, **given)

    @property
    def most(self) -> int:
        (length,) = self.validators
        assert isinstance(length, validate.Length) and length.max is not None
        return length.max


class Words(fields.Dict):
    """Keys and values, both short texts: metadata."""

    def __init__(self, *, most: int = 64, **more: Any) -> None:
        super().__init__(
            keys=Text(least=1, most=255), values=Text(most=255), validate=validate.Length(max=most), **more
        )


class Moment(fields.AwareDateTime):
    """A point in time in ISO 8601 with its offset, such as 2027-01-31T18:00:00Z. In UTC once it is read."""

    def __init__(self, **more: Any) -> None:
        super().__init__(format="iso", default_timezone=None, **more)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **given: Any) -> datetime:
        if not isinstance(value, str):
            raise self.make_error("invalid", input=value, obj_type="datetime")
        try:
            return super()._deserialize(value, attr, data, **given).astimezone(UTC)
        except OverflowError as error:
            raise self.make_error("invalid", input=value, obj_type="datetime") from error


class StrictParser(FlaskParser):
    """Reads requests for `nouns.Noun`."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION = {  # noqa: RUF012 webargs has it so
        **FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION,
        "query": marshmallow.RAISE,
    }

    def _raw_load_json(self, req: flask.Request) -> Any:
        content = req.get_data(cache=True)
        # nothing is of no type; whether it will do, the schema says
        if content and req.mimetype != "application/json":
            raise UnsupportedMediaType
        return decode(content) if content else webargs.core.missing

    def load_querystring(self, req: flask.Request, schema: marshmallow.Schema) -> Any:
        repeated = [name for name, values in req.args.lists() if len(values) > 1]
        if repeated:
            raise RequestInvalid(problems=[(shown(name), "Given more than once.") for name in repeated])
        for name, value in req.args.items():
            _refuse_text(f"{name}{value}", shown(name))
        return super().load_querystring(req, schema)


def decode(content: bytes) -> Any:
    """A JSON document of a client. Raises `RequestInvalid`."""
    try:
        document = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        _refuse(f"Not UTF-8 at byte {error.start}.")
    except json.JSONDecodeError as error:
        _refuse(f"No JSON: {error.msg} at character {error.pos}.")
    except RecursionError:
        _refuse(f"Nested deeper than {MAX_DEPTH}.")
    except ValueError:
        _refuse("A number has too many digits.")
    _inspect(document)
    return document


def _inspect(document: Any) -> None:
    """Depth, and texts that cannot be stored."""
    waiting = [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            _refuse_text(value, "body")
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                _refuse(f"Nested deeper than {MAX_DEPTH}.")
            if isinstance(value, dict):
                waiting.extend((key, depth) for key in value)
                waiting.extend((inner, depth + 1) for inner in value.values())
            else:
                waiting.extend((inner, depth + 1) for inner in value)


def _refuse_text(text: str, where: str) -> None:
    if "\0" in text:
        raise RequestInvalid(problems=[(where, "Holds a NUL.")])
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        raise RequestInvalid(problems=[(where, "Holds half of a surrogate pair.")])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        _refuse(f"The key {shown(twice)!r} is given more than once.")
    return found


def _no_number(name: str) -> NoReturn:
    _refuse(f"{name} is no JSON.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse("A number is too large.")
    return number


def _refuse(what: str) -> NoReturn:
    raise RequestInvalid(problems=[("body", what)])
