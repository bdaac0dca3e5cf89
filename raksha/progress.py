"""How long work tells what it is doing, in words that people read. The base class says nothing; faces override it.

Calls come from any thread; an implementation that draws must lock.
"""

from __future__ import annotations


def human(size: float) -> str:
    """Bytes as a person reads them: binary units, three digits."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1000 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


class Progress:
    """Steps are lines of a story; a transfer is a number of bytes that grows to a total."""

    def step(self, text: str) -> None:
        """One thing was done or is about to be done."""

    def begin(self, label: str, total: int) -> None:
        """A transfer starts: `total` bytes of plain data to work through."""

    def advance(self, done: int, sent: int = 0) -> None:
        """`done` more bytes of it were worked through, `sent` bytes of them went over the wire."""

    def end(self) -> None:
        """The transfer is over, well or not."""
