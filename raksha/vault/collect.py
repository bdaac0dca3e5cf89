"""Removing what no restore point refers to. For a vault whose one writer holds its lock (local mode).

What is alive is found without listings: every commit took the next number, so `epochs/1…n` name all runs that ever
were, and each is asked for by name. A listing only proposes what to delete; one that lags leaves garbage for later.

Promises: nothing that a restore point needs is deleted; if any map of any point is missing or damaged, nothing is
deleted at all; what does not have a name of ours is left alone. Interrupting it at any time is harmless. A `Backup`
that an interrupted consolidation left ahead of its map is set back to it.
Relies on: nobody else stores into this vault meanwhile. The caller holds the writer's lock.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from msgspec import Struct

from raksha.errors import Damaged, ObjectCorrupt, ObjectMissing
from raksha.types import ResourceKey
from raksha.vault import names
from raksha.vault.catalog import Catalog
from raksha.vault.commit import assert_writer, last_number
from raksha.vault.map import MapReader
from raksha.vault.metadata import EpochDocument, RunDocument, decode
from raksha.vault.store import BACKUPS, SEGMENTS

#: names of ours
SEGMENT = re.compile(rf"{SEGMENTS}/([0-9a-f]{{2}})/\1[0-9a-f]{{62}}-(?P<claim>[0-9A-Za-z._-]+)")
_STEP = r"[A-Za-z0-9][A-Za-z0-9._-]*"
OURS = re.compile(
    rf"{BACKUPS}/(?P<job>{_STEP})/(?P<run>{_STEP})/"
    rf"(run\.json|{_STEP}/(VMMetadata|{_STEP}/(Backup|BackupMetadata|BackupMap-[0-9a-f]{{64}})))"
)
_PARALLEL = 8


class Collected(Struct, frozen=True):
    """What a collection removed, or would remove."""

    #: objects
    deleted: int
    #: objects that restore points need
    kept: int


def collect(catalog: Catalog, *, dry_run: bool = False, without: Collection[str] = ()) -> Collected:
    """Delete every object of ours that no restore point needs. Raises `Damaged` before deleting anything.

    `without` tells a dry run which restore points to think away. What others build on is counted as needed to the last
    segment, so more may go in truth.
    """
    if without and not dry_run:
        raise ValueError("restore points are deleted by delete_run")
    assert_writer(catalog)
    alive = sqlite3.connect("")  # a private temporary file: the set may be larger than memory should be
    try:
        alive.execute("CREATE TABLE alive (name TEXT PRIMARY KEY) WITHOUT ROWID")
        copies: set[ResourceKey] = set()
        for run in live_runs(catalog):
            if run.backupjobrun not in without:
                needed = ((name,) for name in _needed(catalog, run, copies, mend=not dry_run))
                alive.executemany("INSERT OR IGNORE INTO alive VALUES (?)", needed)
        kept = alive.execute("SELECT count(*) FROM alive").fetchone()[0]
        deleted = _delete(catalog, _garbage(catalog, alive, without), dry_run)
        return Collected(deleted=deleted, kept=kept)
    finally:
        alive.close()


def live_runs(catalog: Catalog) -> Iterator[RunDocument]:
    """All restore points, in the order of their commits, found by name alone."""
    for number in range(1, last_number(catalog) + 1):
        name = names.epoch(number)
        epoch = decode(catalog.store.get(name), EpochDocument, name)
        run = catalog.run(epoch.backupjob, epoch.backupjobrun)
        if run is not None:
            yield run


def _needed(catalog: Catalog, run: RunDocument, copies: set[ResourceKey], *, mend: bool) -> Iterator[str]:
    """Every object that `run` is made of and builds on; of disk copies only those that are not yet in `copies`.

    With `mend`, what a consolidation that was cut off left is taken back.
    """
    yield names.run(run.backupjob, run.backupjobrun)
    for vm in run.vms:
        yield names.vm_metadata(run.backupjob, run.backupjobrun, vm.vm)
    for own in run.resource_keys():
        # to the end of the chain: what it builds on is needed even if the run it belongs to was lost
        key: ResourceKey | None = own
        while key is not None and key not in copies:
            copies.add(key)
            metadata = catalog.metadata(key)
            yield names.metadata(key)
            yield names.image(key)
            yield names.map_object(key, metadata.map.digest)
            reader = catalog.reader(metadata)
            yield from reader.object_names()
            if mend:
                _mend(catalog, names.image(key), reader)
            key = metadata.parent_key


def _mend(catalog: Catalog, image: str, reader: MapReader) -> None:
    """A `Backup` that is not made of what the map of its copy says would lose its parts as garbage: make it anew."""
    wanted = list(islice(reader.parts(), catalog.store.manifest_limit))
    try:
        same = catalog.store.parts(image) == wanted
    except Damaged:
        same = False
    if not same:
        assert_writer(catalog)
        catalog.store.put_manifest(image, wanted)


def _garbage(catalog: Catalog, alive: sqlite3.Connection, without: Collection[str]) -> Iterator[str]:
    dead_runs: dict[tuple[str, str], bool] = {}
    for name in catalog.store.names(BACKUPS):
        fits = OURS.fullmatch(name)
        if fits and not _is_alive(alive, name):
            run = fits["job"], fits["run"]
            if run not in dead_runs:
                dead_runs[run] = fits["run"] in without or _is_dead(catalog, alive, *run)
            # within a live run only an older map can be superfluous
            if dead_runs[run] or names.MAP_PREFIX in name:
                yield name
    for name in catalog.store.names(SEGMENTS):
        if SEGMENT.fullmatch(name) and not _is_alive(alive, name):
            yield name


def _is_dead(catalog: Catalog, alive: sqlite3.Connection, backupjob: str, backupjobrun: str) -> bool:
    if _is_alive(alive, names.run(backupjob, backupjobrun)):
        return False
    if catalog.run(backupjob, backupjobrun) is not None:
        # a run without an epoch: the numbers do not tell all, so nothing may be deleted
        raise ObjectCorrupt(name=names.run(backupjob, backupjobrun), detail="no epoch names this run")
    return True


def _is_alive(alive: sqlite3.Connection, name: str) -> bool:
    return alive.execute("SELECT 1 FROM alive WHERE name = ?", (name,)).fetchone() is not None


def _delete(catalog: Catalog, garbage: Iterable[str], dry_run: bool) -> int:
    # listed to the end before the first deletion: some listings do not like to be changed under way
    doomed = list(garbage)
    if doomed and not dry_run:
        assert_writer(catalog)
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for _ in pool.map(_delete_one, [catalog] * len(doomed), doomed):
                pass
    return len(doomed)


def _delete_one(catalog: Catalog, name: str) -> None:
    try:
        catalog.store.delete(name)
    except ObjectMissing:
        return
