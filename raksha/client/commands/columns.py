"""What stands in cells: words for people in tables, plain values for programs in JSON, YAML and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from cliff.columns import FormattableColumn

from raksha.client import words


class Cell(FormattableColumn[Any]):
    """A value with its words."""

    def __init__(self, value: Any, say: Callable[[Any], str]) -> None:
        super().__init__(value)
        self._say = say

    def human_readable(self) -> str:
        return "-" if self._value is None else self._say(self._value)

    def machine_readable(self) -> Any:
        return self._value

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Cell) or other._value is None:
            return False
        return self._value is None or bool(self._value < other._value)


def size(value: int | None) -> Cell:
    return Cell(value, words.human_size)


def moment(value: datetime | None) -> Cell:
    told = None if value is None else words.plain_moment(value)
    return Cell(told, lambda _: words.human_moment(value) if value else "-")


def seconds(value: float | None) -> Cell:
    return Cell(value, lambda found: f"{found:.3g} s")


def text(value: str | None) -> Cell:
    return Cell(value, words.plain)


def number(value: int | None) -> Cell:
    """-1: any number."""
    return Cell(value, lambda found: "any" if found == -1 else str(found))


def yes(value: bool | None) -> Cell:
    return Cell(value, lambda found: "yes" if found else "no")


def several(values: Sequence[str]) -> Cell:
    return Cell(_Several(values), lambda found: words.plain(", ".join(found)))


def lines(value: Any, said: Sequence[str]) -> Cell:
    """A record of several parts: as it is for programs, in lines for people."""
    return Cell(msgspec.to_builtins(value), lambda _: "\n".join(words.plain(line) for line in said) or "-")


class _Several(list[str]):
    """In CSV with commas, not as Python writes lists."""

    def __str__(self) -> str:
        return ", ".join(self)


def register_yaml() -> None:
    """Lists are lists, in YAML as well."""
    import yaml

    yaml.SafeDumper.add_representer(_Several, yaml.SafeDumper.represent_list)
