"""A database that was lost, or is older than its vault, gets all restore points back, and goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from raksha.db import backups, jobs, migrate, runs, tasks, vaults
from raksha.db.models import BackupJob, BackupJobRun, Tombstone, VmResourceBackup
from raksha.db.session import Database
from raksha.errors import ChangedMeanwhile, VaultForeign, VaultWriterOther
from raksha.scheduler import importing
from raksha.scheduler.importing import Imported, import_vault
from raksha.scheduler.serve import handlers
from raksha.states import BackupKind, JobState, RunState
from raksha.vault.address import open_store
from tests.bed.databases import PROJECT, opened
from tests.unit.scheduler.service import Service


@pytest.fixture
def lost(sqlite: Database, tmp_path: Path) -> Service:
    """A deployment whose vault stays."""
    (tmp_path / "lost").mkdir()
    made = Service(sqlite, tmp_path / "lost")
    made.agent("host-a").have("web", "vda", "vdb", clusters=70)
    return made


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Database]:
    with opened(f"sqlite:///{tmp_path}/fresh.db") as database:
        migrate.upgrade(database)
        yield database


def bring_back(lost: Service, database: Database, **how: Any) -> Imported:
    root = f"file://{lost.folder}/vaults"

    def declare(session: Session) -> Any:
        return vaults.declare(session, "main", kind="directory", url=root, is_default=True)

    service = database.run(declare)
    with closing(open_store(lost.url)) as store:
        return import_vault(database, service, how.pop("project", PROJECT), store, **how)


def facts(database: Database) -> dict[str, Any]:
    """What counts of all copies, and of their runs: but not what was asked for, which a vault does not tell once a copy
    has come to stand alone."""
    with database.reading() as session:
        copies = {
            (copy.backupjobrun_id, copy.resource): (
                copy.map_digest, copy.map_size, copy.kind, copy.size, copy.bytes_stored, copy.image_size, copy.top,
                copy.key_id, copy.vault_id, copy.vault_service_metadata, copy.taken_at, copy.state,
                None if copy.vm_resource_backup_backing_id is None
                else backups.get(session, copy.vm_resource_backup_backing_id).backupjobrun_id,
            )
            for copy in session.query(VmResourceBackup)
        }  # fmt: skip
        points = {
            run.id: (run.backupjob_id, run.taken_at, run.commit_number, run.bytes_stored, run.consistency)
            for run in session.query(BackupJobRun) if run.state == RunState.AVAILABLE
        }  # fmt: skip
    return {"copies": copies, "points": points}


def taken_over(lost: Service, database: Database, folder: Path) -> Service:
    """The deployment, with another database on the same vault."""
    made = Service.__new__(Service)
    made.__dict__.update(lost.__dict__)
    made.database = database
    made.ask = handlers(database, made.settings, lambda: None, made.access)
    made.agents = []
    agent = made.agent("host-a")
    old = lost.agents[0]
    agent.disks, agent.captured, agent.clock = old.disks, old.captured, old.clock
    agent.beat()
    return made


def test_everything_comes_back_and_goes_on_as_an_increment(lost: Service, fresh: Database, tmp_path: Path) -> None:
    agent = lost.agents[0]
    job = lost.job("web", name="nightly of web")
    points = [lost.backup(job, BackupKind.FULL)]
    for cluster in range(3):
        agent.write("web", cluster)
        points.append(lost.backup(job))
    # the oldest goes, so the next one stands alone
    lost.delete(points[0])
    lost.go_on_deleting()
    lost.go_on_deleting()
    points = points[1:]
    # and something that no restore point needs: a run that failed after it had stored
    agent.write("web", 60)
    failed = lost.to_commit(job)
    before = facts(lost.database)
    planned = bring_back(lost, fresh, dry_run=True)
    with fresh.reading() as session:
        assert session.query(BackupJob).count() == 0
    found = bring_back(lost, fresh)
    assert (found.runs, found.jobs, found.known, found.left_out) == (tuple(points), (job,), 0, {})
    assert (planned.runs, planned.jobs) == (found.runs, found.jobs)
    after = facts(fresh)
    assert after["points"] == before["points"]
    assert after["copies"] == {key: value for key, value in before["copies"].items() if key[0] != failed}
    with fresh.reading() as session:
        row = jobs.get(session, PROJECT, job)
        assert (row.name, row.state, row.schedule) == ("nightly of web", JobState.PAUSED, None)
        assert [vm.vm_id for vm in jobs.members(session, [job])[job]] == ["web"]
        (vault,) = vaults.all_vaults(session)
        assert vault.last_commit == max(run.commit_number or 0 for run in runs.points_of(session, job))
        assert session.query(Tombstone).count() > 0
    # again: nothing is new
    assert (bring_back(lost, fresh).runs, bring_back(lost, fresh).known) == ((), 3)
    service = taken_over(lost, fresh, tmp_path)
    with lost.database.reading() as session:
        stored_by = [task.id for task in tasks.of_run(session, failed)]
    garbage = {path for path in service.files() if any(id in path.name for id in stored_by)}
    assert garbage
    assert service.collect() is not None
    service.check(job, *points)
    agent = service.agents[0]
    agent.write("web", 5)
    new = service.backup(job)
    assert set(agent.orders[-1].parents) == {"vda", "vdb"}
    service.check(job, *points, new)
    assert not garbage & service.files()


def test_an_older_dump_gets_what_it_lacks(lost: Service, fresh: Database) -> None:
    job = lost.job("web")
    first = lost.backup(job, BackupKind.FULL)
    bring_back(lost, fresh)
    second = lost.backup(job)
    found = bring_back(lost, fresh)
    assert (found.runs, found.jobs, found.known) == ((second,), (), 1)
    assert set(facts(fresh)["points"]) == {first, second}


def test_a_point_that_lacks_something_is_left_out_with_all_on_it(lost: Service, fresh: Database) -> None:
    job = lost.job("web")
    good = lost.backup(job, BackupKind.FULL)
    bad = lost.backup(job)
    above = lost.backup(job)
    other = lost.backup(job, BackupKind.FULL)
    folder = lost.folder / "vaults" / PROJECT / "backupjobs" / job
    (folder / bad / "web" / "VMMetadata").unlink()
    (folder / other / "run.json").chmod(0o600)
    (folder / other / "run.json").write_text("{")
    found = bring_back(lost, fresh)
    assert found.runs == (good,)
    assert set(found.left_out) == {bad, above, f"backupjobs/{job}/{other}/run.json"}
    assert f"builds on {bad}" in found.left_out[above]
    with fresh.reading() as session:
        # and no number is given twice
        assert vaults.all_vaults(session)[0].last_commit == 4


def test_broken_off_and_done_again(lost: Service, fresh: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = lost.job("web")
    first = lost.backup(job, BackupKind.FULL)
    newest = lost.backup(job)
    (lost.folder / "vaults" / PROJECT / "backupjobs" / job / newest / "web" / "VMMetadata").unlink()

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(importing, "_name_members", die)
        with pytest.raises(SystemExit):
            bring_back(lost, fresh)
    found = bring_back(lost, fresh)
    assert (found.known, set(found.left_out)) == (1, {newest})
    with fresh.reading() as session:
        # of the last point that came back
        assert [vm.vm_id for vm in jobs.members(session, [job])[job]] == ["web"]
        assert [run.id for run in runs.points_of(session, job)] == [first]


def test_whose_it_is(lost: Service, fresh: Database) -> None:
    job = lost.job("web")
    lost.backup(job, BackupKind.FULL)
    bring_back(lost, fresh)
    with pytest.raises(VaultForeign):
        bring_back(lost, fresh, project="another")
    with fresh.reading() as session:
        (vault,) = vaults.all_vaults(session)
    fresh.run(lambda s: s.get_one(type(vault), vault.id).__setattr__("vault_uuid", "another"))
    with pytest.raises(ChangedMeanwhile):
        bring_back(lost, fresh)


def test_a_vault_of_a_host_or_of_another_row_only_when_told_so(lost: Service, fresh: Database) -> None:
    job = lost.job("web")
    point = lost.backup(job, BackupKind.FULL)
    document = lost.folder / "vaults" / PROJECT / "backupjobs" / "vault.json"
    document.chmod(0o600)
    document.write_text(document.read_text().replace('"service"', '"host"'))
    with pytest.raises(VaultWriterOther):
        bring_back(lost, fresh)
    assert facts(fresh) == {"copies": {}, "points": {}}
    assert bring_back(lost, fresh, take_over=True).runs == (point,)
    with fresh.reading() as session:
        (vault,) = vaults.all_vaults(session)
    assert vault.id in document.read_text()
    assert bring_back(lost, fresh).known == 1
