"""Which segments need not be sent again.

An index from a segment's digest to where it is stored, filled from maps that are pinned for this run, from what earlier
claims of its task stored, and from what the run itself has stored. It lives in a temporary SQLite file: memory stays
the same for a disk of any size.

Promises: of several threads that meet the same new segment at once, one stores it and the others wait for the outcome
(a claim writes no name twice); a digest is answered only after its object was stored, or was named by a pinned map or
an earlier claim and has been seen in the vault: a segment that was lost is stored again. Pinning, and that the task has
not ended, keep the answers true from then on.
Not promised: that a segment which is there is undamaged. Only `verify --data` can tell.
"""

from __future__ import annotations

import sqlite3
import threading
from array import array
from collections.abc import Callable, Iterable
from types import TracebackType

from raksha.vault.map import MapReader
from raksha.vault.segment import SegmentRow

_CACHE_KIB = 8192
_TABLE = """CREATE TABLE segment
    (digest BLOB PRIMARY KEY, claim TEXT, stored INTEGER, lengths BLOB, seen INTEGER) WITHOUT ROWID"""
#: what was seen wins over what a map says, and never the other way round
_SEEN = "INSERT OR REPLACE INTO segment VALUES (?, ?, ?, ?, 1)"
_NAMED = "INSERT OR IGNORE INTO segment VALUES (?, ?, ?, ?, 0)"


class DedupeIndex:
    """Safe to use from several threads. A context manager."""

    def __init__(self, noted: Callable[[SegmentRow], None] | None = None) -> None:
        """`noted` is called with each segment that this run has stored."""
        self._noted = noted
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
            self._name(reader.segments())

    def remember(self, rows: Iterable[SegmentRow]) -> None:
        """Add what earlier claims of the same task have stored."""
        with self._lock:
            self._name(rows)

    def _name(self, rows: Iterable[SegmentRow]) -> None:
        self._db.execute("BEGIN")
        for row in rows:
            self._add(row, seen=False)
        self._db.execute("COMMIT")

    def stored_once(
        self, digest: bytes, store: Callable[[], SegmentRow], is_there: Callable[[SegmentRow], bool]
    ) -> tuple[SegmentRow, bool]:
        """The segment with this digest, stored by `store` if nobody has it yet; and whether it was.

        `is_there` is asked once for each segment that others have stored. Errors of both pass through; the next thread
        that waits for the same digest then tries itself.
        """
        with self._lock:
            while digest in self._storing:
                self._lock.wait()
            known, seen = self._find(digest)
            if known is not None and seen:
                return known, False
            self._storing.add(digest)
        try:
            new = known is None or not is_there(known)
            row = store() if known is None or new else known
            if new and self._noted is not None:
                self._noted(row)
            with self._lock:
                self._add(row, seen=True)
            return row, new
        finally:
            with self._lock:
                self._storing.discard(digest)
                self._lock.notify_all()

    def _find(self, digest: bytes) -> tuple[SegmentRow | None, bool]:
        """The row, and whether its object was seen in the vault."""
        wanted = "SELECT claim, stored, lengths, seen FROM segment WHERE digest = ?"
        row = self._db.execute(wanted, (digest,)).fetchone()
        if row is None:
            return None, False
        lengths = array("I")
        lengths.frombytes(row[2])
        return SegmentRow(digest=digest, claim=row[0], stored=row[1], lengths=tuple(lengths)), bool(row[3])

    def _add(self, row: SegmentRow, *, seen: bool) -> None:
        values = (row.digest, row.claim, row.stored, array("I", row.lengths).tobytes())
        self._db.execute(_SEEN if seen else _NAMED, values)
