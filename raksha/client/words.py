"""Sizes, lengths of time and moments: as people write them, and as they read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from raksha.client.errors import WrongUse

_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_LENGTH = re.compile(r"(\d+)\s*(s|m|h|d|w)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def size(text: str, option: str) -> int:
    """`20M` and `20MiB` are the same: 20 · 2^20 bytes. Raises `WrongUse`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise WrongUse(f"{option} {text} is no size", "Write a number of bytes, or one with K, M, G or T: 20M.")
    power: int = 1024 ** _POWERS[found[2].upper()]
    return int(found[1]) * power


def length(text: str, option: str) -> int:
    """`90m`: seconds. Raises `WrongUse`."""
    found = _LENGTH.fullmatch(text.strip().lower())
    if found is None:
        raise WrongUse(f"{option} {text} is no length of time", "Write it as 90m, 6h or 2d.")
    return int(found[1]) * _SECONDS[found[2] or "s"]


def pair(text: str, option: str) -> tuple[str, str]:
    """`KEY=VALUE`. Raises `WrongUse`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise WrongUse(f"{option} {text} has no value", f"Write it as {option} KEY=VALUE.")
    return key, value


def human_size(size: float) -> str:
    """Binary units, three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.0f} TiB" if size >= 100 else f"{size:.3g} TiB"


def human_length(seconds: float) -> str:
    """In the two largest units."""
    left, items = round(seconds), []
    for unit, of in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, of)
        if number:
            items.append(f"{number} {unit}")
    return " ".join(items[:2]) or "0 s"


def human_moment(moment: datetime) -> str:
    """By the clock of whoever reads it."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def plain_moment(moment: datetime) -> str:
    """For programs."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def plain(text: str) -> str:
    """One line without anything that a terminal would obey: names come from other people's VMs."""
    return "".join(each if each.isprintable() else " " for each in text)
