"""A run becomes a restore point once, whoever commits it and whoever dies; its bytes come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.db.columns import SECOND
from raksha.db.models import BackupJobRun, Task, Vault
from raksha.db.models import Service as ServiceRow
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.scheduler import committing
from raksha.states import BackupKind, RunState, ServiceState
from tests.bed.databases import PROJECT
from tests.bed.pretend import PretendAgent
from tests.bed.scheduling import held, runs_of, tasks_of
from tests.unit.scheduler.service import Killed, Points, Service


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Points:
    return Points(monkeypatch)


@pytest.fixture
def service(sqlite: Database, tmp_path: Path) -> Service:
    return Service(sqlite, tmp_path)


def test_full_and_increments_of_two_hosts_restore(service: Service) -> None:
    one, two = service.agent("host-a"), service.agent("host-b")
    one.have("web", "vda", "vdb")
    two.have("db")
    job = service.job("web", "db", consistency_group=False)
    made = [service.backup(job, BackupKind.FULL)]
    for number in range(3):
        one.write("web", number, seed=number)
        two.write("db", 5, seed=number)
        made.append(service.backup(job))
    service.check(job, *made)
    assert [service.run_row(id).commit_number for id in made] == [1, 2, 3, 4]
    assert [(order.vm, order.number) for order in one.finished] == [("web", n) for n in (1, 2, 3, 4)]
    assert held(service.database) == {}
    last = one.orders[-1]
    assert {disk: copy.key.backupjobrun for disk, copy in last.parents.items()} == {"vda": made[2], "vdb": made[2]}
    assert last.parents["vda"].number == 3
    assert {copy.key.backupjobrun for copy in last.history} == {made[0], made[1]}
    row = service.run_row(made[-1])
    assert (row.state, row.group_consistent, row.bytes_total > 0) == (RunState.AVAILABLE, None, True)
    assert all(task.result is None for task in tasks_of(service.database, made[-1]) if task.kind == "backup")


# -- killed, overtaken ------------------------------------------------------------------------------


def one_vm(service: Service) -> tuple[PretendAgent, str]:
    agent = service.agent()
    agent.have("web", "vda", "vdb", clusters=3)
    return agent, service.job("web")


def first_of(service: Service, points: Points, agent: PretendAgent, job: str) -> tuple[list[str], list[str]]:
    """A full backup and an increment, and the points that the commit of the second passes."""
    made = [service.backup(job, BackupKind.FULL), service.to_commit(job)]
    points.arm(None)
    assert service.commit(made[-1]) == RunState.AVAILABLE
    passed = [*points.passed]
    agent.work()
    return made, passed


def test_killed_at_any_step_of_a_commit_the_next_scheduler_completes_it(service: Service, points: Points) -> None:
    agent, job = one_vm(service)
    made, passed = first_of(service, points, agent, job)
    assert {"vault.put.epoch", "vault.put.run.json.done", "commit.number.done", "commit.publish.done"} <= {*passed}
    for step in range(len(passed)):
        agent.write("web", step % 3, seed=step)
        id = service.to_commit(job)
        points.arm(step)
        with pytest.raises(Killed):
            service.commit(id, "first")
        points.arm(None)
        service.lease_over(id)
        if service.run_row(id).state != RunState.AVAILABLE:
            assert service.commit(id, "second") == RunState.AVAILABLE
        agent.work()
        made.append(id)
    assert len(made) > 15
    service.check(job, *made)
    assert [service.run_row(id).commit_number for id in made] == list(range(1, len(made) + 1))
    assert [order.backupjobrun for order in agent.finished] == made
    assert held(service.database) == {}


def test_overtaken_at_any_step_it_changes_nothing_any_more(service: Service, points: Points) -> None:
    agent, job = one_vm(service)
    made, passed = first_of(service, points, agent, job)
    for step in range(len(passed)):
        agent.write("web", step % 3, seed=step)
        id = service.to_commit(job)

        def overtake(id: str = id) -> None:
            service.lease_over(id)
            service.commit(id, "second")

        points.arm(step, overtake)
        assert service.commit(id, "first") == RunState.AVAILABLE
        assert agent.work() == 1
        made.append(id)
    service.check(job, *made)
    assert [service.run_row(id).commit_number for id in made] == list(range(1, len(made) + 1))
    assert [order.number for order in agent.finished] == list(range(1, len(made) + 1))


# -- faults -----------------------------------------------------------------------------------------


def test_a_vault_that_is_away_puts_the_commit_off_and_its_vm_stays_reserved(service: Service, tmp_path: Path) -> None:
    agent, job = one_vm(service)
    first = service.backup(job, BackupKind.FULL)
    agent.write("web", 1)
    id = service.to_commit(job)
    (tmp_path / "vaults").rename(tmp_path / "away")
    assert service.commit(id) == RunState.COMMITTING
    row = service.run_row(id)
    assert row.owner_id is None and row.lease_until is not None
    assert committing.waiting(service.database, 10) == [], "not again at once"
    assert held(service.database)["vm", "web"] == [id]
    (tmp_path / "away").rename(tmp_path / "vaults")
    service.lease_over(id)
    assert service.commit(id) == RunState.AVAILABLE
    service.check(job, first, id)


def test_a_segment_that_is_lost_fails_the_run_and_it_is_tried_again(service: Service, tmp_path: Path) -> None:
    agent, job = one_vm(service)
    first = service.backup(job, BackupKind.FULL)
    agent.write("web", 1)
    before = segments(tmp_path)
    id = service.to_commit(job)
    for path in segments(tmp_path) - before:
        path.unlink()
    assert service.commit(id) == RunState.ERROR
    assert service.run_row(id).error["code"] == "object_missing"
    agent.work()
    assert (agent.finished[-1].backupjobrun, agent.finished[-1].number) == (id, None)
    again = next(run for run in runs_of(service.database) if run.retry_of == id)
    service.round()
    agent.work()
    service.round()
    assert held(service.database)["vm", "web"] == [again.id]
    assert service.commit(again.id) == RunState.AVAILABLE
    service.check(job, first, again.id)
    # the failed one left no gap for those who count
    assert sorted(path.name for path in (tmp_path / f"vaults/{PROJECT}/backupjobs/epochs").iterdir()) == [
        f"{number:012d}" for number in range(1, again_number(service, again.id) + 1)
    ]


def again_number(service: Service, id: str) -> int:
    return service.run_row(id).commit_number or 0


def segments(folder: Path) -> set[Path]:
    root = folder / f"vaults/{PROJECT}/backupjobs_segments"
    return {path for path in root.rglob("*") if path.is_file()}


def test_a_database_older_than_its_vault_commits_nothing(service: Service, tmp_path: Path) -> None:
    agent, job = one_vm(service)
    first = service.backup(job, BackupKind.FULL)
    agent.write("web", 1)
    second = service.backup(job)

    # as if the second commit was after the dump
    def forget(session: Session) -> None:
        session.execute(update(BackupJobRun).where(BackupJobRun.id == second).values(commit_number=None))
        session.execute(update(Vault).values(last_commit=1))

    service.database.run(forget)
    for _ in range(2):
        id = service.to_commit(job)
        assert service.commit(id) == RunState.ERROR
        assert service.run_row(id).error["code"] == "database_behind"
        agent.work()
    with service.database.reading() as session:
        assert session.scalars(select(Vault.last_commit)).one() == 1, "or the next ones would slip past what is there"
    service.check(job, first, second)


def test_what_was_not_ordered_is_refused_once_for_all(service: Service) -> None:
    agent, job = one_vm(service)
    id = service.queue(job)
    service.round()
    (task,) = agent.claim()
    stored = agent.store(task)
    wrong = {"parent": "another-run", "kind": BackupKind.INCREMENTAL}
    forged = replace(stored, disks=tuple(replace(disk, **wrong) for disk in stored.disks))
    for _ in range(2):  # its agent may say it again
        agent.finish(task, forged)
    service.round()
    row = service.run_row(id)
    assert (row.state, row.error["code"]) == (RunState.ERROR, "result_invalid")
    assert "another-run" in row.error["message"]


# -- hosts and vaults -------------------------------------------------------------------------------


def test_an_agent_that_drains_still_hears_what_became_of_its_runs(service: Service) -> None:
    agent, job = one_vm(service)
    id = service.to_commit(job)
    service.database.run(lambda s: transition(s, ServiceRow, agent.id, ServiceState.DRAINING))
    other = service.queue(service.job("web", name="other"))
    assert service.commit(id) == RunState.AVAILABLE
    service.round()
    assert service_state(service, agent) == ServiceState.DRAINING, "it has a capture to let go"
    assert agent.work() == 1
    assert [order.number for order in agent.finished] == [1]
    service.round()
    assert service_state(service, agent) == ServiceState.DRAINED
    assert service.run_row(other).queued_reason["code"] == "agent_disabled"


def service_state(service: Service, agent: PretendAgent) -> ServiceState:
    with service.database.reading() as session:
        return session.get_one(ServiceRow, agent.id).state


def test_a_host_that_never_comes_back_does_not_keep_its_vm_for_ever(service: Service) -> None:
    agent, job = one_vm(service)
    id = service.to_commit(job)
    assert service.commit(id) == RunState.AVAILABLE
    long_ago = round(service.settings.host_patience + 60) * SECOND

    def gone(session: Session) -> None:
        session.execute(update(ServiceRow).values(heartbeat_at=ServiceRow.heartbeat_at - long_ago))
        session.execute(update(Task).values(created_at=Task.created_at - long_ago))

    assert held(service.database)["vm", "web"] == [id]
    service.database.run(gone)
    service.round()
    service.round()
    assert held(service.database) == {}
    assert service.run_row(id).state == RunState.AVAILABLE
    agent.beat()
    assert agent.work() == 0


def test_a_vault_of_somebody_else_is_left_alone_and_the_run_says_so(service: Service) -> None:
    _, job = one_vm(service)
    service.backup(job, BackupKind.FULL)
    document = service.folder / "vaults" / PROJECT / "backupjobs" / "vault.json"
    before = document.read_bytes()
    with service.database.reading() as session:
        ours = session.scalars(select(Vault.id)).one()
    document.write_bytes(before.replace(ours.encode(), b"somebody-else"))
    service.database.run(lambda s: s.execute(update(Vault).values(vault_uuid=None)) and None)
    id = service.queue(job)
    service.round()
    waiting = service.run_row(id)
    assert (waiting.state, waiting.queued_reason["code"]) == (RunState.QUEUED, "vault_refused")
    assert "somebody-else" in waiting.queued_reason["message"]
    document.write_bytes(before)
    service.round()
    assert service.run_row(id).state == RunState.READY


def test_the_vault_carries_what_the_job_says_of_itself(service: Service) -> None:
    service.agent().have("web", clusters=1)
    job = service.job("web", hints={"cost-centre": "42"})
    id = service.backup(job, BackupKind.FULL)
    run = service.folder / "vaults" / PROJECT / "backupjobs" / job / id / "run.json"
    assert json.loads(run.read_text())["hints"] == {"cost-centre": "42"}
