"""Test restores are begun, bounded and summed up: what a restore point says of itself is what its VMs showed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.config_database import DatabaseSettings
from raksha.db import backups, jobs, migrate, runs, tasks, verifications
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobRun, BackupJobRunVm, Notification, Task, Verification
from raksha.db.session import Database, connect
from raksha.db.transition import transition
from raksha.errors import StateConflict
from raksha.scheduler import booting, verify_start
from raksha.scheduler.reap import reap
from raksha.states import (
    BackupKind,
    BootOutcome,
    Consistency,
    ProvenBy,
    RunState,
    Source,
    TaskKind,
    TaskState,
    Trigger,
)
from raksha.states import VerificationState as State
from raksha.tasks import Booted
from tests.unit.scheduler.service import Service

DAY = 86400
BOOT = {"boot": True, "data": False, "percent": 0}
UP = Booted(outcome=BootOutcome.PROVEN, proven_by=ProvenBy.GUEST_AGENT, seconds=9.0)
DOWN = Booted(outcome=BootOutcome.FAILED, reason={"code": "no_agent", "message": "silent"}, seconds=60.0)
UNKNOWN = Booted(outcome=BootOutcome.UNKNOWN, reason={"code": "nothing_to_tell", "message": "it ran"})


@pytest.fixture
def service(sqlite: Database, tmp_path: Path) -> Service:
    made = Service(sqlite, tmp_path, verify_every=0.0, test_restore_timeout=77)
    agent = made.agent("host-a", capabilities={"boot": True})
    agent.have("web", "vda", "vdb")
    agent.have("db", "vda")
    return made


def ask(service: Service, job: str, run: str, **more: Any) -> str:
    def work(session: Session) -> str:
        row = session.get_one(BackupJob, job)
        return verifications.create(session, row, run, trigger=Trigger.REQUEST, **BOOT, **more).id

    return service.database.run(work)


def go(service: Service) -> int:
    reap(service.database, service.settings)
    done = verify_start.start(service.database, service.settings)
    assert done.read == (), "what was booted is not judged as data"
    return done.begun


def through(service: Service, job: str, run: str, web: Booted, db: Booted, **more: Any) -> Verification:
    id = ask(service, job, run, **more)
    service.agents[0].boots = {"web": web, "db": db}
    go(service)
    assert service.agents[0].work() > 0
    go(service)
    return row(service, id)


def row(service: Service, id: str) -> Verification:
    with service.database.reading() as session:
        return verifications.get(session, None, id)


def all_of(service: Service) -> list[Verification]:
    with service.database.reading() as session:
        return list(session.scalars(select(Verification).order_by(Verification.created_at)))


def job_row(service: Service, id: str) -> BackupJob:
    with service.database.reading() as session:
        return jobs.get(session, None, id)


def vms(service: Service, run: str) -> dict[str, BackupJobRunVm]:
    with service.database.reading() as session:
        return {vm.vm_id: vm for vm in runs.detail(session, runs.get(session, None, run)).vms}


def outcomes(found: Verification) -> dict[str, Any]:
    return {vm["id"]: vm["outcome"] for vm in found.vms}


def test_each_vm_is_booted_by_an_agent_that_can_and_what_it_reads_stays(service: Service) -> None:
    service.agents[0].consistency = {"web": Consistency.QUIESCED}
    job = service.job("web", "db", consistency_group=False)
    base = service.backup(job, BackupKind.FULL)
    run = service.backup(job)
    id = ask(service, job, run, marker="login:")
    unable = service.agent("host-b")
    assert go(service) == 1
    with service.database.reading() as session:
        pinned = {copy.backupjobrun_id for copy in backups.pinned_by(session, id)}
        made = tasks.of_verification(session, id)
    assert pinned == {base, run}
    assert {(task.kind, task.needs, task.priority < 0, task.host) for task in made} == {
        (TaskKind.BOOT, "boot", True, None)
    }
    assert unable.claim() == ()
    claimed = service.agents[0].claim(kinds=[TaskKind.BOOT])
    orders = {task.order.vm: task.order for task in claimed}  # type: ignore[union-attr]
    assert set(orders) == {"web", "db"}
    web: Any = orders["web"]
    assert (web.backupjobrun, web.marker, web.timeout, web.machine_digest is None) == (run, "login:", 77, False)
    assert {each.key.vm for each in web.recorded} == {"web"}
    assert (web.expects_agent, orders["db"].expects_agent) == (True, False)  # type: ignore[union-attr]
    assert row(service, id).state == State.RUNNING
    assert outcomes(row(service, id)) == {"web": None, "db": None}


def test_proven_when_all_of_its_vms_are(service: Service) -> None:
    job = service.job("web", "db", consistency_group=False)
    run = service.backup(job, BackupKind.FULL)
    done = through(service, job, run, UP, UP)
    assert (done.state, done.error, outcomes(done)) == (State.DONE, None, {"web": "proven", "db": "proven"})
    assert [vm["seconds"] for vm in done.vms] == [9.0, 9.0]
    proven = service.run_row(run).proven_restorable_at
    found = vms(service, run)
    assert proven == min(vm.proven_restorable_at or 0 for vm in found.values()) > 0
    assert {vm.proven_by for vm in found.values()} == {ProvenBy.GUEST_AGENT}
    told = job_row(service, job)
    assert (told.proven_restorable_at, told.proven_run_id) == (proven, run)
    with service.database.reading() as session:
        assert (backups.pinned_by(session, done.id), tasks.of_verification(session, done.id)) == ([], [])
    assert service.run_row(run).verified_at is None, "that is another thing"


@pytest.mark.parametrize("bad", [DOWN, UNKNOWN])
def test_one_that_is_not_proven_and_is_later(service: Service, bad: Booted) -> None:
    job = service.job("web", "db", consistency_group=False)
    run = service.backup(job, BackupKind.FULL)
    done = through(service, job, run, UP, bad)
    assert (done.state, outcomes(done)) == (State.DONE, {"web": "proven", "db": bad.outcome})
    found = vms(service, run)
    assert found["web"].unproven_at is None and found["db"].proven_restorable_at is None
    assert found["db"].unproven_at is not None and found["db"].unproven_reason == bad.reason
    assert service.run_row(run).proven_restorable_at is None
    assert job_row(service, job).proven_restorable_at is None
    # that one alone, again
    done = through(service, job, run, DOWN, UP, vms=[{"id": "db"}])
    assert outcomes(done) == {"db": "proven"}
    found = vms(service, run)
    assert (found["db"].unproven_at, found["db"].unproven_reason) == (None, None)
    proven = service.run_row(run).proven_restorable_at
    assert proven == found["web"].proven_restorable_at, "since when all of them are"
    # and what was once proven stays known when it fails later
    through(service, job, run, DOWN, UP)
    assert service.run_row(run).proven_restorable_at == proven
    assert vms(service, run)["web"].unproven_at is not None


def test_what_could_not_be_tried_tells_nothing_and_what_the_others_showed_counts(service: Service) -> None:
    job = service.job("web", "db", consistency_group=False)
    run = service.backup(job, BackupKind.FULL)
    id = ask(service, job, run)
    go(service)
    error = {"code": "no_memory_for_test", "message": "none"}
    for task in service.agents[0].claim(kinds=[TaskKind.BOOT]):
        failed = task.order.vm == "db"  # type: ignore[union-attr]
        to, result = (TaskState.ERROR, None) if failed else (TaskState.DONE, UP)
        service.database.run(
            lambda s, task=task, to=to, result=result, failed=failed: tasks.finish(
                s, task.task_id, task.epoch, to, error=error if failed else None,
                result=None if result is None else {"type": "booted", "outcome": "proven", "proven_by": "marker"},
            )
        )  # fmt: skip
    go(service)
    done = row(service, id)
    assert (done.state, done.error, outcomes(done)) == (State.ERROR, error, {"web": "proven", "db": None})
    found = vms(service, run)
    assert found["web"].proven_by == ProvenBy.MARKER
    assert (found["db"].proven_restorable_at, found["db"].unproven_at) == (None, None)
    assert service.run_row(run).proven_restorable_at is None


def test_no_more_at_once_than_allowed_and_cancelled_ones_end(service: Service) -> None:
    service.settings = replace(service.settings, max_test_restores=1)
    job, other = service.job("web"), service.job("db", name="other")
    first, second = service.backup(job, BackupKind.FULL), service.backup(other, BackupKind.FULL)
    one, two = ask(service, job, first), ask(service, other, second)
    assert go(service) == 1 and go(service) == 0
    with pytest.raises(StateConflict):
        ask(service, job, first)
    # a look at the data of the same may go on beside it
    with_data = service.database.run(
        lambda s: verifications.create(s, s.get_one(BackupJob, job), first, trigger=Trigger.REQUEST).id
    )
    service.database.run(lambda s: verifications.request_cancel(s, with_data))
    service.database.run(lambda s: verifications.request_cancel(s, one))
    go(service)
    assert row(service, one).state == State.CANCELLED
    go(service)
    assert row(service, two).state == State.QUEUED
    with service.database.reading() as session:
        assert len(tasks.of_verification(session, two)) == 1
    # one that an agent has ends when the agent has ended it
    (task,) = service.agents[0].claim(kinds=[TaskKind.BOOT])
    service.database.run(lambda s: verifications.request_cancel(s, two))
    go(service)
    assert row(service, two).state == State.RUNNING
    service.agents[0].finish(task, None, TaskState.CANCELLED)
    go(service)
    assert row(service, two).state == State.CANCELLED


def test_nobody_takes_it(service: Service) -> None:
    job = service.job("web")
    run = service.backup(job, BackupKind.FULL)
    id = ask(service, job, run)
    go(service)
    service.settings = replace(service.settings, max_wait=0.0)
    go(service)
    done = row(service, id)
    assert (done.state, done.error["code"], left_of(service, id)) == (State.ERROR, "not_claimed", [])
    assert vms(service, run)["web"].unproven_at is None


def left_of(service: Service, id: str) -> list[Task]:
    with service.database.reading() as session:
        return tasks.of_verification(session, id)


def test_volumes_are_no_machines_and_what_is_gone_is_told(service: Service) -> None:
    job = service.job("web")
    run = service.backup(job, BackupKind.FULL)
    mine = update(BackupJobRunVm).where(BackupJobRunVm.backupjobrun_id == run)
    service.database.run(lambda s: s.execute(mine.values(source=Source.VOLUME)) and None)
    id = ask(service, job, run)
    go(service)
    assert (row(service, id).state, row(service, id).error["code"]) == (State.ERROR, "nothing_to_boot")
    with service.database.reading() as session:
        assert booting.machines(session, run) == []
    id = ask(service, job, run)
    service.database.run(lambda s: transition(s, BackupJobRun, run, RunState.DELETING))
    go(service)
    assert (row(service, id).state, row(service, id).error["code"]) == (State.ERROR, "run_gone")


@pytest.mark.parametrize(("every", "operator", "due"), [(DAY, 0, True), (None, DAY, True), (0, DAY, False),
                                                        (None, 0, False)])  # fmt: skip
def test_when_it_is_time(service: Service, every: int | None, operator: float, due: bool) -> None:
    job = service.job("web", test_every=every, test_marker="login:", test_timeout=33)
    service.settings = replace(service.settings, test_restore_every=float(operator))
    assert go(service) == 0 and all_of(service) == [], "there is no restore point"
    service.backup(job, BackupKind.FULL)
    newest = service.backup(job)
    damaged = service.backup(job)
    service.database.run(lambda s: transition(s, BackupJobRun, damaged, RunState.DEGRADED))
    assert go(service) == int(due)
    found = all_of(service)
    assert [(each.backupjobrun_id, each.boot, each.trigger, each.user_id) for each in found] == (
        [(newest, True, Trigger.SCHEDULE, None)] if due else []
    )
    if not due:
        return
    service.agents[0].boots = {"web": UP}
    service.agents[0].work()
    assert (service.agents[0].booted[0].marker, service.agents[0].booted[0].timeout) == ("login:", 33)
    for _ in range(3):
        go(service)
    assert len(all_of(service)) == 1, "not again before its time"
    older = update(Verification).values(created_at=Verification.created_at - 2 * DAY * SECOND)
    service.database.run(lambda s: s.execute(older) and None)
    go(service)
    assert len(all_of(service)) == 2


def test_none_is_begun_where_there_are_to_be_none(service: Service) -> None:
    service.settings = replace(service.settings, max_test_restores=0, test_restore_every=1.0)
    job = service.job("web")
    run = service.backup(job, BackupKind.FULL)
    assert go(service) == 0 and all_of(service) == []
    id = ask(service, job, run)
    assert go(service) == 0 and row(service, id).state == State.QUEUED


def test_whoever_is_told_of_runs_is_told_of_this(tmp_path: Path) -> None:
    noting = connect(DatabaseSettings(f"sqlite:///{tmp_path}/raksha.db"), notify=True)
    try:
        migrate.upgrade(noting)
        service = Service(noting, tmp_path, verify_every=0.0)
        agent = service.agent("host-a", capabilities={"boot": True})
        agent.have("web", "vda")
        agent.have("db", "vda")
        job = service.job("web", "db", consistency_group=False)
        run = service.backup(job, BackupKind.FULL)
        through(service, job, run, UP, DOWN)
        through(service, job, run, UP, UP)
        with noting.reading() as session:
            told = list(session.scalars(select(Notification).order_by(Notification.number)))[-2:]
    finally:
        noting.close()
    assert [each.event for each in told] == ["raksha.backupjobrun.unproven", "raksha.backupjobrun.proven"]
    unproven, proven = (each.payload for each in told)
    assert (unproven["proven_restorable_at"], proven["proven_restorable_at"] is None) == (None, False)
    assert {vm["id"]: vm["unproven"] for vm in unproven["vms"]} == {"web": None, "db": DOWN.reason}
