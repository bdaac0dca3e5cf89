"""Leases that end, groups that are late, runs that move on, fail, and are tried again."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy.orm import Session

from raksha.db import groups, slots, tasks
from raksha.db.columns import SECOND
from raksha.db.jobs import Member
from raksha.db.models import BackupJobRun, BackupJobRunVm, Barrier, Service, Task
from raksha.db.session import Database
from raksha.db.slots import Slot
from raksha.db.transition import transition
from raksha.errors import EpochStale, StillNeeded
from raksha.scheduler import retry
from raksha.scheduler.advance import advance
from raksha.scheduler.dispatch import dispatch
from raksha.scheduler.reap import Reaped, reap, withdraw
from raksha.states import BarrierState, RunState, RunVmState, ServiceState, TaskKind, TaskState, Trigger
from tests.bed.databases import make_agent, make_job, make_run, make_task, make_vault
from tests.bed.scheduling import SETTINGS, aged, agent_with, claim, finish, finish_all, held, job_of, runs_of, tasks_of

LONG = SETTINGS.host_patience + 100


def started(database: Database, *vms: str, **more: Any) -> tuple[BackupJobRun, Service]:
    """A run whose tasks can be claimed on one host."""

    def work(session: Session) -> tuple[BackupJobRun, Service]:
        make_vault(session)
        agent = agent_with(session, "host-a", vms)
        job = make_job(session, "nightly", members=[Member(vm) for vm in vms], **more)
        return make_run(session, job), agent

    run, agent = database.run(work)
    assert dispatch(database, SETTINGS).started == 1
    return run, agent


def go(database: Database, **settings: Any) -> Reaped:
    given = replace(SETTINGS, **settings)
    done = reap(database, given)
    advance(database, given)
    return done


def now_is(database: Database, run: BackupJobRun) -> BackupJobRun:
    return next(found for found in runs_of(database) if found.id == run.id)


def vm_states(database: Database, run: BackupJobRun) -> dict[str, RunVmState]:
    with database.reading() as session:
        return {vm.vm_id: vm.state for vm in session.query(BackupJobRunVm).filter_by(backupjobrun_id=run.id)}


def test_a_run_goes_from_its_first_claim_to_its_commit_and_keeps_its_slots(sqlite: Database) -> None:
    run, agent = started(sqlite, "web", "db", consistency_group=False)
    first, second = claim(sqlite, agent)
    go(sqlite)
    assert now_is(sqlite, run).state == RunState.RUNNING
    assert now_is(sqlite, run).started_at is not None
    finish(sqlite, first)
    go(sqlite)
    assert vm_states(sqlite, run) == {first.vm_id: RunVmState.STORED, second.vm_id: RunVmState.RUNNING}
    assert now_is(sqlite, run).state == RunState.RUNNING
    finish(sqlite, second)
    go(sqlite)
    assert now_is(sqlite, run).state == RunState.COMMITTING
    assert now_is(sqlite, run).group_consistent is None
    assert held(sqlite)["vm", "web"] == [run.id]


def test_one_vm_that_fails_ends_the_run_and_it_is_tried_again(sqlite: Database) -> None:
    run, agent = started(sqlite, "web", "db", consistency_group=False)
    first, second = claim(sqlite, agent)
    finish(sqlite, first, TaskState.ERROR, {"code": "no_space", "message": "full"})
    go(sqlite)
    # the other is told, and ends
    (asked,) = [task for task in tasks_of(sqlite, run.id) if task.id == second.id]
    assert asked.cancel_requested_at is not None
    assert now_is(sqlite, run).state == RunState.RUNNING
    finish(sqlite, second, TaskState.CANCELLED)
    go(sqlite)
    failed = now_is(sqlite, run)
    assert (failed.state, failed.error["code"], failed.error["vm_id"]) == (RunState.ERROR, "no_space", first.vm_id)
    assert vm_states(sqlite, run) == {first.vm_id: RunVmState.ERROR, second.vm_id: RunVmState.CANCELLED}
    # both hosts hear of it before anybody else gets the VMs
    assert {held(sqlite)["vm", vm][0] for vm in ("web", "db")} == {run.id}
    told = [task for task in tasks_of(sqlite, run.id) if task.kind == TaskKind.FINISH]
    assert [(task.vm_id, task.order["number"], task.state) for task in told] == [
        ("db", None, TaskState.READY), ("web", None, TaskState.READY)
    ]  # fmt: skip
    finish_all(sqlite, agent)
    go(sqlite)
    assert held(sqlite) == {}
    again = runs_of(sqlite)[-1]
    assert (again.retry_of, again.attempt, again.trigger, again.state) == (run.id, 2, Trigger.RETRY, RunState.QUEUED)
    go(sqlite)
    assert len(runs_of(sqlite)) == 2


def test_degraded_goes_on_without_the_one_that_failed(sqlite: Database) -> None:
    run, agent = started(sqlite, "web", "db", on_vm_failure="degrade")
    first, second = claim(sqlite, agent)
    finish(sqlite, first, TaskState.ERROR, {"code": "x"})
    go(sqlite)
    finish(sqlite, second)
    go(sqlite)
    assert now_is(sqlite, run).state == RunState.COMMITTING
    assert now_is(sqlite, run).group_consistent is False


def test_a_cancelled_run_ends_when_its_agents_have_stopped(sqlite: Database) -> None:
    run, agent = started(sqlite, "web", "db", consistency_group=False)
    (task,) = claim(sqlite, agent, limit=1)
    sqlite.run(lambda s: transition(s, BackupJobRun, run.id, RunState.CANCELLING, start={RunState.READY}))
    go(sqlite)
    assert now_is(sqlite, run).state == RunState.CANCELLING
    assert {t.state for t in tasks_of(sqlite, run.id)} == {TaskState.CLAIMED, TaskState.CANCELLED}
    finish(sqlite, task, TaskState.CANCELLED)
    go(sqlite)
    assert now_is(sqlite, run).state == RunState.CANCELLED
    # who never heard of it need not hear of its end
    assert [t.vm_id for t in tasks_of(sqlite, run.id) if t.kind == TaskKind.FINISH] == [task.vm_id]
    finish_all(sqlite, agent)
    go(sqlite)
    assert held(sqlite) == {}
    assert len(runs_of(sqlite)) == 1


def test_a_task_that_needs_a_person_keeps_its_run_until_it_does_not(sqlite: Database) -> None:
    run, agent = started(sqlite, "web")
    (task,) = claim(sqlite, agent)
    finish(sqlite, task, TaskState.NEEDS_ATTENTION, {"code": "chain_unclear", "message": "look"})
    go(sqlite)
    assert now_is(sqlite, run).state == RunState.NEEDS_ATTENTION
    assert now_is(sqlite, run).error["code"] == "chain_unclear"
    assert held(sqlite)["vm", "web"] == [run.id]
    sqlite.run(lambda s: transition(s, Task, task.id, TaskState.ERROR, start={TaskState.NEEDS_ATTENTION}))
    go(sqlite)
    assert now_is(sqlite, run).state == RunState.ERROR
    assert vm_states(sqlite, run) == {"web": RunVmState.ERROR}


def test_a_task_of_a_host_stays_there_and_is_claimed_again(sqlite: Database) -> None:
    run, agent = started(sqlite, "web")
    (lost,) = claim(sqlite, agent, seconds=-10)
    other = sqlite.run(lambda s: make_agent(s, "host-b"))
    assert go(sqlite).requeued == go(sqlite).failed == 0
    assert claim(sqlite, other) == []
    (again,) = claim(sqlite, agent)
    assert (again.id, again.epoch) == (lost.id, lost.epoch + 1)
    with pytest.raises(EpochStale):
        finish(sqlite, lost)
    finish(sqlite, again)
    go(sqlite)
    assert now_is(sqlite, run).state == RunState.COMMITTING


def test_a_host_that_stays_away_fails_the_run(sqlite: Database) -> None:
    run, agent = started(sqlite, "web")
    (lost,) = claim(sqlite, agent, seconds=-LONG)
    assert go(sqlite).failed == 1
    failed = now_is(sqlite, run)
    assert (failed.state, failed.error["code"]) == (RunState.ERROR, "agent_lost")
    with pytest.raises(EpochStale):
        finish(sqlite, lost)
    assert runs_of(sqlite)[-1].retry_of == run.id


def test_work_of_any_agent_goes_back_to_the_queue_a_few_times(sqlite: Database) -> None:
    first, second = sqlite.run(lambda s: [make_agent(s, "host-a"), make_agent(s, "host-b")])
    task = sqlite.run(lambda s: make_task(s, kind=TaskKind.VERIFY))
    (lost,) = claim(sqlite, first, seconds=-1)
    assert go(sqlite, max_claims=2).requeued == 1
    with pytest.raises(EpochStale):
        finish(sqlite, lost)
    (again,) = claim(sqlite, second, seconds=-1)
    assert (again.id, again.service_id) == (task.id, second.id)
    done = go(sqlite, max_claims=2)
    assert (done.requeued, done.failed) == (0, 1)
    with sqlite.reading() as session:
        assert tasks.get(session, task.id).state == TaskState.ERROR


def test_what_nobody_claims_goes_back_to_the_queue_whole(sqlite: Database) -> None:
    run, agent = started(sqlite, "web", "db")
    assert go(sqlite).withdrawn == 0
    for task in tasks_of(sqlite, run.id):
        sqlite.run(lambda s, id=task.id: aged(s, Task, id, SETTINGS.gather_timeout + 10))
    sqlite.run(lambda s: setattr(s.query(Barrier).one(), "deadline_at", 1))
    done = go(sqlite)
    assert (done.withdrawn, done.groups) == (1, 0)
    waiting = now_is(sqlite, run)
    assert (waiting.state, waiting.queued_reason["code"]) == (RunState.QUEUED, "not_claimed")
    assert held(sqlite) == {}
    assert tasks_of(sqlite, run.id) == []
    assert dispatch(sqlite, SETTINGS).started == 1
    assert len(claim(sqlite, agent)) == 2


def test_what_was_claimed_is_not_taken_back(sqlite: Database) -> None:
    run, agent = started(sqlite, "web", "db")
    claim(sqlite, agent, limit=1)
    with pytest.raises(StillNeeded):
        sqlite.run(lambda s: withdraw(s, run.id, SETTINGS))
    assert {task.state for task in tasks_of(sqlite, run.id)} == {TaskState.CLAIMED, TaskState.READY}
    assert held(sqlite)["vm", "web"] == [run.id]


def test_a_task_left_behind_by_a_dead_agent_fails_its_run(sqlite: Database) -> None:
    def work(session: Session) -> tuple[BackupJobRun, Service]:
        make_vault(session)
        agent = agent_with(session, "host-a", ["web"])
        agent_with(session, "host-b", ["db"])
        job = make_job(session, members=[Member("web"), Member("db")], consistency_group=False)
        return make_run(session, job), agent

    run, agent = sqlite.run(work)
    dispatch(sqlite, SETTINGS)
    (mine,) = claim(sqlite, agent)
    go(sqlite)
    (left,) = [task for task in tasks_of(sqlite, run.id) if task.vm_id == "db"]
    sqlite.run(lambda s: aged(s, Task, left.id, LONG))
    assert go(sqlite).failed == 0

    def die(session: Session) -> None:
        host = session.query(Service).filter_by(name="host-b").one()
        host.heartbeat_at -= round(LONG * SECOND)

    sqlite.run(die)
    assert go(sqlite).failed == 1
    finish(sqlite, mine, TaskState.CANCELLED)
    go(sqlite)
    assert now_is(sqlite, run).error["code"] == "agent_lost"


def test_a_late_group_fails_and_with_it_the_run(sqlite: Database) -> None:
    run, agent = started(sqlite, "web", "db")
    claimed = claim(sqlite, agent)
    sqlite.run(lambda s: setattr(s.query(Barrier).one(), "deadline_at", 1))
    assert go(sqlite).groups == 1
    with sqlite.reading() as session:
        group = groups.of_run(session, run.id)
        assert group is not None
        assert (group.state, group.error["code"]) == (BarrierState.FAILED, "group_late")
    assert all(task.cancel_requested_at for task in tasks_of(sqlite, run.id))
    for task in claimed:
        finish(sqlite, task, TaskState.CANCELLED)
    go(sqlite)
    assert now_is(sqlite, run).state == RunState.ERROR


def test_slots_of_what_is_over_are_free_once_its_hosts_are_done(sqlite: Database) -> None:
    run, _agent = started(sqlite, "web")
    for state in (RunState.RUNNING, RunState.COMMITTING, RunState.AVAILABLE):
        sqlite.run(lambda s, state=state: transition(s, BackupJobRun, run.id, state))
    assert go(sqlite).slots == 0, "its agent has not finished with the VM"
    sqlite.run(lambda s: tasks.cancel(s, run_id=run.id))
    assert go(sqlite).slots == 3
    sqlite.run(lambda s: slots.reserve(s, "nobody", [Slot("vm", "x")]))
    assert go(sqlite).slots == 1


def test_a_service_that_has_nothing_left_is_drained(sqlite: Database) -> None:
    idle, busy = sqlite.run(lambda s: [make_agent(s, "host-a"), make_agent(s, "host-b", load=1)])
    for agent in (idle, busy):
        sqlite.run(lambda s, id=agent.id: transition(s, Service, id, ServiceState.DRAINING))
    go(sqlite)
    with sqlite.reading() as session:
        assert session.get_one(Service, idle.id).state == ServiceState.DRAINED
        assert session.get_one(Service, busy.id).state == ServiceState.DRAINING


def test_retries_wait_longer_each_time_and_end() -> None:
    settings = replace(SETTINGS, retries=3, retry_delay=60)
    assert [retry.delay(None, n, settings) for n in range(1, 5)] == [60, 120, 240, None]
    assert [retry.delay({"retries": 1, "delay": 5}, n, settings) for n in (1, 2)] == [5, None]
    assert retry.delay({"retries": 99}, 50, settings) == 3600
    assert retry.delay({"retries": 2, "delay": 7200}, 2, settings) == 7200
    assert retry.delay({"retries": 0}, 1, settings) is None


def test_a_full_run_that_is_not_tried_again_is_owed(sqlite: Database) -> None:
    run, agent = started(sqlite, "web", retry_policy={"retries": 5})
    (task,) = claim(sqlite, agent)
    finish(sqlite, task, TaskState.ERROR, {"code": "bad", "message": "for good", "retryable": False})
    go(sqlite)
    assert len(runs_of(sqlite)) == 1
    assert job_of(sqlite, run.backupjob_id).next_full_at is not None
