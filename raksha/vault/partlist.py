"""The part list of a manifest: what every store must check of it, and how a range of the whole falls on its parts.

Pure. The directory store also keeps the list as JSON, in a file that begins with `MAGIC`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from raksha.errors import BadName, ObjectCorrupt, ObjectTruncated
from raksha.vault.store import WHOLE_LIMIT, Part, split_name

#: how deep manifests may be nested (Swift's limit)
MAX_DEPTH = 10
#: a file that begins with these bytes is a part list; nothing else may be stored that does
MAGIC = b'{"raksha_parts": 1, "parts": ['
_END = b"\n]}\n"


def check(parts: Sequence[Part], limit: int) -> None:
    """Raises `ValueError` for a list that no store takes, `BadName` for a part that cannot exist."""
    if not 0 < len(parts) <= limit:
        raise ValueError(f"a manifest has 1 to {limit} parts, not {len(parts)}")
    for part in parts:
        split_name(part.name)
        if part.size < 1:
            raise ValueError(f"part {part.name} has {part.size} bytes; Swift wants at least one")


def total(parts: Sequence[Part]) -> int:
    """Bytes of what the parts assemble to."""
    return sum(part.size for part in parts)


def clip(name: str, size: int, offset: int, length: int | None) -> int:
    """The number of bytes that a read of an object of `size` returns. Raises `ObjectTruncated` when it is shorter,
    `ObjectCorrupt` when it is larger than anything that is read whole."""
    if length is None and size - offset > WHOLE_LIMIT:
        raise ObjectCorrupt(name=name, detail=f"it has {size} bytes, more than anything of its kind")
    wanted = offset + (length or 0)
    if size < wanted:
        raise ObjectTruncated(name=name, wanted=wanted, got=size)
    return size - offset if length is None else length


def same_size(part: Part, size: int) -> None:
    """Raises `ObjectTruncated` when a part no longer has the size that its manifest counts with."""
    if part.size != size:
        raise ObjectTruncated(name=part.name, wanted=part.size, got=size)


def slices(parts: Sequence[Part], offset: int, length: int) -> Iterator[tuple[Part, int, int]]:
    """Part, offset in it and length, for each part that the range touches, in order."""
    start = 0
    end = offset + length
    for part in parts:
        first, last = max(offset, start), min(end, start + part.size)
        if first < last:
            yield part, first - start, last - first
        start += part.size


def to_json(parts: Sequence[Part]) -> bytes:
    """One part a line, so that a person can read and compare it."""
    lines = (json.dumps({"name": each.name, "size": each.size, "manifest": each.manifest}) for each in parts)
    return MAGIC + b"\n" + ",\n".join(lines).encode() + _END


def from_json(name: str, data: bytes) -> list[Part]:
    """The inverse of `to_json`. Raises `ObjectCorrupt` for anything else: the file may come from anywhere."""
    try:
        rows = json.loads(data)["parts"]
        parts = [_part(row) for row in rows]
        check(parts, len(parts))
    except (ValueError, TypeError, KeyError, RecursionError, BadName) as error:
        raise ObjectCorrupt(name=name, detail=f"its part list cannot be read ({error})") from error
    return parts


def _part(row: dict[str, object]) -> Part:
    name, size, manifest = row["name"], row["size"], row["manifest"]
    if type(name) is not str or type(size) is not int or type(manifest) is not bool:
        raise ValueError(f"no part: {row!r}")
    return Part(name, size, manifest)
