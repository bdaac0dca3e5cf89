"""Restores find a host, are told about, end; what they read stays until then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from raksha.db import backups, restores, runs, tasks
from raksha.db.models import BackupJob, Restore
from raksha.db.models import Service as Service_
from raksha.db.session import Database
from raksha.scheduler import restore_start
from raksha.scheduler.reap import reap
from raksha.states import BackupKind, RestoreState, RunState, TaskKind, TaskState
from raksha.tasks import RENEW, REPORT, DiskProgress, Held, Report, Restored, RestoreOrder
from tests.bed.pretend import PretendAgent
from tests.bed.scheduling import aged, held, silent
from tests.unit.scheduler.service import Service


@pytest.fixture
def service(sqlite: Database, tmp_path: Path) -> Service:
    return Service(sqlite, tmp_path)


@pytest.fixture
def point(service: Service) -> str:
    """A restore point of two VMs on two hosts, an increment."""
    one, two = service.agent("host-a"), service.agent("host-b")
    one.have("web", "vda", "vdb", clusters=2)
    two.have("db", clusters=2)
    job = service.job("web", "db", consistency_group=False)
    service.backup(job, BackupKind.FULL)
    one.write("web", 0)
    return service.backup(job)


def ask(service: Service, run_id: str, *vms: str, kind: str = "domain", **more: Any) -> str:
    target = {
        "kind": kind, "directory": None, "format": None, "start": False, "host": None,
        "vms": [{"vm": vm, "disks": [], "name": f"{vm}-new" if kind == "domain" else None} for vm in vms], **more,
    }  # fmt: skip

    def work(session: Session) -> str:
        return restores.create(session, runs.get(session, None, run_id), target=target).id

    return service.database.run(work)


def go(service: Service) -> set[str]:
    reap(service.database, service.settings)
    return set(restore_start.start(service.database, service.settings).hosts)


def row(service: Service, id: str) -> Restore:
    with service.database.reading() as session:
        return restores.get(session, None, id)


def pinned(service: Service, id: str) -> int:
    with service.database.reading() as session:
        return len(backups.pinned_by(session, id))


def claimed(agent: PretendAgent) -> Any:
    (task,) = agent.claim(kinds=[TaskKind.RESTORE])
    assert isinstance(task.order, RestoreOrder) and task.vault is not None
    return task


def test_each_vm_is_restored_where_it_was_and_the_whole_is_told(service: Service, point: str) -> None:
    id = ask(service, point, "web", "db")
    assert go(service) == {"host-a", "host-b"}
    assert go(service) == set(), "once"
    assert pinned(service, id) == 6, "three disks, each with what it builds on"
    for agent, vm in zip(service.agents, ("web", "db"), strict=True):
        task = claimed(agent)
        assert (task.order.vm, task.order.backupjobrun, task.order.target) == (
            vm, point, {"kind": "domain", "name": f"{vm}-new", "start": False}
        )  # fmt: skip
        assert row(service, id).state == RestoreState.RUNNING
        disk = DiskProgress(resource="vda", size=10, total=10, done=10, sent=0)
        made = {"host": agent.host, "path": f"/restores/{vm}.qcow2"}
        report = Report(task_id=task.task_id, epoch=task.epoch, number=1, step="x", disks=(disk,), made=(made,))
        service.ask[REPORT](report)
        service.ask[REPORT](report)
        agent.finish(task, Restored(vm=f"uuid of {vm}", name=f"{vm}-new"))
    done = row(service, id)
    assert (done.state, done.bytes_done, done.bytes_total) == (RestoreState.DONE, 20, 20)
    assert [made["path"] for made in done.made] == ["/restores/web.qcow2", "/restores/db.qcow2"]
    assert sorted(vm["name"] for vm in done.result["vms"]) == ["db-new", "web-new"]
    assert pinned(service, id) == 0


def test_it_goes_to_the_host_that_was_asked_for_and_waits_for_it(service: Service, point: str) -> None:
    id = ask(service, point, "web", host="host-c")
    assert go(service) == set()
    late = service.agent("host-c")
    assert go(service) == {"host-c"}
    late.finish(claimed(late), Restored())
    assert row(service, id).state == RestoreState.DONE


def busy(service: Service, agent: PretendAgent, load: int, seconds: float = 0) -> None:
    """What an agent says of itself, and how long ago that was."""

    def work(session: Session) -> None:
        session.execute(update(Service_).where(Service_.id == agent.id).values(load=load))
        silent(session, session.get_one(Service_, agent.id), seconds)

    service.database.run(work)


def test_where_the_host_of_the_vm_is_gone_it_goes_to_the_least_busy(service: Service, point: str) -> None:
    gone, more_busy = service.agents
    idle = service.agent("host-c")
    busy(service, gone, 0, seconds=3600)
    busy(service, more_busy, 3)
    busy(service, idle, 2)
    ask(service, point, "web")
    assert go(service) == {"host-c"}


@pytest.mark.parametrize("placement", [{"hosts": ["host-b", "host-c"]}, {"zones": ["cellar"]}])
def test_it_goes_where_its_job_allows(service: Service, point: str, placement: dict[str, list[str]]) -> None:
    """Neither to the VM's own host nor to the least busy; but to the one that somebody asks for."""
    _, allowed = service.agents
    service.agent("host-d")

    def work(session: Session) -> None:
        session.execute(update(Service_).where(Service_.id == allowed.id).values(zone="cellar"))
        session.execute(update(BackupJob).values(placement=placement))

    service.database.run(work)
    busy(service, allowed, 5)
    ask(service, point, "web")
    assert go(service) == {"host-b"}
    ask(service, point, "web", host="host-d")
    assert go(service) == {"host-d"}
    # the one that is allowed has no room: it waits
    busy(service, allowed, 8)
    waiting = ask(service, point, "web")
    assert go(service) == set() and row(service, waiting).state == RestoreState.QUEUED


def test_one_that_waits_for_no_host_fails(service: Service, point: str) -> None:
    id = ask(service, point, "web", host="nowhere")
    service.database.run(lambda s: aged(s, Restore, id, service.settings.max_wait + 1))
    go(service)
    failed = row(service, id)
    assert (failed.state, failed.error["code"]) == (RestoreState.ERROR, "agent_gone")


def test_in_place_has_the_vm_for_itself(service: Service, point: str) -> None:
    job = service.run_row(point).backupjob_id
    running = service.queue(job)
    service.round()
    assert service.run_row(running).state == RunState.READY
    id = ask(service, point, "web", kind="in_place")
    assert go(service) == set()
    for agent in service.agents:
        agent.work()
    service.round()
    service.commit(running)
    for agent in service.agents:
        agent.work()
    assert go(service) == {"host-a"}
    assert held(service.database)["vm", "web"] == [id]
    task = claimed(service.agents[0])
    # meanwhile no backup begins
    later = service.queue(job)
    service.round()
    assert service.run_row(later).queued_reason["code"] == "vm_busy"
    service.agents[0].finish(task, Restored(vm="web"))
    assert held(service.database) == {}


def test_cancelled_before_and_after_it_was_begun(service: Service, point: str) -> None:
    early = ask(service, point, "web")
    service.database.run(lambda s: restores.request_cancel(s, early))
    go(service)
    assert row(service, early).state == RestoreState.CANCELLED
    late = ask(service, point, "web")
    go(service)
    task = claimed(service.agents[0])
    service.database.run(lambda s: restores.request_cancel(s, late))
    go(service)
    assert row(service, late).state == RestoreState.CANCELLING
    assert service.ask[RENEW](Held(task_id=task.task_id, epoch=task.epoch)).cancel is True
    service.agents[0].finish(task, None, TaskState.CANCELLED)
    assert row(service, late).state == RestoreState.CANCELLED
    assert pinned(service, late) == 0


def test_what_fails_and_whose_agent_is_lost_says_so(service: Service, point: str) -> None:
    id = ask(service, point, "web")
    go(service)
    task = claimed(service.agents[0])
    service.agents[0].finish(task, None, TaskState.ERROR)
    assert (row(service, id).state, row(service, id).error["code"]) == (RestoreState.ERROR, "task_failed")
    lost = ask(service, point, "web")
    go(service)
    claimed(service.agents[0])
    long_ago = round(service.settings.host_patience + 60)

    def gone(session: Session) -> None:
        (task,) = tasks.of_restore(session, lost)
        task.lease_until -= (long_ago + 60) * 1_000_000

    service.database.run(gone)
    go(service)
    go(service)
    assert (row(service, lost).state, row(service, lost).error["code"]) == (RestoreState.ERROR, "agent_lost")


def test_a_point_that_is_read_is_not_removed_under_its_reader(service: Service, point: str) -> None:
    id = ask(service, point, "web", "db")
    go(service)
    service.delete(point)
    service.go_on_deleting()
    assert service.run_row(point).state == RunState.DELETING
    service.check(service.run_row(point).backupjob_id, point)
    for agent in service.agents:
        agent.finish(claimed(agent), Restored())
    assert row(service, id).state == RestoreState.DONE
    service.go_on_deleting()
    assert row(service, id).backupjobrun_id is None
