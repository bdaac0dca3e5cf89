"""Time zones by IANA name, from the `tzdata` package: every scheduler knows the same rules, whatever its host has.

Names are those of the package's own list, so none can lead to another file.
"""

from __future__ import annotations

from datetime import datetime
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from raksha.errors import ZoneUnknown


@cache
def names() -> frozenset[str]:
    """Every zone there is, such as `Europe/Paris`."""
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="ascii").split())


@cache
def zone(name: str) -> ZoneInfo:
    """The zone of that name, spelled exactly. Raises `ZoneUnknown`."""
    if name not in names():
        near = get_close_matches(name, sorted(names()), n=3, cutoff=0.5)
        raise ZoneUnknown(zone=name, near=", ".join(near) or "Europe/Paris, UTC")
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def clock_time(instant: int, name: str) -> str:
    """What people call the instant (epoch seconds): `2026-11-20 22:30 Europe/Paris`."""
    return f"{datetime.fromtimestamp(instant, zone(name)):%Y-%m-%d %H:%M} {name}"
