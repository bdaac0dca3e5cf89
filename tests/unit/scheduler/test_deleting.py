"""Restore points go, those that stay are whole; what nobody needs leaves the vault, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from raksha.db import backups, jobs, runs
from raksha.db.models import BackupJob, BackupJobRun, Task, Tombstone, Vault, VmResourceBackup
from raksha.db.session import Database
from raksha.errors import StillNeeded
from raksha.scheduler import committing, consolidating, deleting, retaining
from raksha.scheduler.places import writing
from raksha.states import BackupKind, BackupState, PinHolder, RunState, TaskState
from raksha.vault.catalog import Catalog
from tests.bed.pretend import PretendAgent
from tests.bed.scheduling import runs_of
from tests.unit.scheduler.service import Killed, Points, Service


@pytest.fixture
def service(sqlite: Database, tmp_path: Path) -> Service:
    return Service(sqlite, tmp_path)


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Points:
    return Points(monkeypatch)


def chain_of(service: Service, count: int, **job: object) -> tuple[PretendAgent, str, list[str]]:
    """A full backup and increments of one VM, each with another cluster written."""
    agent = service.agent()
    agent.have("web", "vda", "vdb", clusters=8)
    id = service.job("web", **job)
    made = []
    for number in range(count):
        agent.write("web", number % 8, seed=number)
        made.append(service.backup(id, BackupKind.FULL if not made else BackupKind.INCREMENTAL))
    return agent, id, made


def copies_of(service: Service, run_id: str) -> list[VmResourceBackup]:
    with service.database.reading() as session:
        return backups.of_run(session, run_id)


def test_the_oldest_point_of_a_chain_goes_and_the_others_restore(service: Service) -> None:
    _, job, made = chain_of(service, 4)
    service.delete(made[0], made[1])
    service.go_on_deleting()
    assert [run.id for run in runs_of(service.database)] == made[2:]
    assert {copy.kind for copy in copies_of(service, made[2])} == {BackupKind.FULL}
    assert {copy.other_map_digest for copy in copies_of(service, made[2])} == {None}
    service.check(job, *made[2:])
    assert {path.parts[2] for path in service.files("backupjobs") if path.parts[1] == job} == set(made[2:])
    before = service.files()
    done = service.collect()
    assert done is not None and done.segments == len(before - service.files()) > 0
    service.check(job, *made[2:])
    # a later increment builds on what is left
    agent = service.agents[0]
    agent.write("web", 3, seed=99)
    later = service.backup(job)
    assert set(agent.orders[-1].parents) == {"vda", "vdb"}
    service.check(job, *made[2:], later)
    assert service.collect() is not None
    service.check(job, *made[2:], later)


def test_all_of_it_goes_with_its_job(service: Service) -> None:
    _, job, _ = chain_of(service, 3)
    service.database.run(lambda s: jobs.begin_deleting(s, job))
    gone = 0
    for _ in range(3):
        gone += deleting.remove_jobs(service.database)
        service.go_on_deleting()
    assert gone == 1
    with service.database.reading() as session:
        for noun in (BackupJob, BackupJobRun, VmResourceBackup, Task):
            assert session.scalar(select(func.count()).select_from(noun)) == 0
    service.collect()
    assert service.files() == set()
    assert {path.parts[1] for path in service.files("backupjobs")} == {"vault.json", "keys", "epochs"}


@pytest.mark.slow
def test_killed_at_any_step_of_a_deletion_the_next_scheduler_goes_on(service: Service, points: Points) -> None:
    agent, job, made = chain_of(service, 3)
    points.arm(None)
    service.delete(made.pop(0))
    steps = [*points.passed]
    assert {"consolidate.swap.done", "delete.copies", "delete.rows"} <= set(steps)
    for step in range(len(steps)):
        agent.write("web", step % 8, seed=step)
        made.append(service.backup(job))
        points.arm(step)
        with pytest.raises(Killed):
            service.delete(made[0], me="first")
        points.arm(None)
        service.check(job, *made[1:])
        service.go_on_deleting()
        service.go_on_deleting()
        gone = made.pop(0)
        assert gone not in {run.id for run in runs_of(service.database)}, steps[step]
        service.check(job, *made)
    assert len(steps) > 25
    service.collect()
    service.check(job, *made)


def test_two_who_consolidate_the_same_do_it_once(service: Service, points: Points) -> None:
    _, job, made = chain_of(service, 2)
    (child, _) = copies_of(service, made[1])
    with service.database.reading() as session:
        vault = session.scalars(select(Vault)).one()

    def other() -> None:
        with writing(vault, 5) as catalog:
            consolidating.stand_alone(service.database, catalog, child, service.settings.spool(), 60)
            with service.database.reading() as session:
                row = backups.get(session, child.id)
            consolidating.settle(service.database, catalog, row)

    # the other is faster, and the garbage of the slower one does it no harm
    at = steps_of(service, vault, child, points).index("consolidate.swap")
    service.check(job, *made)
    again = copies_of(service, made[1])[1]
    child = again
    points.arm(at, other)
    with writing(vault, 5) as catalog, pytest.raises(StillNeeded):
        consolidating.stand_alone(service.database, catalog, again, service.settings.spool(), 60)
    points.arm(None)
    service.collect()
    service.check(job, *made)
    assert all(copy.kind == BackupKind.FULL and copy.pin_count == 0 for copy in copies_of(service, made[1]))


def steps_of(service: Service, vault: Vault, copy: VmResourceBackup, points: Points) -> list[str]:
    with writing(vault, 5) as catalog:
        points.arm(None)
        consolidating.stand_alone(service.database, catalog, copy, service.settings.spool(), 60)
        return [*points.passed]


def test_who_reads_keeps_it_and_the_trash_keeps_it_too(service: Service) -> None:
    _, job, made = chain_of(service, 2)
    base = [copy.id for copy in copies_of(service, made[0])]
    service.database.run(lambda s: backups.pin(s, PinHolder.RESTORE, "reader", base))
    service.delete(made[0])
    assert {copy.state for copy in copies_of(service, made[0])} == {BackupState.TRASHED}
    service.collect()
    service.check(job, *made)
    service.database.run(lambda s: backups.unpin(s, "reader"))
    service.settings = service.settings.__class__(**{**as_dict(service.settings), "trash_seconds": 3600.0})
    service.go_on_deleting()
    service.check(job, *made)
    old = update(VmResourceBackup).values(trashed_at=VmResourceBackup.trashed_at - 3601 * 1_000_000)
    service.database.run(lambda s: s.execute(old) and None)
    service.go_on_deleting()
    assert [run.id for run in runs_of(service.database)] == [made[1]]
    service.check(job, made[1])


def as_dict(settings: object) -> dict[str, object]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def test_retention_keeps_what_it_says_and_never_nothing(service: Service) -> None:
    agent, job, made = chain_of(service, 4, retention={"keep_last": 2})
    service.database.run(lambda s: runs.change(s, made[0], 1, protected=True))
    assert retaining.retain(service.database, service.settings, job) == [made[1]]
    assert retaining.retain(service.database, service.settings, job) == []
    service.go_on_deleting()
    left = [made[0], made[2], made[3]]
    service.check(job, *left)
    # a failed run does not count, and goes after a while
    id = service.queue(job)
    service.round()
    for task in agent.claim():
        agent.finish(task, None, TaskState.ERROR)
    service.round()
    agent.work()
    assert service.run_row(id).state == RunState.ERROR
    assert retaining.retain(service.database, service.settings, job) == []
    long_ago = (service.settings.keep_failed + 10) * 1_000_000
    old = update(BackupJobRun).where(BackupJobRun.id == id)
    service.database.run(lambda s: s.execute(old.values(finished_at=BackupJobRun.finished_at - long_ago)) and None)
    assert retaining.retain(service.database, service.settings, job) == [id]
    service.go_on_deleting()
    assert id not in {run.id for run in runs_of(service.database)}


# -- collecting -------------------------------------------------------------------------------------


def test_what_failed_and_what_nobody_knows_is_collected_and_what_is_under_way_is_not(service: Service) -> None:
    agent, job, made = chain_of(service, 2)
    keep, keep_objects = service.files(), service.files("backupjobs")
    failed = service.queue(job)
    agent.write("web", 5, seed=50)
    service.round()
    (task,) = agent.claim()
    agent.store(task)
    stored = service.files()
    assert stored - keep
    service.collect()
    assert service.files() == stored, "its task has not ended"
    agent.finish(task, None, TaskState.ERROR)
    service.round()
    agent.work()
    assert service.run_row(failed).state == RunState.ERROR
    root = service.folder / "vaults" / "project-a" / "backupjobs"
    stray = root / job / "3f0e7a52-0000-4000-8000-000000000000" / "web" / "vda" / f"BackupMap-{'0' * 64}"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"x")
    (root / "notes.txt").write_text("of a person")
    service.collect()
    assert service.files() == keep
    assert service.files("backupjobs") == {*keep_objects, Path("backupjobs/notes.txt")}
    service.check(job, *made)


def test_stored_and_not_committed_yet_is_no_garbage(service: Service) -> None:
    agent, job, made = chain_of(service, 1)
    agent.write("web", 2)
    id = service.to_commit(job)
    before = service.files(), service.files("backupjobs")
    service.collect()
    assert (service.files(), service.files("backupjobs")) == before
    committing.commit(service.database, service.settings, id, "me")
    service.check(job, *made, id)


def test_a_map_that_is_lost_ends_the_collection_before_anything_goes(service: Service) -> None:
    _, _, made = chain_of(service, 3)
    service.delete(made[0])
    service.go_on_deleting()
    root = service.folder / "vaults" / "project-a"
    lost = next(path for path in service.files("backupjobs") if "BackupMap-" in path.name and made[2] in path.parts)
    (root / lost).unlink()
    before = service.files()
    assert service.collect() is None
    assert service.files() == before


def test_what_is_deleted_and_made_while_it_collects_does_no_harm(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, job, made = chain_of(service, 3)
    map_of = Catalog.map_of

    def meanwhile(catalog: Catalog, *given: Any) -> Any:
        monkeypatch.setattr(Catalog, "map_of", map_of)
        agent.write("web", 1, seed=70)
        made.append(service.backup(job))
        for old in made[:2]:
            service.delete(old)
            service.go_on_deleting()
        return map_of(catalog, *given)

    monkeypatch.setattr(Catalog, "map_of", meanwhile)
    done = service.collect()
    assert done is not None
    service.check(job, *made[2:])
    service.collect()
    service.check(job, *made[2:])


def test_a_database_older_than_its_vault_collects_nothing(service: Service) -> None:
    _, job, made = chain_of(service, 3)
    service.delete(made[0])
    service.go_on_deleting()
    before = service.files(), service.files("backupjobs")

    def restore_dump(session: Session) -> None:
        session.execute(update(Vault).values(last_commit=2))
        session.execute(update(BackupJobRun).where(BackupJobRun.id == made[2]).values(commit_number=None))

    service.database.run(restore_dump)
    assert service.collect() is None
    assert (service.files(), service.files("backupjobs")) == before
    service.check(job, *made[1:])


def test_tombstones_go_when_nothing_of_theirs_is_listed(service: Service) -> None:
    _, _, made = chain_of(service, 2)
    service.delete(*made)
    service.go_on_deleting()
    with service.database.reading() as session:
        stones = session.scalars(select(Tombstone.task_id)).all()
    assert stones
    service.collect()
    for id in stones:
        service.database.run(lambda s, id=id: aged_stone(s, id))
    service.collect()
    with service.database.reading() as session:
        assert session.scalars(select(Tombstone)).all() == []
    assert service.files() == set()


def aged_stone(session: Session, id: str) -> None:
    old = update(Tombstone).where(Tombstone.task_id == id)
    session.execute(old.values(created_at=Tombstone.created_at - 30 * 86400 * 1_000_000))
