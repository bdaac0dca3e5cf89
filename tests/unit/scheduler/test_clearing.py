"""What backups from storage leave in the cloud: kept with their tasks, shown, and removed when nobody else does.

Cinder is played over HTTP, and Keystone: that they are away, or that a trust is gone, at a given step cannot be had
otherwise. Real ones are in tests/openstack/test_volume_jobs.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from raksha.db import jobs, runs
from raksha.db.jobs import Member
from raksha.db.models import BackupJob, Task
from raksha.db.session import Database
from raksha.openstack.trusts import LentCloud
from raksha.scheduler import deleting
from raksha.scheduler.access import Access
from raksha.scheduler.clearing import Cleared, clear
from raksha.scheduler.temporary import noted
from raksha.states import RunState, Source, TaskState
from raksha.tasks import REPORT, Claimed, Report
from tests.bed.cinder import Cinder
from tests.bed.databases import make_job
from tests.bed.pretend import PretendAgent
from tests.contract.identity import serving
from tests.unit.scheduler.service import Service
from tests.unit.scheduler.test_access import AWAY, BROKEN, Keystone

VOLUME, SNAPSHOT, COPY, ATTACHMENT, OTHERS = "vol-1", "snap-1", "copy-1", "att-1", "theirs"
BEFORE = {"kind": "temp_snapshot", "volume": VOLUME, "previous_status": "in-use"}


class Cloud(Keystone):
    """A Keystone whose catalog has a Cinder."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def cloud(self, trust_id: str, services: Any) -> LentCloud:
        there = {"block-storage": f"{self.url}/v3"} if "block-storage" in services else {}
        return LentCloud(self.lend(trust_id).token, there)


@pytest.fixture
def cinder() -> Cinder:
    made = Cinder()
    made.volume(VOLUME, status="in-use")
    return made


@pytest.fixture
def cloud(cinder: Cinder) -> Iterator[Cloud]:
    with serving(cinder.answer) as (url, _):
        yield Cloud(url)


@pytest.fixture
def service(sqlite: Database, tmp_path: Path, cloud: Cloud) -> Service:
    made = Service(sqlite, tmp_path, access=Access(cloud))  # type: ignore[arg-type]
    agent = made.agent(capabilities={"storage": ["rbd"]})
    agent.storage[VOLUME, "volume"] = bytes(65536)
    agent.beat()
    return made


@pytest.fixture
def job(service: Service) -> str:
    members = [Member(VOLUME, source=Source.VOLUME, force=True)]
    return service.database.run(lambda s: make_job(s, members=members, trust_id="trust-1").id)


@pytest.fixture
def agent(service: Service) -> PretendAgent:
    return service.agents[0]


def begun(service: Service, agent: PretendAgent, job: str) -> tuple[str, Claimed]:
    run = service.queue(job)
    service.round()
    (task,) = agent.claim()
    return run, task


def tell(agent: PretendAgent, task: Claimed, number: int, *made: dict[str, Any]) -> None:
    agent.ask[REPORT](Report(task_id=task.task_id, epoch=task.epoch, number=number, step="x", made=made))


def left_behind(cinder: Cinder, task: str) -> None:
    """What an agent had when it was killed, and what is none of its business."""
    cinder.snapshot(SNAPSHOT, VOLUME, raksha_task=task, raksha_claim=f"{task}.1")
    cinder.volume(COPY, status="in-use", raksha_task=task, raksha_claim=f"{task}.1")
    cinder.attachment(ATTACHMENT, COPY)
    cinder.snapshot(OTHERS, VOLUME, raksha_task="another task")
    cinder.attachment("of the server", VOLUME)


def failed(service: Service, agent: PretendAgent, job: str, cinder: Cinder) -> str:
    """A run whose agent left what it had made."""
    run, task = begun(service, agent, job)
    tell(agent, task, 1, BEFORE)
    left_behind(cinder, task.task_id)
    agent.finish(task, None, TaskState.ERROR)
    service.round()
    assert service.run_row(run).state == RunState.ERROR
    return run


def temporary(service: Service, run: str) -> dict[str, Any]:
    with service.database.reading() as session:
        return runs.detail(session, runs.get(session, None, run)).temporary


def look_again(service: Service) -> Cleared:
    """As if the time until the next attempt had gone by."""
    for noun in (Task, BackupJob):
        due = update(noun).where(noun.clear_at.is_not(None)).values(clear_at=1)
        service.database.run(lambda s, due=due: s.execute(due) and None)
    return clear(service.database, service.access)


def test_what_is_there_for_the_time_being_is_shown_until_it_is_gone(
    service: Service, agent: PretendAgent, job: str
) -> None:
    run, task = begun(service, agent, job)
    tell(agent, task, 1, BEFORE)
    said = {"volume": VOLUME, "previous_status": "in-use", "temp_snapshot_id": None}
    assert temporary(service, run) == {VOLUME: [said]}
    made = {"kind": "temp_snapshot", "volume": VOLUME, "id": SNAPSHOT}
    tell(agent, task, 2, made, {"kind": "temp_volume", "volume": VOLUME, "id": COPY})
    assert temporary(service, run) == {VOLUME: [{**said, "temp_snapshot_id": SNAPSHOT, "temp_volume_id": COPY}]}
    tell(agent, task, 3, made, {"kind": "temp_volume", "volume": VOLUME, "gone": True})
    assert temporary(service, run) == {VOLUME: [{**said, "temp_snapshot_id": SNAPSHOT}]}
    tell(agent, task, 4, {"kind": "temp_snapshot", "volume": VOLUME, "gone": True})
    assert temporary(service, run) == {}


def test_what_a_dead_agent_has_left_is_removed_and_nothing_else(
    service: Service, agent: PretendAgent, job: str, cinder: Cinder
) -> None:
    run = failed(service, agent, job, cinder)
    assert clear(service.database, service.access) == Cleared(1, 0)
    assert cinder.ids("snapshots") == {OTHERS}
    assert cinder.ids("volumes") == {VOLUME}
    assert cinder.ids("attachments") == {"of the server"}
    assert temporary(service, run) == {}
    assert clear(service.database, service.access) == Cleared(0, 0)


def test_nothing_is_removed_while_somebody_may_be_at_work(
    service: Service, agent: PretendAgent, job: str, cinder: Cinder
) -> None:
    run, task = begun(service, agent, job)
    tell(agent, task, 1, BEFORE)
    left_behind(cinder, task.task_id)
    assert clear(service.database, service.access) == Cleared(0, 0)
    # it is stored, and its capture is open until it hears what became of the run
    agent.finish(task, agent.store(task))
    service.round()
    assert clear(service.database, service.access) == Cleared(0, 0)
    assert service.commit(run) == RunState.AVAILABLE
    assert clear(service.database, service.access) == Cleared(0, 0)
    assert cinder.ids("snapshots") == {SNAPSHOT, OTHERS}
    agent.work()
    assert clear(service.database, service.access) == Cleared(1, 0)
    assert cinder.ids("snapshots") == {OTHERS}


def test_the_end_of_a_backup_speaks_for_it(service: Service, agent: PretendAgent, job: str, cloud: Cloud) -> None:
    run, task = begun(service, agent, job)
    tell(agent, task, 1, BEFORE)
    agent.finish(task, agent.store(task))
    service.round()
    service.commit(run)
    (finish,) = agent.claim()
    tell(agent, finish, 1, {"kind": "temp_snapshot", "volume": VOLUME, "gone": True})
    agent.do(finish)
    asked = cloud.asked
    assert temporary(service, run) == {}
    assert clear(service.database, service.access) == Cleared(0, 0)
    assert cloud.asked == asked


@pytest.mark.parametrize("status", [503, 403])
def test_it_is_tried_again_until_it_is_done(
    service: Service, agent: PretendAgent, job: str, cinder: Cinder, status: int
) -> None:
    failed(service, agent, job, cinder)
    cinder.fault = status
    assert clear(service.database, service.access) == Cleared(0, 1)
    # not at once
    assert clear(service.database, service.access) == Cleared(0, 0)
    cinder.fault = 0
    assert look_again(service) == Cleared(1, 0)
    assert cinder.ids("snapshots") == {OTHERS}


def test_keystone_away_is_no_reason_to_forget(
    service: Service, agent: PretendAgent, job: str, cinder: Cinder, cloud: Cloud
) -> None:
    failed(service, agent, job, cinder)
    for fault in (AWAY, BROKEN):
        cloud.fault = fault
        assert look_again(service) == Cleared(0, 1)
    cloud.fault = None
    assert look_again(service) == Cleared(1, 0)
    assert cinder.ids("snapshots") == {OTHERS}


def test_another_scheduler_may_be_able_to(service: Service, agent: PretendAgent, job: str, cinder: Cinder) -> None:
    """One that has no trustee of its own removes nothing, and forgets nothing."""
    failed(service, agent, job, cinder)
    assert clear(service.database, Access()) == Cleared(0, 1)
    assert look_again(service) == Cleared(1, 0)
    assert cinder.ids("snapshots") == {OTHERS}


def test_a_run_is_not_deleted_before_what_it_left_is_removed(
    service: Service, agent: PretendAgent, job: str, cinder: Cinder
) -> None:
    run = failed(service, agent, job, cinder)
    agent.work()
    service.delete(run)
    assert service.run_row(run).state == RunState.DELETING
    assert clear(service.database, service.access) == Cleared(1, 0)
    service.go_on_deleting()
    with pytest.raises(StopIteration):
        service.run_row(run)


def test_where_no_trust_is_left_a_deleted_run_goes_and_the_log_names_what_stays(
    service: Service, agent: PretendAgent, job: str, cinder: Cinder, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    run = failed(service, agent, job, cinder)
    agent.work()
    cloud.broken = {"trust-1"}
    assert look_again(service) == Cleared(0, 1)
    service.delete(run)
    assert look_again(service) == Cleared(1, 0)
    assert any(VOLUME in record.message and "stays" in record.message for record in caplog.records)
    service.go_on_deleting()
    with pytest.raises(StopIteration):
        service.run_row(run)


def kept(cinder: Cinder, job: str) -> None:
    for id, volume, of in (("kept-1", VOLUME, job), ("kept-2", "vol-2", job), ("kept-3", VOLUME, "another job")):
        cinder.snapshot(id, volume, raksha_job=of, raksha_run="run", raksha_vm=volume)


def test_what_stayed_of_a_volume_that_a_job_names_no_more_is_removed(
    service: Service, job: str, cinder: Cinder
) -> None:
    kept(cinder, job)
    members = [Member(VOLUME, source=Source.VOLUME), Member("web")]

    def change(session: Any, members: list[Member]) -> None:
        jobs.change(session, job, jobs.get(session, None, job).version, members=members)

    service.database.run(lambda s: change(s, [*members, Member("vol-2", source=Source.VOLUME)]))
    assert clear(service.database, service.access) == Cleared(0, 0)
    service.database.run(lambda s: change(s, members))
    cinder.fault = 503
    assert clear(service.database, service.access) == Cleared(0, 1)
    cinder.fault = 0
    assert look_again(service) == Cleared(1, 0)
    assert cinder.ids("snapshots") == {"kept-1", "kept-3"}
    # its hypervisor takes it from now on
    service.database.run(lambda s: change(s, [Member(VOLUME), Member("web")]))
    assert clear(service.database, service.access) == Cleared(1, 0)
    assert cinder.ids("snapshots") == {"kept-3"}


def test_a_deleted_job_leaves_no_snapshot_and_its_trust_lasts_until_then(
    service: Service, job: str, cinder: Cinder, cloud: Cloud
) -> None:
    kept(cinder, job)
    service.database.run(lambda s: jobs.begin_deleting(s, job))
    cinder.fault = 503
    assert deleting.remove_jobs(service.database, access=service.access) == 0
    assert cloud.ended == []
    cinder.fault = 0
    assert deleting.remove_jobs(service.database, access=service.access) == 1
    assert (cinder.ids("snapshots"), cloud.ended) == ({"kept-3"}, ["trust-1"])


@pytest.mark.parametrize("refused", [403, 0])
def test_a_cloud_that_refuses_holds_up_no_deletion(
    service: Service, job: str, cinder: Cinder, cloud: Cloud, refused: int
) -> None:
    kept(cinder, job)
    cinder.fault = refused
    cloud.broken = set() if refused else {"trust-1"}
    service.database.run(lambda s: jobs.begin_deleting(s, job))
    assert deleting.remove_jobs(service.database, access=service.access) == 1
    assert cloud.ended == ["trust-1"]


def test_what_cannot_be_understood_changes_nothing() -> None:
    for said in ({}, {"kind": "temp_snapshot"}, {"kind": "rm", "volume": VOLUME}, {"kind": "temp_volume", "volume": 7}):
        assert noted([], [said]) == []


def test_attachments_are_known_by_their_ids_or_not_yet() -> None:
    about = {"kind": "attachment", "volume": VOLUME}
    unknown = noted([], [about])
    assert unknown == [{"volume": VOLUME, "attachments": [None]}]
    known = noted(unknown, [{**about, "id": "a"}])
    assert known == [{"volume": VOLUME, "attachments": ["a"]}]
    # of the next attempt
    both = noted(known, [{**about, "id": "b"}])
    assert both == [{"volume": VOLUME, "attachments": ["a", "b"]}]
    assert noted(both, [{**about, "id": "a", "gone": True}]) == [{"volume": VOLUME, "attachments": ["b"]}]
    assert noted(both, [{**about, "gone": True}]) == []
