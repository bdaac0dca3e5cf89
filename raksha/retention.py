"""Which restore points to keep. Pure: it looks at nothing but what it is given, and deletes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def beyond_last(points: Sequence[T], keep: int) -> list[T]:
    """What is left over when only the last `keep` of `points` (oldest first) stay.

    Raises `ValueError` for less than one: a policy never leaves a job without a restore point.
    """
    if keep < 1:
        raise ValueError("at least one restore point stays")
    return list(points[: max(0, len(points) - keep)])
