"""A service as `service.Service` has it, on an unsteady vault, with a model beside it that knows what must be so."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins
from msgspec.structs import replace
from sqlalchemy import select, update

from raksha.db import backups, jobs, migrate, runs, tasks, vaults, verifications
from raksha.db.models import BackupJob, BackupJobRun, Task, Vault, VmResourceBackup
from raksha.db.session import Database
from raksha.errors import Damaged
from raksha.retention import Retention
from raksha.rpc import Handler, Verb
from raksha.scheduler import collecting, committing, deleting, places, retaining, verify_start, verifying
from raksha.states import BackupKind, BackupState, RunState, TaskKind, TaskState, Trigger, VerificationState
from raksha.tasks import REGISTER, BackupOrder, Register
from raksha.types import CLUSTER_SIZE, Extent, ExtentKind, ResourceKey
from raksha.vault import names
from raksha.vault.catalog import Catalog
from raksha.vault.store import BACKUPS, Store
from tests.bed import pretend
from tests.bed.databases import opened
from tests.bed.pretend import PretendAgent
from tests.bed.scheduling import runs_of
from tests.unit.backup.disks import MemoryDisk, restored
from tests.unit.scheduler.service import Service
from tests.unit.scheduler.unsteady import Fate, UnsteadyStore, mortal

POINTS = (RunState.AVAILABLE, RunState.DEGRADED)
#: rules that die or are overtaken do so within so many changes
STEPS = 60
_HOUR = 3600


def cluster(value: int) -> bytes:
    """One of few contents, so that data comes back; 0: zeroes."""
    return bytes(CLUSTER_SIZE) if value == 0 else (b"%032d" % value) * (CLUSTER_SIZE // 32)


class Agent(PretendAgent):
    """Zeroes are told as zeroes, as a guest discards; it may die and start again."""

    def __init__(self, ask: Mapping[Verb[Any, Any], Handler], host: str, spool: Path) -> None:
        super().__init__(ask, host, spool)
        self.starts = 0

    def restart(self) -> None:
        self.starts += 1
        self.instance = f"start {self.starts} of {self.host}"
        facts = Register(host=self.host, instance=self.instance, version="1", capacity=8, capabilities={})
        self.id = self.ask[REGISTER](facts).service_id
        self.beat()

    def _disk(self, order: BackupOrder, vm: str, target: str, data: bytes) -> MemoryDisk:
        disk = super()._disk(order, vm, target, data)
        nothing = bytes(CLUSTER_SIZE)
        disk.listed = [
            Extent(at, CLUSTER_SIZE, ExtentKind.ZERO if data[at : at + CLUSTER_SIZE] == nothing else ExtentKind.DATA)
            for each in disk.listed
            for at in range(each.start, each.start + each.length, CLUSTER_SIZE)
        ]
        return disk


@contextmanager
def _database(template: Path, folder: Path) -> Iterator[Database]:
    if not template.exists():
        with opened(f"sqlite:///{template}") as database:
            migrate.upgrade(database)
    shutil.copy(template, folder / "raksha.db")
    with opened(f"sqlite:///{folder}/raksha.db") as database:
        yield database


class World:
    """Two jobs in one project; `within` says when, while something is done, somebody dies or comes in between."""

    def __init__(self, template: Path, seed: int) -> None:
        self._open = ExitStack()
        root = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(dir=root)))
        self.fate = Fate()
        self.store = UnsteadyStore(self.fate, seed)
        patch = self._open.enter_context(pytest.MonkeyPatch.context())
        for module in (places, pretend):
            patch.setattr(module, "open_store", self._opened)
        self.database = mortal(self._open.enter_context(_database(template, self.folder)), self.fate)
        self.service = Service(self.database, self.folder, verify_every=0.0, retries=0)
        self.agent = Agent(self.service.ask, "host-a", self.folder / "spool")
        self.service.agents.append(self.agent)
        self.disks = {("web", "vda"): 6, ("web", "vdb"): 3, ("db", "vda"): 5}
        for (vm, target), clusters in self.disks.items():
            self.agent.disks[vm, target] = b"".join(cluster(1 + at % 3) for at in range(clusters))
        self.agent.beat()
        self.jobs = [
            self.service.job("web", "db", consistency_group=False),
            self.service.job("web", name="weekly"),
        ]
        #: segments that are not as they were stored
        self.damaged: dict[str, bytes] = {}
        self._seen = -1

    def close(self) -> None:
        self._open.close()

    def _opened(self, *_: object, **__: object) -> Store:
        return self.store

    def catalog(self) -> Catalog:
        return Catalog.open(self.store)

    @property
    def has_vault(self) -> bool:
        return self.store.has(names.VAULT) is not None

    # -- what a guest does ------------------------------------------------------------------------------

    def write(self, disk: tuple[str, str], at: int, value: int) -> None:
        data = bytearray(self.agent.disks[disk])
        at = at % (len(data) // CLUSTER_SIZE) * CLUSTER_SIZE
        data[at : at + CLUSTER_SIZE] = cluster(value)
        self.agent.disks[disk] = bytes(data)

    def resize(self, disk: tuple[str, str], clusters: int) -> None:
        data = self.agent.disks[disk][: clusters * CLUSTER_SIZE]
        self.agent.disks[disk] = data.ljust(clusters * CLUSTER_SIZE, b"\0")

    # -- what people ask for ----------------------------------------------------------------------------

    def start(self, job: str, kind: BackupKind) -> None:
        under_way = [run for run in runs_of(self.database, job) if run.state not in runs.ENDED]
        if not [run for run in under_way if run.state != RunState.DELETING]:
            self.service.queue(job, kind)

    def ended(self) -> list[BackupJobRun]:
        return [run for run in runs_of(self.database) if run.state in runs.ENDED]

    def points(self) -> list[BackupJobRun]:
        return [run for run in runs_of(self.database) if run.state in POINTS]

    def protect(self, run: BackupJobRun, protected: bool) -> None:
        def work(session: Any) -> None:
            runs.change(session, run.id, runs.get(session, None, run.id).version, protected=protected)

        self.database.run(work)

    def delete(self, run: BackupJobRun) -> None:
        if not run.protected:
            self.database.run(lambda session: runs.begin_deleting(session, run.id))

    def cancel(self, run: BackupJobRun) -> None:
        self.database.run(lambda session: runs.request_cancel(session, run.id))

    def retention(self, job: str, keep: Retention) -> None:
        def work(session: Any) -> None:
            jobs.change(session, job, jobs.get(session, None, job).version, retention=to_builtins(keep))

        self.database.run(work)

    def trash(self, seconds: float) -> None:
        self.service.settings = replace(self.service.settings, trash_seconds=seconds)

    # -- what the service does --------------------------------------------------------------------------

    def within(self, left: int | None, act: Callable[[], None] | None, work: Callable[[], None]) -> None:
        """`work`, up to a change at which everybody dies (`act` None), or `act` comes in between. Then others are
        there, and the leases of the dead are over."""
        with self.fate.at(left, act):
            work()
        self.others()

    def others(self) -> None:
        def work(session: Any) -> None:
            session.execute(update(BackupJobRun).where(BackupJobRun.lease_until.is_not(None)).values(lease_until=1))
            claimed = Task.state == TaskState.CLAIMED
            session.execute(update(Task).where(claimed).values(lease_until=1))
            session.execute(update(Vault).values(collector_until=1))

        self.database.run(work)
        self.agent.restart()

    def round(self) -> None:
        self.service.round()

    def agents(self) -> None:
        self.service.round()
        for task in self.agent.claim(limit=2):
            try:
                self.agent.do(task)
            except Damaged as error:  # as a real one tells; what it needed is gone or damaged
                self.agent.finish(task, None, TaskState.ERROR)
                assert self.damaged, error
        self.service.round()

    def commits(self) -> None:
        for id in committing.waiting(self.database, 100):
            committing.commit(self.database, self.service.settings, id, "scheduler-2")

    def deletes(self) -> None:
        for id in deleting.waiting(self.database, 100):
            deleting.delete(self.database, self.service.settings, id, "scheduler-2")

    def collects(self) -> None:
        with self.database.reading() as session:
            found = [vault for vault in vaults.all_vaults(session) if vault.vault_uuid is not None]
        for vault in found:
            collecting.collect(self.database, self.service.settings, vault, "scheduler-2")

    def prunes(self) -> None:
        """Retention; it never takes the last one that restores, nor what is protected."""
        for job in self.jobs:
            before = [run for run in runs_of(self.database, job) if run.state == RunState.AVAILABLE]
            gone = set(retaining.retain(self.database, self.service.settings, job))
            assert not [run for run in before if run.id in gone and run.protected]
            assert not before or [run for run in before if run.id not in gone]

    def verify(self, job: str) -> None:
        """Asked for, read, judged; what was found is exactly what is so."""
        with self.database.reading() as session:
            going = verifications.going(session, 10)
        if not going and [run for run in runs_of(self.database, job) if run.state in POINTS]:
            self.database.run(
                lambda s: verifications.create(s, s.get_one(BackupJob, job), None, trigger=Trigger.REQUEST).id
            )
        self.verifies()

    def verifies(self) -> None:
        for _ in range(2):
            self.service.round()
            for id in verify_start.start(self.database, self.service.settings).read:
                verifying.judge(self.database, id)
            for task in self.agent.claim(kinds=[TaskKind.VERIFY]):
                self.agent.do(task)
        for id in verify_start.start(self.database, self.service.settings).read:
            verifying.judge(self.database, id)

    # -- what must be so --------------------------------------------------------------------------------

    def segments(self) -> list[str]:
        """With data of disks that restore points need."""
        found = {row.name for copy in self.copies() for row in self._rows(copy)}
        return sorted(found - set(self.damaged))

    def copies(self) -> list[VmResourceBackup]:
        with self.database.reading() as session:
            return [copy for run in self.points() for copy in backups.of_run(session, run.id)]

    def _rows(self, copy: VmResourceBackup) -> Iterator[Any]:
        yield from self.catalog().map_of(_key(copy), copy.map_digest or "").segments()

    def damage(self, name: str, *, lose: bool) -> None:
        whole = self.store.has(name)
        if whole is not None:
            self.damaged[name] = whole
            self.store.damage(name, lose=lose)

    def forget_healed(self) -> None:
        """Or collected, and nobody's any more."""
        for name, whole in list(self.damaged.items()):
            if self.store.has(name) == whole:
                del self.damaged[name]

    def hit(self) -> set[str]:
        """Ids of copies that need what is damaged, by the maps that the database knows."""
        with self.database.reading() as session:
            found = set()
            for copy in self.copies():
                chain = backups.chain(session, copy.id)
                if any(row.name in self.damaged for each in chain for row in self._rows(each)):
                    found.add(copy.id)
            return found

    def check(self) -> None:
        """Every restore point restores, bit for bit, but for what is damaged; that is refused."""
        if self._seen == self.fate.steps or not self.has_vault:
            return
        self.forget_healed()
        catalog = self.catalog()
        hit = self.hit() if self.damaged else set()
        for copy in self.copies():
            wanted = self.agent.captured[copy.backupjobrun_id][copy.vm_id, copy.resource]
            try:
                assert restored(catalog, _key(copy), self.folder / "spool") == wanted
            except Damaged as error:
                assert self.damaged and (copy.id in hit or copy.other_map_digest), error
        self._seen = self.fate.steps

    def check_verified(self, job: str) -> None:
        """After a verification of all of a job with nothing else under way."""
        self.forget_healed()
        hit = self.hit()
        for copy in self.copies():
            if copy.id in hit and copy.backupjob_id == job:
                assert copy.state == BackupState.DEGRADED
            elif copy.backupjob_id == job:
                assert copy.state == BackupState.AVAILABLE
        for run in runs_of(self.database, job):
            if run.state in POINTS:
                with self.database.reading() as session:
                    lost = any(copy.id in hit for copy in backups.of_run(session, run.id))
                assert run.state == (RunState.DEGRADED if lost else RunState.AVAILABLE)

    def quiet(self) -> None:
        """Everything that was begun comes to its end; then nothing is left but what restore points are made of."""
        self.others()
        self.trash(0)
        self.store.settled()
        for _ in range(8):
            self.agents()
            self.commits()
            self.verifies()
            self.deletes()
            self.others()
            if not self._under_way():
                break
        for job in self.jobs:
            self.verify(job)
            self.check_verified(job)
        self.check()
        # who builds on what is damaged keeps it from going: these go with it
        while stuck := [run for run in runs_of(self.database) if run.state == RunState.DELETING]:
            degraded = [run for run in self.points() if run.state == RunState.DEGRADED]
            assert degraded, self._told(stuck)
            for run in degraded:
                self.protect(run, False)
                self.database.run(lambda session, id=run.id: runs.begin_deleting(session, id))
            for _ in range(4):
                self.deletes()
                self.others()
                self.agents()
        states = {run.state for run in runs_of(self.database)}
        assert states <= {*POINTS, RunState.ERROR, RunState.CANCELLED}, states
        with self.database.reading() as session:
            assert not backups.pin_holders(session)
            assert not [row for row in verifications.going(session, 9) if row.state in (VerificationState.QUEUED,)]
            assert not [task for task in session.scalars(select(Task)) if task.state not in tasks.TERMINAL]
        if not self.has_vault:
            return
        for _ in range(2):
            self.store.settled()
            self.collects()
        self.check()
        self.forget_healed()
        assert self.store.all_names() - self._needed() == set()
        assert self._needed() - self.store.all_names() <= set(self.damaged)

    def _told(self, found: list[BackupJobRun]) -> str:
        lines = []
        with self.database.reading() as session:
            for run in found:
                lines.append(f"run {run.id} of {run.commit_number}: {run.state}, {run.error}")
                for copy in backups.of_run(session, run.id):
                    backing, other = copy.vm_resource_backup_backing_id, copy.other_map_digest
                    lines.append(f"  {copy.id} {copy.vm_id} {copy.resource}: {copy.state} on {backing}, {other}")
        return "\n".join(lines)

    def _under_way(self) -> bool:
        with self.database.reading() as session:
            open_tasks = session.scalars(select(Task.id).where(Task.state.not_in(tasks.TERMINAL))).first()
            return bool(open_tasks or verifications.going(session, 1)) or not all(
                run.state in runs.ENDED for run in runs_of(self.database)
            )

    def _needed(self) -> set[str]:
        catalog, needed = self.catalog(), {names.VAULT}
        needed |= {
            name for name in self.store.all_names() if name.startswith((f"{BACKUPS}/keys/", f"{BACKUPS}/epochs/"))
        }
        for run in self.points():
            needed.add(names.run(run.backupjob_id, run.id))
        for copy in self.copies():
            key = _key(copy)
            assert catalog.metadata(key).map.digest == copy.map_digest
            needed |= {
                names.vm_metadata(key.backupjob, key.backupjobrun, key.vm),
                names.metadata(key),
                names.image(key),
            }
            needed.add(names.map_object(key, copy.map_digest or ""))
            needed |= set(catalog.map_of(key, copy.map_digest or "").object_names())
        return needed


def _key(copy: VmResourceBackup) -> ResourceKey:
    return ResourceKey(copy.backupjob_id, copy.backupjobrun_id, copy.vm_id, copy.resource)
