"""Fields of answers: how what the database holds is shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, fields

from raksha.db.columns import SECOND


class Instant(fields.DateTime):
    """Microseconds since 1970 UTC, or a time, in ISO 8601; null where there is none yet."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **given: Any) -> Any:
        return super()._serialize(moment(value) if isinstance(value, int) else value, attr, obj, **given)


def moment(micros: int) -> datetime:
    return datetime.fromtimestamp(micros // SECOND, UTC).replace(microsecond=micros % SECOND)


class Said(Schema):
    """Why something is as it is: `code` for programs, `message` for people."""

    code = fields.String(required=True)
    message = fields.String(required=True)


def said(document: Any) -> dict[str, str] | None:
    """Of a reason or an error as the database holds it; what else that knows is for operators."""
    if not document:
        return None
    return {"code": str(document.get("code", "error")), "message": str(document.get("message", ""))}


class Link(Schema):
    rel = fields.String(required=True)
    href = fields.String(required=True)


def page_of(name: str, entry: type[Schema]) -> type[Schema]:
    """The schema of a page of a list: `pagination.collection`."""
    listed: dict[str, Any] = {
        name: fields.List(fields.Nested(entry), required=True),
        f"{name}_links": fields.List(fields.Nested(Link)),
    }
    return Schema.from_dict(listed, name=f"{entry.__name__}Page")
