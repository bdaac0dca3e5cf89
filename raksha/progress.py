"""How long work tells what it is doing. The base class says nothing; faces override it.

Calls come from any thread; an implementation that draws must lock.
"""

from __future__ import annotations


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
