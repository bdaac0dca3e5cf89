"""Which objects several maps need, each once, and which maps need it.

Kept in a private temporary SQLite file: millions of segments take no memory. One thread fills it; after that any
thread may ask.
"""

from __future__ import annotations

import sqlite3
import threading
from array import array
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from msgspec import Struct

from raksha.vault.segment import SegmentRow
from raksha.vault.store import Part

_CACHE_KIB = 8192
#: rows asked for at once
_STEP = 256
_TABLES = """
    CREATE TABLE segment (id INTEGER PRIMARY KEY, place INTEGER, digest BLOB, claim TEXT, stored INTEGER, lengths BLOB,
                          disk INTEGER, UNIQUE (digest, claim, stored, lengths));
    CREATE TABLE object (id INTEGER PRIMARY KEY, name TEXT, size INTEGER, manifest INTEGER,
                         UNIQUE (name, size, manifest));
    CREATE TABLE segment_use (id INTEGER, disk INTEGER, PRIMARY KEY (id, disk)) WITHOUT ROWID;
    CREATE TABLE object_use (id INTEGER, disk INTEGER, PRIMARY KEY (id, disk)) WITHOUT ROWID;
"""


class NeededSegment(Struct, frozen=True):
    """A segment that some map needs."""

    id: int
    row: SegmentRow
    #: number of its first cluster, counting the clusters of all segments
    place: int
    #: a disk that needs it, hence one whose key its hashes were made with
    disk: int


class NeededObject(Struct, frozen=True):
    """Another object that some map needs: a piece of image tables, a manifest."""

    id: int
    part: Part


class Inventory:
    """A context manager. Disks are numbers given by the caller."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._db.executescript(f"PRAGMA cache_size = -{_CACHE_KIB}; PRAGMA journal_mode = OFF; {_TABLES}")
        self._lock = threading.Lock()
        self._places = 0

    def __enter__(self) -> Inventory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def add_segment(self, row: SegmentRow, disk: int) -> int:
        """Note that a disk needs a segment; returns its place."""
        lengths = array("I", row.lengths).tobytes()
        key = (row.digest, row.claim, row.stored, lengths)
        with self._lock:
            found = self._db.execute(
                "SELECT id, place FROM segment WHERE digest = ? AND claim = ? AND stored = ? AND lengths = ?", key
            ).fetchone()
            if found is None:
                added = self._db.execute(
                    "INSERT INTO segment (place, digest, claim, stored, lengths, disk) VALUES (?, ?, ?, ?, ?, ?)",
                    (self._places, *key, disk),
                )
                found = (added.lastrowid, self._places)
                self._places += len(row.lengths)
            self._db.execute("INSERT OR IGNORE INTO segment_use VALUES (?, ?)", (found[0], disk))
        return int(found[1])

    def add_object(self, part: Part, disk: int) -> None:
        key = (part.name, part.size, part.manifest)
        with self._lock:
            self._db.execute("INSERT OR IGNORE INTO object (name, size, manifest) VALUES (?, ?, ?)", key)
            self._db.execute(
                "INSERT OR IGNORE INTO object_use"
                " SELECT id, ? FROM object WHERE name = ? AND size = ? AND manifest = ?",
                (disk, *key),
            )

    def total(self) -> tuple[int, int]:
        """Number and bytes of all segments."""
        count, size = self._ask("SELECT count(*), total(stored) FROM segment")[0]
        return int(count), int(size)

    def segments(self) -> Iterator[NeededSegment]:
        for id, place, digest, claim, stored, lengths, disk in self._walk("segment"):
            yield NeededSegment(id, SegmentRow(digest, claim, stored, tuple(array("I", lengths))), place, disk)

    def objects(self) -> Iterator[NeededObject]:
        for id, name, size, manifest in self._walk("object"):
            yield NeededObject(id, Part(name, size, bool(manifest)))

    def segment_users(self, needed: NeededSegment) -> list[int]:
        """Disks whose maps name it."""
        return [disk for (disk,) in self._ask("SELECT disk FROM segment_use WHERE id = ?", needed.id)]

    def object_users(self, needed: NeededObject) -> list[int]:
        return [disk for (disk,) in self._ask("SELECT disk FROM object_use WHERE id = ?", needed.id)]

    def _walk(self, table: str) -> Iterator[tuple[Any, ...]]:
        """All rows, by their id, some at a time: no cursor stays open between threads."""
        last = 0
        while rows := self._ask(f"SELECT * FROM {table} WHERE id > ? ORDER BY id LIMIT {_STEP}", last):  # noqa: S608
            yield from rows
            last = rows[-1][0]

    def _ask(self, question: str, *values: int) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(question, values).fetchall()
