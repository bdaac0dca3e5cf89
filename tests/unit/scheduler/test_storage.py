"""Volumes, and disks of servers, that are taken from storage: any agent that can does it, outside of groups."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.db import groups, jobs, runs
from raksha.db.jobs import Member
from raksha.db.models import BackupJobRunVm, Task
from raksha.db.models import Service as ServiceRow
from raksha.db.session import Database
from raksha.errors import EpochStale
from raksha.scheduler.dispatch import dispatch
from raksha.states import Consistency, MemberState, RunState, RunVmState, Source, TaskKind, TaskState
from raksha.tasks import ENTER, Claimed, Enter, HandBack
from raksha.tasks import HAND_BACK as BACK
from tests.bed.databases import make_job
from tests.bed.pretend import PretendAgent
from tests.bed.scheduling import tasks_of
from tests.unit.scheduler.service import Service

VOLUME, SERVER = "vol-1", "web"
CAN = {"storage": ["rbd"]}


@pytest.fixture
def service(sqlite: Database, tmp_path: Path) -> Service:
    return Service(sqlite, tmp_path)


def agents(service: Service, *hosts: str, capacity: int = 2) -> list[PretendAgent]:
    """They get to the same storage, which has one volume."""
    made = [service.agent(host, capacity=capacity, capabilities=CAN) for host in hosts]
    for each in made:
        each.storage, each.captured = made[0].storage, made[0].captured
        each.beat()
    made[0].storage[VOLUME, "volume"] = bytes(65536) + b"\7" * 65536
    return made


def job(service: Service, *members: Member, **more: object) -> str:
    return service.database.run(lambda s: make_job(s, members=members, **more).id)


def volume_job(service: Service, **more: object) -> str:
    return job(service, Member(VOLUME, source=Source.VOLUME, force=True), **more)


def the_vm(service: Service, run: str, vm: str = VOLUME) -> BackupJobRunVm:
    with service.database.reading() as session:
        mine = BackupJobRunVm.backupjobrun_id == run, BackupJobRunVm.vm_id == vm
        return session.scalars(select(BackupJobRunVm).where(*mine)).one()


def lease_over(service: Service, claimed: Claimed) -> None:
    over = update(Task).where(Task.id == claimed.task_id).values(lease_until=1)
    service.database.run(lambda s: s.execute(over) and None)


def test_any_agent_that_can_takes_a_volume_and_another_goes_on_with_its_chain(service: Service) -> None:
    cannot = service.agent("host-x")
    one, other = agents(service, "host-a", "host-b")
    cannot.beat()
    nightly = volume_job(service)
    first = service.queue(nightly)
    service.round()
    assert (service.run_row(first).state, the_vm(service, first).host) == (RunState.READY, None)
    assert cannot.claim() == ()
    (task,) = one.claim()
    # the host came with the claim, and nobody else gets it now
    assert the_vm(service, first).host == "host-a"
    assert tasks_of(service.database, first)[0].host == "host-a"
    assert other.claim() == ()
    assert (task.order.source, task.order.force, task.order.vm) == (Source.VOLUME, True, VOLUME)
    one.do(task)
    service.round()
    assert service.commit(first) == RunState.AVAILABLE, service.run_row(first).error
    # what became of it is told to the one who has it open
    assert other.claim() == ()
    assert one.work() == 1
    assert [order.backupjobrun for order in one.finished] == [first]

    one.storage[VOLUME, "volume"] = bytes(65536) + b"\x09" * 65536
    second = service.queue(nightly)
    service.round()
    assert other.work() == 1
    service.round()
    assert service.commit(second) == RunState.AVAILABLE, service.run_row(second).error
    assert other.orders[-1].parents["volume"].key.backupjobrun == first
    assert the_vm(service, second).host == "host-b"
    service.check(nightly, first, second)


def test_the_least_busy_is_woken_where_the_job_allows(service: Service) -> None:

    one, _, _ = agents(service, "host-a", "host-b", "host-c")
    volume_job(service)
    elsewhere = job(service, Member(VOLUME, source=Source.VOLUME), placement={"hosts": ["host-c"]}, name="elsewhere")
    service.queue(elsewhere)
    assert dispatch(service.database, service.settings).hosts == {"host-c"}
    assert one.claim() == ()


def test_without_an_agent_that_can_it_waits_and_says_so(service: Service) -> None:
    service.agent("host-x").beat()
    run = service.queue(volume_job(service))
    service.round()
    said = service.run_row(run)
    assert (said.state, said.queued_reason["code"]) == (RunState.QUEUED, "no_storage_agent")


def test_when_a_lease_is_over_another_agent_takes_it_over_under_a_higher_epoch(service: Service) -> None:
    lost, other = agents(service, "host-a", "host-b")
    run = service.queue(volume_job(service))
    service.round()
    (first,) = lost.claim()
    lease_over(service, first)
    service.round()
    (task,) = tasks_of(service.database, run)
    assert (task.state, task.host) == (TaskState.READY, None)
    (second,) = other.claim()
    assert second.epoch > first.epoch
    assert the_vm(service, run).host == "host-b"
    # the first one comes back: it is told, and its end counts for nothing
    with pytest.raises(EpochStale):
        lost.finish(first, lost.store(second))
    other.do(second)
    service.round()
    assert service.commit(run) == RunState.AVAILABLE
    assert lost.claim() == ()
    assert other.work() == 1


def test_handed_back_it_is_anybodys_again(service: Service) -> None:
    one, other = agents(service, "host-a", "host-b")
    run = service.queue(volume_job(service))
    service.round()
    (task,) = one.claim()
    one.ask[BACK](HandBack(task_id=task.task_id, epoch=task.epoch))
    assert tasks_of(service.database, run)[0].host is None
    assert [each.task_id for each in other.claim()] == [task.task_id]


def test_cancelled_while_nobody_has_it_nobody_is_told(service: Service) -> None:
    (one,) = agents(service, "host-a")
    run = service.queue(volume_job(service))
    service.round()
    (task,) = one.claim()
    one.ask[BACK](HandBack(task_id=task.task_id, epoch=task.epoch, delay=60))

    service.database.run(lambda s: runs.request_cancel(s, run))
    service.round()
    service.round()
    assert service.run_row(run).state == RunState.CANCELLED
    assert [task.kind for task in tasks_of(service.database, run)] == [TaskKind.BACKUP]


def test_cancelled_while_a_lost_agent_had_it_the_run_ends(service: Service) -> None:
    (one,) = agents(service, "host-a")
    run = service.queue(volume_job(service))
    service.round()
    (task,) = one.claim()
    service.database.run(lambda s: runs.request_cancel(s, run))
    service.round()
    assert service.run_row(run).state == RunState.CANCELLING
    lease_over(service, task)
    service.round()
    assert service.run_row(run).state == RunState.CANCELLED


def test_what_nobody_can_do_any_more_fails_and_the_others_go_on(service: Service) -> None:
    agents(service, "host-a")
    other = service.agent("host-b")
    other.have(SERVER)
    members = [Member(SERVER), Member(VOLUME, source=Source.VOLUME)]
    run = service.queue(job(service, *members, on_vm_failure="degrade"))
    service.round()
    assert other.work() == 1
    service.round()

    def long_ago(session: Session) -> None:
        session.execute(update(Task).where(Task.needs.is_not(None)).values(created_at=1))

    service.database.run(long_ago)
    service.round()
    # host-a may still come to it
    assert the_vm(service, run).state == RunVmState.PENDING
    silent = update(ServiceRow).where(ServiceRow.host == "host-a").values(heartbeat_at=1)
    service.database.run(lambda s: s.execute(silent) and None)
    service.round()
    assert service.run_row(run).state == RunState.COMMITTING
    assert the_vm(service, run).state == RunVmState.ERROR
    assert the_vm(service, run).error["code"] == "agent_lost"
    assert service.commit(run) == RunState.AVAILABLE


def test_a_volume_that_fails_takes_nothing_from_the_group(service: Service) -> None:
    (one,) = agents(service, "host-a", capacity=4)
    for vm in (SERVER, "db"):
        one.have(vm)
        one.consistency[vm] = Consistency.OFFLINE
    members = [Member(SERVER), Member("db"), Member(VOLUME, source=Source.VOLUME)]
    run = service.queue(job(service, *members, on_vm_failure="degrade"))
    service.round()
    claimed = {task.order.vm: task for task in one.claim()}
    for to in (MemberState.JOINED, MemberState.FROZEN, MemberState.CAPTURED):
        for vm in (SERVER, "db"):
            task = claimed[vm]
            when = {"at": 1_000_000 if vm == "db" else 3_000_000} if to == MemberState.CAPTURED else {}
            one.ask[ENTER](Enter(group=task.order.group, vm=vm, epoch=task.epoch, to=to, **when))
    one.finish(claimed[VOLUME], None, TaskState.ERROR)
    for vm in (SERVER, "db"):
        one.do(claimed[vm])
    service.round()
    assert service.commit(run) == RunState.AVAILABLE, service.run_row(run).error
    found = service.run_row(run)
    assert (found.group_consistent, found.skew_seconds) == (True, 2)


def test_volumes_stay_outside_of_groups_and_the_run_says_so(service: Service) -> None:
    (one,) = agents(service, "host-a", capacity=4)
    for vm in (SERVER, "db"):
        one.have(vm)
    members = [
        Member(SERVER),
        Member("db"),
        Member(VOLUME, source=Source.VOLUME),
        Member("mail", source=Source.STORAGE),
    ]
    run = service.queue(job(service, *members))
    service.round()
    found = service.run_row(run)
    assert found.warnings == [
        "volume vol-1 was taken from storage, outside the consistency group",
        "VM mail was taken from storage, outside the consistency group",
    ]
    orders = {task.order.vm: task.order for task in one.claim()}
    assert {vm for vm, order in orders.items() if order.group is not None} == {SERVER, "db"}
    assert {vm: order.source for vm, order in orders.items()} == {
        SERVER: "hypervisor", "db": "hypervisor", VOLUME: "volume", "mail": "storage",
    }  # fmt: skip
    with service.database.reading() as session:
        group = groups.of_run(session, run)
        assert group is not None
        assert {member.vm_id for member in groups.members(session, group.id)} == {SERVER, "db"}


def test_one_vm_and_a_volume_need_no_group_and_become_a_restore_point(service: Service) -> None:
    (one,) = agents(service, "host-a")
    one.have(SERVER)
    nightly = job(service, Member(SERVER), Member(VOLUME, source=Source.VOLUME))
    run = service.backup(nightly)
    found = service.run_row(run)
    assert found.group_consistent is None
    assert found.warnings == ["volume vol-1 was taken from storage, outside the consistency group"]
    service.check(nightly, run)


def test_a_group_waits_while_its_host_is_at_work_on_what_any_could_do(service: Service) -> None:
    (one,) = agents(service, "host-a", capacity=2)
    for vm in (SERVER, "db"):
        one.have(vm)
    service.queue(volume_job(service))
    service.round()
    (volume,) = one.claim()
    run = service.queue(job(service, Member(SERVER), Member("db"), name="group"))
    service.round()
    said = service.run_row(run)
    assert (said.state, said.queued_reason["code"]) == (RunState.QUEUED, "host_busy")
    one.do(volume)
    service.round()
    assert service.run_row(run).state == RunState.READY


def test_a_chain_goes_on_when_a_job_changes_to_storage_and_back(service: Service) -> None:
    (one,) = agents(service, "host-a")
    one.have(SERVER)
    nightly = job(service, Member(SERVER))
    points = [service.backup(nightly)]
    for source in (Source.STORAGE, Source.HYPERVISOR):
        one.write(SERVER, 3, seed=len(points))

        def change(session: object, source: Source = source) -> None:
            row = jobs.get(session, None, nightly)  # type: ignore[arg-type]
            jobs.change(session, nightly, row.version, members=[Member(SERVER, source=source)])  # type: ignore[arg-type]

        service.database.run(change)
        points.append(service.backup(nightly))
        assert one.orders[-1].source == source
        assert one.orders[-1].parents["vda"].key.backupjobrun == points[-2]
    service.check(nightly, *points)
