"""Any order of backups, deletions, retention, readers, collections, damage and verification, with a scheduler that
dies at any step and a vault whose listings lag: hypothesis looks for one after which a restore point does not restore,
and makes it short.

After every step each available point restores from the vault alone, bit for bit; of damage that nobody has looked for
yet a restore is refused, and never gives other bytes. When everybody is done, deletions leave nothing behind.

RAKSHA_SEQUENCES=3000 ./run-tests slow -k stateful makes it longer; a failure prints how to play it again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import update
from sqlalchemy.orm import Session

from raksha.db import backups, migrate, runs, verifications
from raksha.db.models import BackupJob, BackupJobRun, Task, Vault
from raksha.errors import Damaged, StateConflict
from raksha.scheduler import retaining, verify_start, verifying
from raksha.scheduler.housekeeping import tidy
from raksha.scheduler.reap import reap
from raksha.states import BackupKind, PinHolder, RunState, TaskKind, Trigger, VerificationState
from raksha.types import CLUSTER_SIZE
from raksha.vault.directory import DirectoryStore
from tests.bed.databases import opened
from tests.bed.scheduling import runs_of
from tests.unit.scheduler.service import Killed, Points, Service

DISKS = [("web", "vda"), ("web", "vdb"), ("db", "vda")]
CLUSTERS = 4
KEPT = 3
#: crash points that are passed before the death; none: nobody dies
DEATHS = st.one_of(st.none(), st.integers(0, 24))


class Lag:
    """A store whose listings, while it is on, leave out what is new and still show what is gone."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.on = False
        self._new: set[str] = set()
        self._gone: set[str] = set()
        for name in ("put", "put_file", "put_manifest", "delete"):
            patch.setattr(DirectoryStore, name, self._noted(getattr(DirectoryStore, name), name == "delete"))
        patch.setattr(DirectoryStore, "names", self._listed(DirectoryStore.names))

    def set(self, on: bool) -> None:
        self.on = on
        self._new.clear()
        self._gone.clear()

    def _noted(self, does: Callable[..., None], deletes: bool) -> Callable[..., None]:
        def noted(store: DirectoryStore, name: str, *words: object, **more: object) -> None:
            there = (store._root / name).exists()
            does(store, name, *words, **more)
            if self.on and deletes and there:
                (self._new if name in self._new else self._gone).symmetric_difference_update({name})
            elif self.on and not deletes and not there:
                (self._gone if name in self._gone else self._new).symmetric_difference_update({name})

        return noted

    def _listed(self, names: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
        def listed(store: DirectoryStore, container: str, prefix: str = "") -> Iterator[str]:
            found = {*names(store, container, prefix)} - self._new
            yield from sorted(found | {name for name in self._gone if name.startswith(f"{container}/{prefix}")})

        return listed


class Machine(RuleBasedStateMachine):
    def __init__(self, empty: Path) -> None:
        """`empty`: a database to begin with."""
        super().__init__()
        self.stack = ExitStack()
        folder = Path(mkdtemp(prefix="raksha-stateful-"))
        self.stack.callback(shutil.rmtree, folder)
        shutil.copy(empty, folder / "raksha.db")
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        database = self.stack.enter_context(opened(f"sqlite:///{folder}/raksha.db"))
        self.service = Service(database, folder, verify_every=0.0)
        self.points = Points(patch)
        self.lag = Lag(patch)
        self.readers: dict[str, str] = {}
        #: something was damaged that no verification has seen
        self.unseen = False
        #: what damaged segments held
        self.hurt: dict[Path, bytes] = {}
        self.seed = 0

    @initialize()
    def begin(self) -> None:
        self.agent = self.service.agent()
        for vm, disk in DISKS:
            # two disks that begin alike
            self.agent.have(vm, disk, clusters=CLUSTERS)
        self.agent.disks["db", "vda"] = self.agent.disks["web", "vda"]
        both = self.service.job("web", "db", name="both", consistency_group=False)
        self.jobs = [both, self.service.job("web", name="web alone", retention={"keep_last": KEPT})]
        self.service.backup(both, BackupKind.FULL)

    # -- steps ------------------------------------------------------------------------------------

    @rule(
        disk=st.sampled_from(DISKS), cluster=st.integers(0, CLUSTERS - 1), what=st.sampled_from(["new", "zero", "same"])
    )
    def write(self, disk: tuple[str, str], cluster: int, what: str) -> None:
        at = slice(cluster * CLUSTER_SIZE, (cluster + 1) * CLUSTER_SIZE)
        if what == "new":
            self.seed += 1
            self.agent.write(disk[0], cluster, disk[1], seed=self.seed)
            return
        data = bytearray(self.agent.disks[disk])
        data[at] = bytes(CLUSTER_SIZE) if what == "zero" else self.agent.disks[DISKS[0]][at]
        self.agent.disks[disk] = bytes(data)

    @rule(job=st.integers(0, 1), full=st.booleans(), dies=DEATHS, collected=st.booleans())
    def backup(self, job: int, full: bool, dies: int | None, collected: bool) -> None:
        """`collected`: between the last of the data and the commit."""
        service = self.service
        id = service.to_commit(self.jobs[job], BackupKind.FULL if full else BackupKind.INCREMENTAL)
        if collected:
            self.collect(None if dies is None else 24 - dies)
        self.until(dies, lambda: service.commit(id, "first"))
        service.lease_over(id)
        if service.run_row(id).state == RunState.COMMITTING:
            assert service.commit(id, "second") == RunState.AVAILABLE
        self.agent.work()

    @rule(which=st.integers(0, 99), dies=DEATHS)
    def delete(self, which: int, dies: int | None) -> None:
        free = [run.id for run in self.all() if not run.protected]
        if free:
            self.until(dies, lambda: self.service.delete(free[which % len(free)]))

    @rule(which=st.integers(0, 99))
    def protect(self, which: int) -> None:
        if found := self.all():
            run = found[which % len(found)]
            self.service.database.run(lambda s: runs.change(s, run.id, run.version, protected=not run.protected))

    @rule()
    def retain(self) -> None:
        job = self.jobs[1]
        before = [run.id for run in self.all(job)]
        protected = {run.id for run in self.all(job) if run.protected}
        gone = retaining.retain(self.service.database, self.service.settings, job)
        assert not protected & {*gone}
        assert len(before) - len(gone) >= min(len(before), KEPT)

    @rule(dies=DEATHS)
    def go_on(self, dies: int | None) -> None:
        """Leases end; what the dead have left is taken up."""
        database = self.service.database
        mine = Task.kind == TaskKind.CONSOLIDATE
        database.run(lambda s: s.execute(update(Task).where(mine).values(lease_until=1)) and None)
        reap(database, self.service.settings)
        tidy(database, self.service.settings)
        self.until(dies, self.service.go_on_deleting)

    @rule(dies=DEATHS)
    def collect(self, dies: int | None) -> None:
        self.until(dies, self.service.collect)
        self.service.database.run(lambda s: s.execute(update(Vault).values(collector_until=0)) and None)

    @rule(which=st.integers(0, 99))
    def read(self, which: int) -> None:
        if found := [run for run in self.all() if run.state == RunState.AVAILABLE]:
            run, reader = found[which % len(found)].id, f"reader {len(self.readers)} {which}"
            try:
                self.service.database.run(lambda s: self.pin(s, run, reader))
            except StateConflict:  # what it builds on is in the trash
                return
            self.readers[reader] = run

    @rule()
    def end_reading(self) -> None:
        for reader in self.readers:
            self.service.database.run(lambda s, reader=reader: backups.unpin(s, reader))
        self.readers.clear()

    @rule(on=st.booleans())
    def listings(self, on: bool) -> None:
        self.lag.set(on)

    @precondition(lambda self: not self.unseen)
    @rule(which=st.integers(0, 99))
    def damage(self, which: int) -> None:
        root = next((self.service.folder / "vaults").iterdir()) / "backupjobs_segments"
        found = sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size > CLUSTER_SIZE // 2)
        if found:
            victim = found[which % len(found)]
            whole = victim.read_bytes()
            victim.chmod(0o600)
            victim.write_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:])
            self.hurt.setdefault(victim, whole)
            self.unseen = True

    @rule()
    def verify(self) -> None:
        """All points, twice: what the first pass has healed for one job, another finds whole in the second. Whatever a
        restore refuses is called damaged then, and where nothing is damaged any more, nothing is."""
        for job in [*self.jobs, *self.jobs]:
            if self.all(job):
                self.verified(job)
        self.unseen = False
        found = self.all()
        assert all(run.state == RunState.DEGRADED for run in found if not self.restores(run.backupjob_id, run.id))
        if all(path.read_bytes() == whole for path, whole in self.hurt.items() if path.exists()):
            assert all(run.state == RunState.AVAILABLE for run in found)

    # -- what is true after each -------------------------------------------------------------------

    @invariant()
    def points_restore(self) -> None:
        for run in self.all():
            if run.state == RunState.AVAILABLE:
                assert self.restores(run.backupjob_id, run.id) or self.unseen, run.id

    @invariant()
    def what_somebody_reads_is_there(self) -> None:
        for run in self.readers.values():
            row = next(each for each in runs_of(self.service.database) if each.id == run)
            assert self.restores(row.backupjob_id, run) or self.unseen or row.state != RunState.AVAILABLE

    def teardown(self) -> None:
        try:
            if hasattr(self, "jobs"):
                self.all_goes()
        finally:
            self.stack.close()

    def all_goes(self) -> None:
        self.lag.set(False)
        self.end_reading()
        database = self.service.database
        with database.reading() as session:
            holders = [id for _, id in backups.pin_holders(session)]
        for holder in holders:
            database.run(lambda s, holder=holder: backups.unpin(s, holder))
        for job in self.jobs:
            database.run(lambda s, job=job: runs.delete_ended(s, job))
        for _ in range(4):
            self.go_on(None)
        assert runs_of(database) == []
        self.collect(None)
        assert self.service.files() == set()
        assert {path.parts[1] for path in self.service.files("backupjobs")} == {"vault.json", "keys", "epochs"}

    # -- how ------------------------------------------------------------------------------------------

    def until(self, dies: int | None, work: Callable[[], object]) -> None:
        self.points.arm(dies)
        try:
            work()
        except Killed:
            pass
        finally:
            self.points.arm(None)

    def all(self, job: str | None = None) -> list[BackupJobRun]:
        """Restore points."""
        return [run for run in runs_of(self.service.database, job) if run.state in runs.POINTS]

    def restores(self, job: str, run: str) -> bool:
        """Whether it is refused. Fails if it gives other bytes than were captured."""
        try:
            self.service.check(job, run)
        except Damaged:
            return False
        return True

    def pin(self, session: Session, run: str, reader: str) -> None:
        chains = [backups.chain(session, copy.id) for copy in backups.of_run(session, run)]
        backups.pin(session, PinHolder.EXPORT, reader, {copy.id for chain in chains for copy in chain})

    def verified(self, job: str) -> None:
        database = self.service.database

        def ask(session: Session) -> str:
            row = session.get_one(BackupJob, job)
            return verifications.create(session, row, None, trigger=Trigger.REQUEST).id

        id = database.run(ask)
        self.agent.beat()
        for _ in range(2):
            reap(database, self.service.settings)
            done = verify_start.start(database, self.service.settings)
            for each in done.read:
                verifying.judge(database, each, self.service.access)
            self.agent.work()
        with database.reading() as session:
            assert verifications.get(session, None, id).state == VerificationState.DONE


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "raksha.db"
    with opened(f"sqlite:///{path}") as database:
        migrate.upgrade(database)
    return path


def walk(empty: Path, examples: int, steps: int, **more: bool) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        lambda: Machine(empty),
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=quiet,
            print_blob=True, **more,
        ),
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_whatever_happens_in_whatever_order_what_is_there_restores(empty: Path) -> None:
    walk(empty, 8, 12, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(36000)
def test_the_same_for_longer(empty: Path) -> None:
    walk(empty, int(os.environ.get("RAKSHA_SEQUENCES", "25")), 30)
