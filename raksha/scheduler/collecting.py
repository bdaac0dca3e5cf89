"""Removes from a vault what no restore point needs. Correct without clocks, whoever else commits or deletes meanwhile.

    one moment of the database      T: tasks that are over, as is their run; the copies that are alive or pinned
    epochs/<n+1> is not there       else the database is older than its vault: nothing is touched
    L                               what the maps of those copies name; one that is not there, of a copy that is alive
                                    still, ends the collection
    segments                        those whose task is in T and that are not in L go
    objects of runs                 those of runs that failed or have no row go, and maps that no row names

A segment becomes part of a later map only by a copy that is pinned, hence in L, or by a task that is not in T. What is
found among the objects of runs is looked up in the database once more after it was listed: whoever stores something
there has said so before. A listing that lags leaves garbage for the next time.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice

from msgspec import Struct
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import backups, rows, runs, vaults
from raksha.db.backups import Ground
from raksha.db.columns import SECOND
from raksha.db.models import Vault, VmResourceBackup
from raksha.db.session import Database
from raksha.errors import DatabaseBehind, ObjectMissing, RakshaError, RowNotFound
from raksha.scheduler import consolidating
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.scheduler.keeping import kept
from raksha.scheduler.places import writing
from raksha.states import RunState
from raksha.vault import names
from raksha.vault.catalog import Catalog
from raksha.vault.collect import OURS, SEGMENT
from raksha.vault.commit import assert_writer, check_epoch
from raksha.vault.store import BACKUPS, SEGMENTS

_log = logging.getLogger(__name__)

_PATIENCE = 60.0
#: objects deleted between two looks whether the vault is still ours to collect
_AT_ONCE = 500
_PARALLEL = 8
#: seconds that a listing may lag, generously
_LAG = 7 * 86400.0
_FAILED = (RunState.ERROR, RunState.CANCELLED)
#: copy and digest
_Map = tuple[str, str]
_POINTS = (RunState.AVAILABLE, RunState.DEGRADED)


class Collected(Struct, frozen=True):
    """What a collection removed."""

    segments: int
    objects: int


def due(database: Database, settings: SchedulerSettings) -> list[Vault]:
    """Vaults whose last collection is long ago and that nobody collects now."""
    with database.reading() as session:
        now = rows.clock(session)
        since = now - round(settings.collect_interval * SECOND)
        return [
            vault for vault in vaults.all_vaults(session)
            if vault.vault_uuid is not None
            and (vault.collected_at or vault.created_at) < since and vault.collector_until < now
        ]  # fmt: skip


def collect(
    database: Database, settings: SchedulerSettings, vault: Vault, me: str, access: Access = ENVIRONMENT
) -> Collected | None:
    """None: another does, or it cannot be done now; the log says why. Raises nothing but what nobody thought of."""
    seconds = settings.commit_lease
    ours = partial(database.run, partial(vaults.collect, id=vault.id, collector_id=me, seconds=seconds))
    if not ours():
        return None
    told = {"action": "collect", "vault": vault.id}
    done = None
    try:
        credentials = access.credentials(database, vault)
        with kept(ours, seconds), writing(vault, _PATIENCE, credentials) as catalog:
            done = _Collection(database, catalog, vault, ours)()
        level = logging.INFO if done.segments or done.objects else logging.DEBUG
        _log.log(level, "vault %s: %d segments, %d objects removed", vault.url, done.segments, done.objects, extra=told)
    except RakshaError as error:
        _log.error("nothing more is collected in vault %s: %s", vault.url, error, extra=told)
    # also after a failure: it is tried again after the same time, not at once
    database.run(lambda session: vaults.collected(session, vault.id, me))
    return done


class _Collection:
    """One use."""

    def __init__(self, database: Database, catalog: Catalog, vault: Vault, ours: Callable[[], bool]) -> None:
        """`ours`: whether the vault is (still) ours to collect."""
        self._database = database
        self._catalog = catalog
        self._vault = vault
        self._ours = ours
        with database.reading() as session:
            self._ground: Ground = backups.ground(session, vault.id)

    def __call__(self) -> Collected:
        self._check_database()
        self._settle()
        # a private temporary file: the set may be larger than memory should be
        with closing(sqlite3.connect("")) as alive:
            alive.execute("CREATE TABLE alive (name TEXT PRIMARY KEY) WITHOUT ROWID")
            self._note_alive(alive)
            left: set[str] = set()
            segments = self._delete(self._dead_segments(alive, left))
        objects = self._delete(self._dead_objects())
        self._forget(left)
        return Collected(segments, objects)

    # -- what is alive ------------------------------------------------------------------------------

    def _check_database(self) -> None:
        """Raises `DatabaseBehind`."""
        number = self._ground.last_commit + 1
        with self._database.reading() as session:
            taker = runs.of_number(session, self._vault.id, number)
        check_epoch(self._catalog, number, taker)

    def _settle(self) -> None:
        """Consolidations that were broken off before the vault said so."""
        with self._database.reading() as session:
            swapped = backups.swapped(session, self._vault.id)
        for copy in swapped:
            if copy.state in backups.READABLE and copy.pin_count == 0:
                try:
                    consolidating.settle(self._database, self._catalog, copy)
                except RakshaError as error:
                    _log.warning("copy %s: %s", copy.id, error, extra={"action": "collect"})

    def _note_alive(self, alive: sqlite3.Connection) -> None:
        """Names of segments and tables, map by map. Raises `Damaged`.

        A map that is gone may be that of a copy which was deleted, or consolidated, since that moment; others that were
        made meanwhile may need what it named. So the copies that are alive by now are read as well, until all are.
        """
        copies, read, gone = self._ground.alive, set[_Map](), set[_Map]()
        while True:
            missing = set[_Map]()
            for copy in copies:
                if copy.map_digest is None:
                    raise ObjectMissing(name=f"the map of {copy.id}")
                for digest in {copy.map_digest, copy.other_map_digest} - {None}:
                    one = copy.id, str(digest)
                    if one in read or self._note(alive, copy, str(digest)):
                        read.add(one)
                    elif digest == copy.map_digest:  # nobody reads the other one
                        missing.add(one)
            if lost := missing & gone:  # and their copies are alive still
                raise ObjectMissing(name=f"the map {min(lost)[1]} of copy {min(lost)[0]}")
            if not missing:
                return
            gone |= missing
            with self._database.reading() as session:
                copies = backups.ground(session, self._vault.id).alive

    def _note(self, alive: sqlite3.Connection, copy: VmResourceBackup, digest: str) -> bool:
        """False: the map is gone."""
        try:
            found = self._catalog.map_of(consolidating.key_of(copy), digest).object_names()
            alive.executemany("INSERT OR IGNORE INTO alive VALUES (?)", ((name,) for name in found))
        except ObjectMissing:
            return False
        return True

    # -- what is not --------------------------------------------------------------------------------

    def _dead_segments(self, alive: sqlite3.Connection, left: set[str]) -> Iterator[str]:
        """`left` gets the tasks of which anything stays."""
        for name in self._catalog.store.names(SEGMENTS):
            fits = SEGMENT.fullmatch(name)
            if fits is None:
                continue
            task = fits["claim"].rpartition(".")[0]
            needed = alive.execute("SELECT 1 FROM alive WHERE name = ?", (name,)).fetchone() is not None
            if task in self._ground.ended_tasks and not needed:
                yield name
            left.add(task)  # also of what goes now: another look sees that it is gone

    def _dead_objects(self) -> Iterator[str]:
        listed: dict[tuple[str, str], list[str]] = {}
        for name in self._catalog.store.names(BACKUPS):
            fits = OURS.fullmatch(name)
            if fits:
                listed.setdefault((fits["job"], fits["run"]), []).append(name)
        for (job, run), found in listed.items():
            yield from self._dead_of_run(job, run, found)

    def _dead_of_run(self, job: str, run: str, listed: Sequence[str]) -> Iterator[str]:
        """Newest object first: `run.json` makes a run."""
        then = self._ground.runs.get(run)
        with self._database.reading() as session:
            now = _state(session, run)
            maps = backups.known_maps(session, run)
        if now is None or (then in _FAILED and now in _FAILED):
            if now is None and then is None and (there := self._catalog.run(job, run)) is not None:
                raise DatabaseBehind(url=self._catalog.store.url, number=there.number, backupjobrun=run)
            yield from sorted(listed, key=lambda name: not name.endswith(names.RUN_FILE))
        elif then in _POINTS and now in _POINTS and maps is not None:
            for name in listed:
                _, prefix, digest = name.rpartition(names.MAP_PREFIX)
                if prefix and digest not in maps:
                    yield name

    # -- going --------------------------------------------------------------------------------------

    def _delete(self, doomed: Iterator[str]) -> int:
        # listed to the end before the first deletion: some listings do not like to be changed under way
        found = iter(list(doomed))
        count = 0
        with ThreadPoolExecutor(_PARALLEL) as pool:
            while batch := list(islice(found, _AT_ONCE)):
                self._still_ours()
                assert_writer(self._catalog)
                count += len(list(pool.map(self._catalog.store.delete, batch)))
        return count

    def _still_ours(self) -> None:
        """Raises `RowNotFound` when another collects this vault by now."""
        if not self._ours():
            raise RowNotFound(noun="collection of vault", id=self._vault.id)

    def _forget(self, left: set[str]) -> None:
        """Tombstones have done their work when nothing of theirs is listed."""
        with self._database.reading() as session:
            old = backups.buried(session, self._vault.id, _LAG)
        if gone := old - left:
            self._database.run(partial(backups.forget, task_ids=gone))


def _state(session: Session, run_id: str) -> RunState | None:
    try:
        return runs.get(session, None, run_id).state
    except RowNotFound:
        return None
