"""What agents say, said once or twice, in time or too late; and a scheduler that runs by itself, asked over the bus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import select, update

from raksha.db import runs
from raksha.db.models import BackupJobRun, BackupJobRunVmResource, Barrier, Task
from raksha.db.session import Database
from raksha.errors import EpochStale, RowNotFound, StateConflict, StillNeeded
from raksha.rpc import Bus, Handler, Verb
from raksha.scheduler.loop import Loop
from raksha.states import BarrierState, Consistency, MemberState, RunState, ServiceState, TaskState
from raksha.tasks import (
    ENTER,
    FINISH,
    HAND_BACK,
    HEARTBEAT,
    LOOK,
    REGISTER,
    RENEW,
    REPORT,
    THAWED,
    DiskProgress,
    Enter,
    Finish,
    HandBack,
    Heartbeat,
    Held,
    Look,
    Register,
    Report,
    Thawed,
)
from raksha.wake import SCHEDULERS
from tests.bed.pretend import PretendAgent, check_restores
from tests.bed.scheduling import SETTINGS, job_due, runs_of
from tests.unit.scheduler.service import Service


@pytest.fixture
def service(sqlite: Database, tmp_path: Path) -> Service:
    return Service(sqlite, tmp_path)


def begun(service: Service, *vms: str, **job: Any) -> tuple[PretendAgent, str]:
    """A run whose tasks can be claimed."""
    agent = service.agent()
    for vm in vms or ("web",):
        agent.have(vm, clusters=2)
    id = service.queue(service.job(*(vms or ("web",)), **job))
    service.round()
    return agent, id


def test_a_later_start_of_an_agent_ends_the_earlier_one(service: Service) -> None:
    agent = service.agent()
    again = Register(host="host-a", instance="second start", version="2", capacity=3, capabilities={"engine": "pull"})
    answer = service.ask[REGISTER](again)
    assert (answer.service_id, answer.state) == (agent.id, ServiceState.ENABLED)
    with pytest.raises(StillNeeded):
        agent.beat()
    with pytest.raises(StillNeeded):
        agent.claim()
    with pytest.raises(RowNotFound):
        service.ask[HEARTBEAT](Heartbeat(service_id="unknown", instance="x", load=0))


def test_a_claim_is_renewed_reported_on_and_finished_twice_without_harm(service: Service) -> None:
    agent, id = begun(service)
    (task,) = agent.claim()
    assert agent.claim() == ()
    held = Held(task_id=task.task_id, epoch=task.epoch)
    assert service.ask[RENEW](held).cancel is False
    disk = DiskProgress(resource="vda", size=131072, total=131072, done=65536, sent=7)
    second = Report(task_id=task.task_id, epoch=task.epoch, number=2, step="store", disks=(disk,))
    first = Report(task_id=task.task_id, epoch=task.epoch, number=1, step="freeze", disks=(replace(disk, done=0),))
    for report in (second, first, second):
        service.ask[REPORT](report)
    with service.database.reading() as session:
        (row,) = session.scalars(select(BackupJobRunVmResource)).all()
        assert (row.resource, row.bytes_done, row.bytes_sent) == ("vda", 65536, 7)
        assert runs.get(session, None, id).bytes_done == 65536
    service.database.run(lambda s: runs.request_cancel(s, id))
    service.round()
    assert service.ask[RENEW](held).cancel is True
    end = Finish(task_id=task.task_id, epoch=task.epoch, to=TaskState.CANCELLED)
    service.ask[FINISH](end)
    service.ask[FINISH](end)
    with pytest.raises(StateConflict):
        service.ask[FINISH](replace(end, to=TaskState.ERROR))
    service.round()
    assert service.run_row(id).state == RunState.CANCELLED


def test_who_lost_his_claim_is_told_so_whatever_he_says(service: Service) -> None:
    agent, _ = begun(service)
    (old,) = agent.claim()
    service.database.run(lambda s: s.execute(update(Task).values(lease_until=1)) and None)
    (new,) = agent.claim()
    assert (new.task_id, new.epoch) == (old.task_id, old.epoch + 1)
    ids = {"task_id": old.task_id, "epoch": old.epoch}
    said = [
        (RENEW, Held(**ids)), (REPORT, Report(**ids, number=9, step="x")), (HAND_BACK, HandBack(**ids)),
        (FINISH, Finish(**ids, to=TaskState.ERROR)),
    ]  # fmt: skip
    for verb, question in said:
        with pytest.raises(EpochStale):
            service.ask[verb](question)
    agent.do(new)


def test_what_is_handed_back_is_claimed_again_and_what_nobody_wants_ends(service: Service) -> None:
    agent, id = begun(service)
    (task,) = agent.claim()
    back = HandBack(task_id=task.task_id, epoch=task.epoch)
    service.ask[HAND_BACK](back)
    service.ask[HAND_BACK](back)
    (again,) = agent.claim()
    assert again.epoch == task.epoch + 1
    service.database.run(lambda s: runs.request_cancel(s, id))
    service.round()
    service.ask[HAND_BACK](HandBack(task_id=again.task_id, epoch=again.epoch))
    service.round()
    assert service.run_row(id).state == RunState.CANCELLED


# -- groups -----------------------------------------------------------------------------------------


def group_of(service: Service, **job: Any) -> tuple[PretendAgent, str, dict[str, tuple[str, int]]]:
    agent, _ = begun(service, "db", "web", **job)
    claimed = agent.claim()
    group = claimed[0].order.group
    assert group is not None
    return agent, group, {task.order.vm: (group, task.epoch) for task in claimed}


def enter(service: Service, member: tuple[str, int], vm: str, to: MemberState, at: int | None = None) -> BarrierState:
    said = Enter(group=member[0], vm=vm, epoch=member[1], to=to, at=at, clock_error_seconds=0.25 if at else None)
    return service.ask[ENTER](said).state


def test_a_group_freezes_and_snapshots_together_and_its_skew_stands_with_the_run(service: Service) -> None:
    agent, group, members = group_of(service)
    for stage, at in ((MemberState.JOINED, None), (MemberState.FROZEN, 5_000_000), (MemberState.CAPTURED, 6_000_000)):
        first = enter(service, members["db"], "db", stage, at)
        assert enter(service, members["db"], "db", stage, at) == first
        later = enter(service, members["web"], "web", stage, None if at is None else at + 30_000)
        assert later != first
    seen = service.ask[LOOK](Look(group=group))
    assert seen.state == BarrierState.DONE
    for vm in members:
        thawed = Thawed(group=group, vm=vm, epoch=members[vm][1], at=7_000_000)
        service.ask[THAWED](thawed)
        service.ask[THAWED](thawed)
    (run,) = runs_of(service.database)
    with service.database.reading() as session:
        claimed = session.scalars(select(Task).where(Task.backupjobrun_id == run.id)).all()
    service.database.run(lambda s: s.execute(update(Task).values(lease_until=1)) and None)
    assert len(claimed) == 2
    assert agent.work() == 2
    service.round()
    service.commit(run.id)
    row = service.run_row(run.id)
    assert (row.state, row.group_consistent) == (RunState.AVAILABLE, True)
    assert (row.skew_seconds, row.skew_error_seconds) == (0.03, 0.5)


def captured(service: Service, members: Mapping[str, tuple[str, int]], *frozen: str) -> None:
    """All members of a group, and those of them frozen."""
    for stage, at in ((MemberState.JOINED, None), (MemberState.FROZEN, 5_000_000), (MemberState.CAPTURED, 6_000_000)):
        for vm, member in members.items():
            enter(service, member, vm, stage, None if stage == MemberState.FROZEN and vm not in frozen else at)


def ended(service: Service, agent: PretendAgent) -> BackupJobRun:
    service.database.run(lambda s: s.execute(update(Task).values(lease_until=1)) and None)
    assert agent.work() == 2
    service.round()
    (run,) = runs_of(service.database)
    service.commit(run.id)
    return service.run_row(run.id)


@pytest.mark.parametrize(
    ("found", "consistent"),
    [(Consistency.CRASH, False), (Consistency.PAUSED, True), (Consistency.OFFLINE, True)],
)
def test_a_group_with_a_guest_that_wrote_meanwhile_is_a_restore_point_and_not_called_consistent(
    service: Service, found: Consistency, consistent: bool
) -> None:
    agent, group, members = group_of(service)
    agent.consistency = {"db": Consistency.QUIESCED, "web": found}
    captured(service, members, "db")
    assert service.ask[LOOK](Look(group=group)).state == BarrierState.DONE
    row = ended(service, agent)
    assert (row.state, row.group_consistent, row.skew_seconds) == (RunState.AVAILABLE, consistent, 0.0)


@pytest.mark.parametrize("thaws", [False, True])
def test_a_member_that_captures_again_by_itself_is_no_longer_one(service: Service, thaws: bool) -> None:
    """Its agent was killed while it stored; its job says that it is captured even so."""
    agent, group, members = group_of(service, on_vm_failure="degrade")
    captured(service, members, "db", "web")
    if thaws:
        service.ask[THAWED](Thawed(group=group, vm="web", epoch=members["web"][1], at=7_000_000))
    anew = (group, members["web"][1] + 1)
    for _ in range(2):
        assert enter(service, anew, "web", MemberState.JOINED) == BarrierState.DONE
    row = ended(service, agent)
    assert (row.state, row.group_consistent) == (RunState.AVAILABLE, False)
    assert row.skew_seconds == 10.0, "as their agents say: there was no common moment"


def test_a_member_that_fails_ends_the_group_and_who_comes_later_hears_it(service: Service) -> None:
    _, group, members = group_of(service)
    enter(service, members["db"], "db", MemberState.JOINED)
    error = {"code": "quiesce_failed", "message": "no guest agent"}
    failed = Enter(group=group, vm="web", epoch=members["web"][1], to=MemberState.FAILED, error=error)
    assert service.ask[ENTER](failed).state == BarrierState.FAILED
    assert service.ask[ENTER](failed).state == BarrierState.FAILED
    assert enter(service, members["db"], "db", MemberState.FROZEN, 1) == BarrierState.FAILED


def test_a_late_group_fails_for_whoever_looks(service: Service) -> None:
    _, group, members = group_of(service)
    service.database.run(lambda s: s.execute(update(Barrier).values(deadline_at=1)) and None)
    assert service.ask[LOOK](Look(group=group)).state == BarrierState.FAILED
    assert enter(service, members["db"], "db", MemberState.JOINED) == BarrierState.FAILED


def test_out_of_turn_and_under_another_claim_is_refused(service: Service) -> None:
    _, group, members = group_of(service)
    with pytest.raises(StateConflict):
        enter(service, members["db"], "db", MemberState.CAPTURED, 1)
    enter(service, members["db"], "db", MemberState.JOINED)
    enter(service, members["web"], "web", MemberState.JOINED)
    with pytest.raises(EpochStale):
        enter(service, (group, 7), "db", MemberState.FROZEN, 1)


# -- by itself --------------------------------------------------------------------------------------


class OverTheBus(Mapping[Verb[Any, Any], Handler]):
    """Asks whoever serves the topic."""

    def __init__(self, bus: Bus) -> None:
        self._to = bus.to(SCHEDULERS)

    def __getitem__(self, verb: Verb[Any, Any]) -> Handler:
        return lambda question: self._to.call(verb, question)

    def __iter__(self) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        return 0


def eventually(done: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_job_that_is_due_becomes_a_restore_point_over_the_bus(service: Service, sqlite: Database) -> None:
    bus = Bus("fake://", patience=20)
    loop = Loop(sqlite, replace(SETTINGS, interval=0.5), bus)
    thread = Thread(target=loop.run)
    thread.start()
    try:
        agent = PretendAgent(OverTheBus(bus), "host-a", service.folder / "spool")
        agent.have("vm-1", clusters=3)
        job = sqlite.run(job_due).id
        until = time.monotonic() + 60
        while not (agent.finished and runs_of(sqlite)[0].state == RunState.AVAILABLE):
            assert time.monotonic() < until, [(run.state, run.error, run.queued_reason) for run in runs_of(sqlite)]
            agent.work()
            time.sleep(0.05)
        (run,) = runs_of(sqlite)
        check_restores(service.url, job, [agent], service.folder / "spool", [run.id])
        told = loop.metrics.registry.get_sample_value("raksha_scheduler_runs_total", {"state": "available"})
        assert told == 1.0
    finally:
        loop.stop()
        thread.join(30)
        bus.close()
    assert not thread.is_alive()
