"""What one host remembers of its own doings: intents and outcomes, layers that are ours, runs, and locks.

One SQLite file, written through (`synchronous=FULL`) before the call that it announces. The journal says what is
*ours*; what is *so* is always observed (domain XML, image headers). A lost journal loses no data of a VM: chains hold,
the next backup refuses to build on layers that it does not know.

Thread-safe. Several processes may use one journal. Locks are `flock` files: they end with their process.
Not promised: the history of intents is for people, nothing decides by it except an intent without outcome.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from msgspec import Struct

from raksha import crash
from raksha.errors import JournalUnusable, VaultBusy, VmBusy
from raksha.write_ahead import use_write_ahead_log

#: seconds to wait for other processes that write
_PATIENCE = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS host (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS intents (
    id INTEGER PRIMARY KEY, operation TEXT NOT NULL, run TEXT, vm TEXT, target TEXT, detail TEXT NOT NULL,
    begun REAL NOT NULL, outcome TEXT, ended REAL);
CREATE INDEX IF NOT EXISTS intents_open ON intents (vm) WHERE outcome IS NULL;
CREATE TABLE IF NOT EXISTS layers (
    id INTEGER PRIMARY KEY, vm TEXT NOT NULL, target TEXT NOT NULL, path TEXT NOT NULL UNIQUE,
    device INTEGER NOT NULL, inode INTEGER NOT NULL,
    base_kind TEXT NOT NULL, base_path TEXT NOT NULL, base_format TEXT NOT NULL,
    base_device INTEGER NOT NULL, base_inode INTEGER NOT NULL, base_modified INTEGER,
    run TEXT NOT NULL, job TEXT NOT NULL, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counts (
    layer INTEGER NOT NULL REFERENCES layers (id) ON DELETE CASCADE, run TEXT NOT NULL, PRIMARY KEY (layer, run));
CREATE TABLE IF NOT EXISTS bitmaps (
    id INTEGER PRIMARY KEY, vm TEXT NOT NULL, target TEXT NOT NULL, name TEXT NOT NULL,
    run TEXT NOT NULL, job TEXT NOT NULL, below TEXT NOT NULL, state TEXT NOT NULL, UNIQUE (vm, target, name));
CREATE TABLE IF NOT EXISTS bitmap_counts (
    bitmap INTEGER NOT NULL REFERENCES bitmaps (id) ON DELETE CASCADE, run TEXT NOT NULL, held TEXT NOT NULL,
    PRIMARY KEY (bitmap, run));
CREATE TABLE IF NOT EXISTS trash (
    path TEXT PRIMARY KEY, origin TEXT NOT NULL, vm TEXT NOT NULL, since REAL NOT NULL);
CREATE TABLE IF NOT EXISTS fences (
    path TEXT PRIMARY KEY, vm TEXT NOT NULL, target TEXT NOT NULL, inode INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY, vault TEXT NOT NULL, job TEXT NOT NULL, claim TEXT NOT NULL, number INTEGER,
    state TEXT NOT NULL, begun REAL NOT NULL, ended REAL);
CREATE TABLE IF NOT EXISTS results (
    task TEXT PRIMARY KEY, body TEXT NOT NULL, since REAL NOT NULL);
"""


class LayerState(StrEnum):
    """What we last did with an overlay of ours. Where it is, is observed."""

    #: the file was made; whether the snapshot took place is to be observed
    PLANNED = "planned"
    #: part of the VM's chain
    CHAINED = "chained"
    #: its merge into the VM's own file was asked for
    MERGING = "merging"
    #: all of it is in what lies below, and nothing names it: the file is to be put away
    MERGED = "merged"
    #: the VM runs without it: it was started below
    ORPHAN = "orphan"


class BitmapState(StrEnum):
    """What we want of a dirty bitmap. Whether it is there and whole is observed."""

    #: asked for together with a capture; whether its run became a restore point is to be seen
    PLANNED = "planned"
    #: its run is a restore point, and it records what changed since
    COUNTING = "counting"
    #: to be removed as soon as the VM runs
    UNWANTED = "unwanted"


class HostRunState(StrEnum):
    BEGUN = "begun"
    #: the restore point exists in the vault
    DURABLE = "durable"
    FAILED = "failed"
    CANCELLED = "cancelled"


class FileId(Struct, frozen=True):
    """A file or block device as it was seen."""

    path: str
    #: st_dev; recorded for people: it may change at a mount
    device: int
    inode: int


class Base(Struct, frozen=True):
    """The VM's own file, on which our lowest layer stands."""

    file: FileId
    #: "file" or "block", as libvirt calls it
    kind: str
    #: "raw" or "qcow2"
    format: str
    #: st_mtime_ns when we last left it; None: not known
    modified: int | None


class OwnLayer(Struct, frozen=True):
    """An overlay that Raksha made. It and the layers above it hold every write since the snapshots of `counts_from`."""

    vm: str
    target: str
    file: FileId
    base: Base
    #: the run that made it, and the job of that run
    run: str
    job: str
    state: LayerState
    counts_from: frozenset[str]


class OwnBitmap(Struct, frozen=True):
    """A dirty bitmap of ours on one disk. While it is whole, it holds every write since `run`.

    So it does for the other runs of `counts_from`, together with what it had held when they were made (`held`).
    """

    vm: str
    target: str
    #: its name, and that of the checkpoint it was made with
    name: str
    #: the run that made it, and the job of that run
    run: str
    job: str
    #: what lay below the VM's own file then, see `pull_survey.below`
    below: str
    state: BitmapState
    counts_from: frozenset[str]


class Trashed(Struct, frozen=True):
    """An overlay that was put away, and is to be deleted after a while."""

    path: str
    #: where it lay
    origin: str
    vm: str
    #: seconds since the epoch
    since: float


class Fenced(Struct, frozen=True):
    """A VM's own file to which we gave, or were about to give, the immutable flag."""

    path: str
    vm: str
    target: str
    inode: int


class Intent(Struct, frozen=True):
    id: int
    operation: str
    run: str | None
    vm: str | None
    target: str | None
    detail: Mapping[str, Any]
    #: seconds since the epoch
    begun: float


class Lock:
    """A held `flock`; released by `release`, by leaving the context or by the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Journal:
    """The journal in `state_dir` (made if need be, mode 0711: QEMU must reach `overlays` below it).

    Raises `JournalUnusable`.
    """

    def __init__(self, state_dir: Path) -> None:
        self._mutex = threading.RLock()
        self._locks = state_dir / "locks"
        try:
            state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._locks.mkdir(mode=0o700, exist_ok=True)
            self._path = state_dir / "journal.sqlite"
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise JournalUnusable(path=state_dir, detail=error) from error
        try:
            self.host_id = self._set_up()
        except sqlite3.Error as error:
            self._db.close()
            raise JournalUnusable(path=self._path, detail=error) from error

    def _set_up(self) -> str:
        # With a write-ahead log and FULL, each commit is synced once and survives a power cut.
        use_write_ahead_log(self._db, _PATIENCE)
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        with self._transaction("set_up") as db:
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            row = db.execute("SELECT id FROM host").fetchone()
            if row is None:
                row = (str(uuid.uuid4()),)
                db.execute("INSERT INTO host VALUES (?)", row)
        return str(row[0])

    def close(self) -> None:
        with self._mutex:
            self._db.close()

    @contextmanager
    def _transaction(self, name: str) -> Iterator[sqlite3.Connection]:
        with self._mutex, crash.around(f"journal.{name}"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # -- intents ------------------------------------------------------------------------------------

    def begin(
        self,
        operation: str,
        *,
        run: str | None = None,
        vm: str | None = None,
        target: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> int:
        """Note what is about to be done. Returns the id for `done`."""
        row = (operation, run, vm, target, json.dumps(detail or {}), time.time())
        with self._transaction("begin") as db:
            cursor = db.execute(
                "INSERT INTO intents (operation, run, vm, target, detail, begun) VALUES (?, ?, ?, ?, ?, ?)", row
            )
            return int(cursor.lastrowid or 0)

    def done(self, intent: int, outcome: str) -> None:
        with self._transaction("done") as db:
            db.execute("UPDATE intents SET outcome = ?, ended = ? WHERE id = ?", (outcome, time.time(), intent))

    def open_intents(self, vm: str | None = None) -> list[Intent]:
        """Intents without outcome, oldest first: of one VM, or all."""
        with self._mutex:
            rows = self._db.execute(
                "SELECT id, operation, run, vm, target, detail, begun FROM intents"
                " WHERE outcome IS NULL AND (? IS NULL OR vm = ?) ORDER BY id",
                (vm, vm),
            ).fetchall()
        return [
            Intent(number, operation, run, vm_, target, json.loads(detail), begun)
            for number, operation, run, vm_, target, detail, begun in rows
        ]

    # -- layers -------------------------------------------------------------------------------------

    def add_layer(self, layer: OwnLayer) -> None:
        base = layer.base
        row: tuple[str | int | None, ...] = (
            *(layer.vm, layer.target, layer.file.path, layer.file.device, layer.file.inode),
            *(base.kind, base.file.path, base.format, base.file.device, base.file.inode, base.modified),
            *(layer.run, layer.job, layer.state.value),
        )
        with self._transaction("add_layer") as db:
            cursor = db.execute(
                "INSERT INTO layers (vm, target, path, device, inode, base_kind, base_path, base_format, base_device,"
                " base_inode, base_modified, run, job, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            for run in layer.counts_from:
                db.execute("INSERT INTO counts VALUES (?, ?)", (cursor.lastrowid, run))

    def layers(self, vm: str) -> list[OwnLayer]:
        """Our layers of one VM, oldest first."""
        with self._mutex:
            rows = self._db.execute(
                "SELECT id, vm, target, path, device, inode, base_kind, base_path, base_format, base_device,"
                " base_inode, base_modified, run, job, state FROM layers"
                " WHERE vm = ? ORDER BY id",
                (vm,),
            ).fetchall()
            counts: dict[int, set[str]] = {row[0]: set() for row in rows}
            for layer, run in self._db.execute(
                "SELECT layer, run FROM counts WHERE layer IN (SELECT id FROM layers WHERE vm = ?)", (vm,)
            ):
                counts.get(layer, set()).add(run)
        return [_layer(row, counts[row[0]]) for row in rows]

    def set_layers(self, paths: Iterable[str], state: LayerState) -> None:
        with self._transaction("set_layers") as db:
            db.executemany("UPDATE layers SET state = ? WHERE path = ?", [(state.value, path) for path in paths])

    def count_from(self, path: str, runs: Iterable[str]) -> None:
        """The layer at `path` also holds every write since these runs."""
        with self._transaction("count_from") as db:
            db.executemany(
                "INSERT OR IGNORE INTO counts SELECT id, ? FROM layers WHERE path = ?", [(run, path) for run in runs]
            )

    def orphan_layers(self, paths: Iterable[str]) -> None:
        """The VM ran without these layers: they count from no run any more, even if they come back."""
        listed = [(path,) for path in paths]
        with self._transaction("orphan_layers") as db:
            db.executemany("UPDATE layers SET state = 'orphan' WHERE path = ?", listed)
            db.executemany("DELETE FROM counts WHERE layer = (SELECT id FROM layers WHERE path = ?)", listed)

    def base_left(self, vm: str, target: str, modified: int | None) -> None:
        """We have just written into the VM's own file, and this is its time of modification (ns) now."""
        with self._transaction("base_left") as db:
            db.execute("UPDATE layers SET base_modified = ? WHERE vm = ? AND target = ?", (modified, vm, target))

    def forget_layers(self, paths: Iterable[str]) -> None:
        """These overlays are in no chain and their files are gone."""
        with self._transaction("forget_layers") as db:
            db.executemany("DELETE FROM layers WHERE path = ?", [(path,) for path in paths])

    def knows(self, path: str) -> bool:
        """Whether this is an overlay of ours, of any VM."""
        with self._mutex:
            return self._db.execute("SELECT 1 FROM layers WHERE path = ?", (path,)).fetchone() is not None

    def known_vms(self) -> list[str]:
        """UUIDs of all VMs of which there is anything to remember: layers, open intents, trash or fences."""
        with self._mutex:
            rows = self._db.execute(
                "SELECT vm FROM layers UNION SELECT vm FROM bitmaps UNION SELECT vm FROM trash"
                " UNION SELECT vm FROM fences UNION SELECT vm FROM intents WHERE outcome IS NULL AND vm IS NOT NULL"
            ).fetchall()
        return sorted(row[0] for row in rows)

    # -- trash and fences ---------------------------------------------------------------------------

    def add_trash(self, entry: Trashed) -> None:
        """Note it before the file is moved there."""
        with self._transaction("add_trash") as db:
            row = (entry.path, entry.origin, entry.vm, entry.since)
            db.execute("INSERT OR REPLACE INTO trash VALUES (?, ?, ?, ?)", row)

    def trash(self, vm: str | None = None) -> list[Trashed]:
        """What lies in the trash, oldest first: of one VM, or all."""
        query = "SELECT path, origin, vm, since FROM trash WHERE ? IS NULL OR vm = ? ORDER BY since, path"
        with self._mutex:
            return [Trashed(*row) for row in self._db.execute(query, (vm, vm)).fetchall()]

    def forget_trash(self, path: str) -> None:
        with self._transaction("forget_trash") as db:
            db.execute("DELETE FROM trash WHERE path = ?", (path,))

    def add_fence(self, fence: Fenced) -> None:
        """Note it before the flag is set."""
        with self._transaction("add_fence") as db:
            row = (fence.path, fence.vm, fence.target, fence.inode)
            db.execute("INSERT OR REPLACE INTO fences VALUES (?, ?, ?, ?)", row)

    def fences(self, vm: str) -> list[Fenced]:
        query = "SELECT path, vm, target, inode FROM fences WHERE vm = ? ORDER BY path"
        with self._mutex:
            return [Fenced(*row) for row in self._db.execute(query, (vm,)).fetchall()]

    def forget_fence(self, path: str) -> None:
        """The flag is gone."""
        with self._transaction("forget_fence") as db:
            db.execute("DELETE FROM fences WHERE path = ?", (path,))

    # -- bitmaps ------------------------------------------------------------------------------------

    def add_bitmaps(self, bitmaps: Iterable[OwnBitmap]) -> None:
        """Note bitmaps before they are made. One of the same name counts anew."""
        with self._transaction("add_bitmaps") as db:
            for each in bitmaps:
                db.execute(
                    "DELETE FROM bitmaps WHERE vm = ? AND target = ? AND name = ?", (each.vm, each.target, each.name)
                )
                cursor = db.execute(
                    "INSERT INTO bitmaps (vm, target, name, run, job, below, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (each.vm, each.target, each.name, each.run, each.job, each.below, each.state.value),
                )
                for run in each.counts_from:
                    db.execute("INSERT INTO bitmap_counts VALUES (?, ?, '[]')", (cursor.lastrowid, run))

    def bitmaps(self, vm: str) -> list[OwnBitmap]:
        """Our bitmaps of one VM, oldest first."""
        with self._mutex:
            rows = self._db.execute(
                "SELECT id, vm, target, name, run, job, below, state FROM bitmaps WHERE vm = ? ORDER BY id", (vm,)
            ).fetchall()
            counts: dict[int, set[str]] = {row[0]: set() for row in rows}
            for bitmap, run in self._db.execute(
                "SELECT bitmap, run FROM bitmap_counts WHERE bitmap IN (SELECT id FROM bitmaps WHERE vm = ?)", (vm,)
            ):
                counts.get(bitmap, set()).add(run)
        return [
            OwnBitmap(vm_, target, name, run, job, below, BitmapState(state), frozenset(counts[number]))
            for number, vm_, target, name, run, job, below, state in rows
        ]

    def set_bitmaps(self, bitmaps: Iterable[OwnBitmap], state: BitmapState) -> None:
        with self._transaction("set_bitmaps") as db:
            db.executemany(
                "UPDATE bitmaps SET state = ? WHERE vm = ? AND target = ? AND name = ?",
                [(state.value, each.vm, each.target, each.name) for each in bitmaps],
            )

    def bitmap_counts_from(self, bitmap: OwnBitmap, run: str, held: Iterable[tuple[int, int]]) -> None:
        """It also counts from this run, which was made of a disk at rest, when it held these stretches (from, to)."""
        with self._transaction("bitmap_counts_from") as db:
            db.execute(
                "INSERT OR REPLACE INTO bitmap_counts"
                " SELECT id, ?, ? FROM bitmaps WHERE vm = ? AND target = ? AND name = ?",
                (run, json.dumps(list(held)), bitmap.vm, bitmap.target, bitmap.name),
            )

    def held(self, bitmap: OwnBitmap, run: str) -> list[tuple[int, int]]:
        """What the bitmap held when a run was made: ordered stretches (from, to) in bytes. None for its own run."""
        with self._mutex:
            row = self._db.execute(
                "SELECT held FROM bitmap_counts JOIN bitmaps ON bitmaps.id = bitmap"
                " WHERE vm = ? AND target = ? AND name = ? AND bitmap_counts.run = ?",
                (bitmap.vm, bitmap.target, bitmap.name, run),
            ).fetchone()
        return [(start, end) for start, end in json.loads(row[0])] if row else []

    def forget_bitmap(self, vm: str, target: str, name: str) -> None:
        """It is in no image any more."""
        with self._transaction("forget_bitmap") as db:
            db.execute("DELETE FROM bitmaps WHERE vm = ? AND target = ? AND name = ?", (vm, target, name))

    # -- runs ---------------------------------------------------------------------------------------

    def run_begin(self, run: str, vault: str, job: str, claim: str) -> None:
        """Again for a run that was claimed again, or has several VMs here: it is under way. A durable one stays so."""
        with self._transaction("run_begin") as db:
            db.execute(
                "INSERT INTO runs (run, vault, job, claim, state, begun) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (run) DO UPDATE SET claim = excluded.claim, state = excluded.state WHERE state != ?",
                (run, vault, job, claim, HostRunState.BEGUN.value, time.time(), HostRunState.DURABLE.value),
            )

    def run_durable(self, run: str, number: int) -> None:
        with self._transaction("run_durable") as db:
            db.execute(
                "UPDATE runs SET state = ?, number = ?, ended = ? WHERE run = ?",
                (HostRunState.DURABLE.value, number, time.time(), run),
            )

    def run_ended(self, run: str, state: HostRunState) -> None:
        """The run ended without a restore point. A durable run stays durable."""
        with self._transaction("run_ended") as db:
            db.execute(
                "UPDATE runs SET state = ?, ended = ? WHERE run = ? AND state = ?",
                (state.value, time.time(), run, HostRunState.BEGUN.value),
            )

    def settle_runs(self, vault: str, numbers: Mapping[str, int]) -> None:
        """End the runs of a vault that were killed. Its lock is the caller's, so none is under way.

        `numbers`: of all its restore points, by run: what counts is whether the vault has one.
        """
        with self._transaction("settle_runs") as db:
            rows = db.execute("SELECT run FROM runs WHERE vault = ? AND state = ?", (vault, HostRunState.BEGUN.value))
            for (run,) in rows.fetchall():
                state = HostRunState.DURABLE if run in numbers else HostRunState.FAILED
                db.execute(
                    "UPDATE runs SET state = ?, number = ?, ended = ? WHERE run = ?",
                    (state.value, numbers.get(run), time.time(), run),
                )

    def run_state(self, run: str) -> HostRunState | None:
        with self._mutex:
            row = self._db.execute("SELECT state FROM runs WHERE run = ?", (run,)).fetchone()
        return HostRunState(row[0]) if row else None

    # -- results ------------------------------------------------------------------------------------

    def keep_result(self, task: str, body: str) -> None:
        """What came of a task, until somebody has taken it. One that is there is replaced."""
        with self._transaction("keep_result") as db:
            row = (task, body, time.time())
            db.execute(
                "INSERT INTO results VALUES (?, ?, ?) ON CONFLICT (task) DO UPDATE SET body = excluded.body", row
            )

    def results(self) -> list[tuple[str, str]]:
        """Task and body, oldest first."""
        with self._mutex:
            return self._db.execute("SELECT task, body FROM results ORDER BY since, task").fetchall()

    def forget_result(self, task: str) -> None:
        with self._transaction("forget_result") as db:
            db.execute("DELETE FROM results WHERE task = ?", (task,))

    # -- locks --------------------------------------------------------------------------------------

    def vault_lock(self, vault: str, url: str) -> Lock:
        """The right to write to a vault. Raises `VaultBusy`."""
        held = self._lock(f"vault-{vault}")
        if isinstance(held, str):
            raise VaultBusy(url=url, pid=held)
        return held

    def vm_lock(self, vm: str, name: str) -> Lock:
        """The right to change the chains of a VM, by its UUID. Raises `VmBusy`."""
        held = self._lock(f"vm-{vm}")
        if isinstance(held, str):
            raise VmBusy(vm=name, detail=f"another command is at work on it (pid {held})")
        return held

    def _lock(self, name: str) -> Lock | str:
        """The lock, or the process id of its holder."""
        descriptor = os.open(self._locks / name.replace("/", "_"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            return holder or "unknown"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return Lock(descriptor)


def _layer(row: tuple[Any, ...], counts: set[str]) -> OwnLayer:
    _, vm, target, path, device, inode, kind, base_path, form, base_device, base_inode, modified, run, job, state = row
    return OwnLayer(
        vm=vm,
        target=target,
        file=FileId(path, device, inode),
        base=Base(FileId(base_path, base_device, base_inode), kind, form, modified),
        run=run,
        job=job,
        state=LayerState(state),
        counts_from=frozenset(counts),
    )
