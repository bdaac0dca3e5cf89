"""What Ceph tells of the difference between two snapshots of an image, by its command `rbd`.

Promises: every block that differs is in it; a block that was discarded is named as zero. It may name blocks that were
written with what was there before, and the first write to a clone's object names all of that object.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from raksha.errors import CaptureFailed
from raksha.types import Extent, ExtentKind

#: seconds: it asks for every object of the image
_PATIENCE = 3600.0


class _Difference(Struct, frozen=True):
    offset: int
    length: int
    exists: bool | str

    @property
    def data(self) -> bool:
        return self.exists in (True, "true")


_DECODER = msgspec.json.Decoder(list[_Difference])


def differences(
    image: str, since: str, until: str, *, monitors: Sequence[tuple[str, str]] = (), user: str | None = None
) -> list[Extent]:
    """Between two snapshots of POOL/IMAGE, in ascending order. Raises `CaptureFailed`: Ceph cannot tell."""
    command = ["rbd", "diff", "--format", "json", "--from-snap", since, *_where(monitors, user), f"{image}@{until}"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
        if done.returncode:
            raise CaptureFailed(vm=image, detail=f"rbd diff: {_last_line(done.stderr)}")
        found = _DECODER.decode(done.stdout)
    except (OSError, subprocess.TimeoutExpired, msgspec.DecodeError) as error:
        raise CaptureFailed(vm=image, detail=f"rbd diff: {type(error).__name__}") from error
    return list(_ordered(found))


def _where(monitors: Sequence[tuple[str, str]], user: str | None) -> list[str]:
    hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in monitors)
    return [*(["--mon-host", hosts] if hosts else []), *(["--id", user] if user else [])]


def _ordered(found: Iterable[_Difference]) -> Iterable[Extent]:
    """Ascending, without overlaps; what is called both is data."""
    end = 0
    for each in sorted(found, key=lambda each: each.offset):
        start, stop = max(each.offset, end), each.offset + each.length
        if start < stop:
            yield Extent(start, stop - start, ExtentKind.DATA if each.data else ExtentKind.ZERO)
            end = stop


def _last_line(said: bytes) -> str:
    lines: list[Any] = said.decode("utf-8", "replace").strip().splitlines()
    return str(lines[-1])[:300] if lines else "it says nothing"
