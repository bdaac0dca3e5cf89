"""Names or ids: what a person types, as the one thing that is meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from raksha.client import errors

_ID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_BEGINNING = re.compile("[0-9a-f-]{4,35}")


class _Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Named)


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def is_beginning(text: str) -> bool:
    """Of an id: four digits at least."""
    return _BEGINNING.fullmatch(text) is not None


def one(noun: str, name: str, found: Iterable[T]) -> T:
    """The only one of them. Raises `NoSuch`, `Ambiguous`."""
    several = list(found)
    if not several:
        raise errors.NoSuch(f"There is no {noun} {name!r}", f"`raksha {noun} list` shows what there is.")
    if len(several) > 1:
        raise errors.Ambiguous(noun, name, [each.id for each in several])
    return several[0]


def by_id(noun: str, id: str, get: Callable[[str], T]) -> T:
    """Raises `NoSuch` in words that name it."""
    try:
        return get(id)
    except errors.NotFound as error:
        missing = errors.NoSuch(f"There is no {noun} {id!r}", f"`raksha {noun} list` shows what there is.")
        missing.request_id = error.request_id
        raise missing from error
