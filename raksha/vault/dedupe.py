"""Which segments need not be sent again.

An index from a segment's digest to where it is stored, filled from maps that are pinned for this run and from what
the run itself has stored. It lives in a temporary SQLite file: memory stays the same for a disk of any size.

Promises: of several threads that meet the same new segment at once, one stores it and the others wait for the outcome
(a claim writes no name twice); a digest is answered only after its object was stored or was in a pinned map.
Does not look into the vault: pinning is what keeps the answers true.
"""

from __future__ import annotations

import sqlite3
import threading
from array import array
from collections.abc import Callable
from types import TracebackType

from raksha.vault.map import MapReader
from raksha.vault.segment import SegmentRow

_CACHE_KIB = 8192
_TABLE = "CREATE TABLE segment (digest BLOB PRIMARY KEY, claim TEXT, stored INTEGER, lengths BLOB) WITHOUT ROWID"


class DedupeIndex:
    """Safe to use from several threads. A context manager."""

    def __init__(self) -> None:
        # an empty name is a private file that SQLite makes as soon as the cache overflows, and removes itself
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute(_TABLE)
        self._lock = threading.Condition()
        self._storing: set[bytes] = set()
        self._pinned: set[str] = set()

    def __enter__(self) -> DedupeIndex:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()

    def pin(self, name: str, reader: MapReader) -> None:
        """Add every segment of a map. `name` of the map keeps it from being added twice."""
        with self._lock:
            if name in self._pinned:
                return
            self._pinned.add(name)
            self._db.execute("BEGIN")
            for row in reader.segments():
                self._add(row)
            self._db.execute("COMMIT")

    def stored_once(self, digest: bytes, store: Callable[[], SegmentRow]) -> tuple[SegmentRow, bool]:
        """The segment with this digest, stored by `store` if nobody has it yet; and whether it was.

        Errors of `store` pass through; the next thread that waits for the same digest then tries itself.
        """
        with self._lock:
            while digest in self._storing:
                self._lock.wait()
            known = self._find(digest)
            if known is not None:
                return known, False
            self._storing.add(digest)
        try:
            row = store()
            with self._lock:
                self._add(row)
            return row, True
        finally:
            with self._lock:
                self._storing.discard(digest)
                self._lock.notify_all()

    def _find(self, digest: bytes) -> SegmentRow | None:
        row = self._db.execute("SELECT claim, stored, lengths FROM segment WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None
        lengths = array("I")
        lengths.frombytes(row[2])
        return SegmentRow(digest=digest, claim=row[0], stored=row[1], lengths=tuple(lengths))

    def _add(self, row: SegmentRow) -> None:
        values = (row.digest, row.claim, row.stored, array("I", row.lengths).tobytes())
        self._db.execute("INSERT OR IGNORE INTO segment VALUES (?, ?, ?, ?)", values)
