"""Queued runs start whole, in fair order, or say what they wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy.orm import Session

from raksha.db import groups, services, slots, usage, vaults
from raksha.db.jobs import Member
from raksha.db.models import BackupJob, BackupJobRun, BackupJobRunVm, Service
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.scheduler.dispatch import Dispatched, dispatch
from raksha.scheduler.placement import selected, willing
from raksha.states import JobState, RunState, RunVmState, ServiceState, TaskKind, TaskState
from tests.bed.databases import PROJECT, make_agent, make_job, make_run, make_task, make_vault
from tests.bed.scheduling import SETTINGS, aged, agent_with, claim, held, run_of, runs_of, silent, tasks_of


@pytest.fixture
def vault(sqlite: Database) -> str:
    return sqlite.run(lambda s: make_vault(s).id)


def queue(database: Database, name: str, *vms: str, **more: Any) -> BackupJobRun:
    def work(session: Session) -> BackupJobRun:
        return make_run(session, make_job(session, name, members=[Member(vm) for vm in vms], **more))

    return database.run(work)


def go(database: Database, **settings: Any) -> Dispatched:
    return dispatch(database, replace(SETTINGS, **settings))


def state(database: Database, run: BackupJobRun) -> RunState:
    return run_of(database, run.backupjob_id).state


def why(database: Database, run: BackupJobRun) -> str | None:
    found = run_of(database, run.backupjob_id)
    assert found.state == RunState.QUEUED
    return found.queued_reason and found.queued_reason["code"]


def test_a_run_gets_its_slots_its_tasks_and_its_group(sqlite: Database, vault: str) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["web"], capacity=2))
    sqlite.run(lambda s: agent_with(s, "host-b", ["db", "mail"], capacity=3))
    run = queue(sqlite, "all", "web", "db", bandwidth_limit=1000)
    done = go(sqlite)
    assert (done.started, done.waiting, done.hosts) == (1, 0, {"host-a", "host-b"})
    found = tasks_of(sqlite, run.id)
    assert [(t.vm_id, t.host, t.state, t.kind) for t in found] == [
        ("db", "host-b", TaskState.READY, TaskKind.BACKUP), ("web", "host-a", TaskState.READY, TaskKind.BACKUP)
    ]  # fmt: skip
    assert found[0].order["full"] is True
    assert found[0].order["bandwidth_limit"] == 1000
    assert {task.vault_id for task in found} == {vault}
    wanted = [("host", "host-a"), ("host", "host-b"), ("project", PROJECT), ("vm", "db"), ("vm", "web")]
    assert held(sqlite) == {slot: [run.id] for slot in wanted}
    with sqlite.reading() as session:
        group = groups.of_run(session, run.id)
        assert group is not None
        assert [member.vm_id for member in groups.members(session, group.id)] == ["db", "web"]
        vms = session.query(BackupJobRunVm).filter_by(backupjobrun_id=run.id).order_by(BackupJobRunVm.vm_id).all()
        assert [(vm.vm_id, vm.name, vm.host) for vm in vms] == [
            ("db", "name of db", "host-b"), ("web", "name of web", "host-a")
        ]  # fmt: skip
    assert go(sqlite).started == 0


def test_a_host_starts_no_more_than_its_agent_takes(sqlite: Database, vault: str) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["a", "b", "c", "d"], capacity=3))
    first, second = queue(sqlite, "first", "a", "b"), queue(sqlite, "second", "c", "d")
    go(sqlite)
    assert state(sqlite, first) == RunState.READY
    assert why(sqlite, second) == "host_busy"
    assert held(sqlite)["host", "host-a"] == [first.id] * 2
    assert ("vm", "c") not in held(sqlite)
    assert tasks_of(sqlite, second.id) == []


def test_a_group_larger_than_its_agent_says_so_and_without_a_group_it_goes_in_turns(
    sqlite: Database, vault: str
) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["a", "b", "c"], capacity=2))
    group = queue(sqlite, "group", "a", "b", "c")
    go(sqlite)
    assert why(sqlite, group) == "group_too_large"
    assert held(sqlite) == {}
    single = queue(sqlite, "single", "a", "b", "c", consistency_group=False)
    go(sqlite)
    assert state(sqlite, single) == RunState.READY
    assert held(sqlite)["host", "host-a"] == [single.id] * 2


def test_one_run_per_vm_over_all_jobs(sqlite: Database, vault: str) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["web", "db"]))
    first, second = queue(sqlite, "first", "web"), queue(sqlite, "second", "db", "web")
    go(sqlite)
    assert state(sqlite, first) == RunState.READY
    assert why(sqlite, second) == "vm_busy"
    assert first.id in run_of(sqlite, second.backupjob_id).queued_reason["message"]


def test_projects_take_turns(sqlite: Database, vault: str) -> None:
    vms = [f"{project}{n}" for project in "ab" for n in range(3)]
    sqlite.run(lambda s: [make_vault(s, p) for p in "ab"])
    hosts = {project: [vm for vm in vms if vm[0] == project] for project in "ab"}
    sqlite.run(lambda s: services.see(s, make_agent(s, "host-a", capacity=4).id, [
        services.Sight(vm, vm, "running", project) for project, there in hosts.items() for vm in there
    ]))  # fmt: skip
    # all of project a were asked for first
    queued = {vm: queue(sqlite, vm, vm, project_id=vm[0]) for vm in vms}
    go(sqlite)
    assert {vm for vm, run in queued.items() if state(sqlite, run) == RunState.READY} == {"a0", "a1", "b0", "b1"}


def test_a_project_has_its_limit(sqlite: Database, vault: str) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["a", "b", "c"], capacity=9))
    sqlite.run(lambda s: usage.set_limit(s, PROJECT, "concurrent_runs", 2))
    for vm in "abc":
        queue(sqlite, vm, vm)
    assert go(sqlite).started == 2
    (waiting,) = [run for run in runs_of(sqlite) if run.state == RunState.QUEUED]
    assert waiting.queued_reason["code"] == "project_busy"
    sqlite.run(lambda s: usage.set_limit(s, PROJECT, "concurrent_runs", -1))
    assert go(sqlite).started == 1


def test_a_vault_has_its_limit(sqlite: Database, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    sqlite.run(lambda s: vaults.declare(s, "slow", kind="directory", url=f"file://{tmp_path}/slow", max_runs=1))
    sqlite.run(lambda s: agent_with(s, "host-a", ["a", "b"]))
    queue(sqlite, "a", "a")
    queue(sqlite, "b", "b")
    assert go(sqlite).started == 1
    (waiting,) = [run for run in runs_of(sqlite) if run.state == RunState.QUEUED]
    assert waiting.queued_reason["code"] == "vault_busy"
    with sqlite.reading() as session:
        assert [vault.url for vault in vaults.all_vaults(session)] == [f"file://{tmp_path}/slow/{PROJECT}"]


def test_without_a_vault_nothing_starts(sqlite: Database) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["a"]))
    run = queue(sqlite, "a", "a")
    go(sqlite)
    assert why(sqlite, run) == "no_vault"


def change(database: Database, agent: Service, what: str) -> None:
    def work(session: Session) -> None:
        if what == "silent":
            silent(session, agent, 3600)
        elif what == "disabled":
            transition(session, Service, agent.id, ServiceState.DISABLED)
        else:
            sight = services.Sight("web", "web", "running", PROJECT, refusal={"code": "x", "message": "no disks"})
            services.see(session, agent.id, [sight])

    database.run(work)


@pytest.mark.parametrize(
    ("what", "code"), [("silent", "agent_gone"), ("disabled", "agent_disabled"), ("refused", "vm_refused")]
)
def test_a_vm_without_a_willing_agent_leaves_the_run_in_the_queue(
    sqlite: Database, vault: str, what: str, code: str
) -> None:
    agent = sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    sqlite.run(lambda s: agent_with(s, "host-b", ["db"]))
    run = queue(sqlite, "both", "db", "web")
    change(sqlite, agent, what)
    assert go(sqlite).waiting == 1
    assert why(sqlite, run) == code
    assert held(sqlite) == {}
    assert tasks_of(sqlite, run.id) == []
    # and starts when it is back
    sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    if what == "disabled":
        sqlite.run(lambda s: transition(s, Service, agent.id, ServiceState.ENABLED))
    assert go(sqlite).started == 1
    assert run_of(sqlite, run.backupjob_id).queued_reason is None


def test_a_vm_of_another_project_is_nobodys(sqlite: Database, vault: str) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["theirs"], "project-b"))
    sqlite.run(lambda s: agent_with(s, "host-b", ["unowned"], None))
    foreign, unowned = queue(sqlite, "foreign", "theirs"), queue(sqlite, "unowned", "unowned")
    go(sqlite)
    assert why(sqlite, foreign) == why(sqlite, unowned) == "vm_not_seen"
    # the embedded default has VMs of no project
    go(sqlite, unowned_vms_project=PROJECT)
    assert why(sqlite, foreign) == "vm_not_seen"
    assert state(sqlite, unowned) == RunState.READY


def test_a_vm_that_moved_is_backed_up_where_it_runs(sqlite: Database, vault: str) -> None:
    old = sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    sqlite.run(lambda s: services.see(s, old.id, [services.Sight("web", "web", "shut off", PROJECT)]))
    sqlite.run(lambda s: agent_with(s, "host-b", ["web"]))
    run = queue(sqlite, "web", "web")
    go(sqlite)
    assert [task.host for task in tasks_of(sqlite, run.id)] == ["host-b"]


def test_where_it_ran_being_silent_no_other_host_will_do(sqlite: Database, vault: str) -> None:
    running = sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    other = sqlite.run(lambda s: make_agent(s, "host-b"))
    sqlite.run(lambda s: services.see(s, other.id, [services.Sight("web", "web", "shut off", PROJECT)]))
    sqlite.run(lambda s: silent(s, running, 3600))
    run = queue(sqlite, "web", "web")
    go(sqlite)
    assert why(sqlite, run) == "agent_gone"


def test_who_waits_too_long_has_failed_or_goes_without(sqlite: Database, vault: str) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    strict = queue(sqlite, "strict", "web", "gone", retry_policy={"retries": 0})
    loose = queue(sqlite, "loose", "web", "gone", on_vm_failure="degrade")
    go(sqlite)
    assert why(sqlite, strict) == why(sqlite, loose) == "vm_not_seen"
    for run in (strict, loose):
        sqlite.run(lambda s, run=run: aged(s, BackupJobRun, run.id, SETTINGS.max_wait + 10))
    go(sqlite)
    failed = run_of(sqlite, strict.backupjob_id)
    assert (failed.state, failed.error["code"]) == (RunState.ERROR, "vm_not_seen")
    assert state(sqlite, loose) == RunState.READY
    with sqlite.reading() as session:
        vms = session.query(BackupJobRunVm).filter_by(backupjobrun_id=loose.id).all()
        assert {vm.vm_id: vm.state for vm in vms} == {"web": RunVmState.PENDING, "gone": RunVmState.SKIPPED}


def test_who_was_overtaken_too_long_gets_the_next_slots(sqlite: Database, vault: str) -> None:
    agent = sqlite.run(lambda s: agent_with(s, "host-a", ["a", "b", "c", "d"], capacity=2))
    running = queue(sqlite, "running", "a")
    go(sqlite)
    pair, single = queue(sqlite, "pair", "b", "c"), queue(sqlite, "single", "d")
    sqlite.run(lambda s: aged(s, BackupJobRun, pair.id, SETTINGS.max_overtaken + 10))
    go(sqlite)
    assert why(sqlite, pair) == "host_busy"
    assert why(sqlite, single) == "overtaken"
    assert [task.backupjobrun_id for task in claim(sqlite, agent)] == [running.id]


def test_vms_by_selector_are_those_of_the_moment(sqlite: Database, vault: str) -> None:
    def sights(*tagged: str) -> list[services.Sight]:
        return [services.Sight(vm, vm, "running", PROJECT, tags=("gold",)) for vm in tagged] + [
            services.Sight("plain", "plain", "running", PROJECT),
            services.Sight("theirs", "theirs", "running", "project-b", tags=("gold",)),
        ]

    agent = sqlite.run(lambda s: make_agent(s, "host-a"))
    sqlite.run(lambda s: services.see(s, agent.id, sights()))
    run = queue(sqlite, "gold", vm_selector={"tags": ["gold"]})
    go(sqlite)
    assert why(sqlite, run) == "no_vms"
    sqlite.run(lambda s: services.see(s, agent.id, sights("one", "two")))
    go(sqlite)
    assert [task.vm_id for task in tasks_of(sqlite, run.id)] == ["one", "two"]


def test_what_a_selector_says() -> None:
    tags, metadata = ["gold", "web"], {"tier": "1"}
    assert selected({"tags": ["gold"]}, tags, metadata)
    assert selected({"tags": ["gold", "web"], "metadata": {"tier": "1"}}, tags, metadata)
    assert not selected({"tags": ["gold", "db"]}, tags, metadata)
    assert not selected({"metadata": {"tier": "2"}}, tags, metadata)
    assert not selected({}, tags, metadata)


def test_a_suspended_job_starts_nothing(sqlite: Database, vault: str) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    run = queue(sqlite, "web", "web")
    sqlite.run(lambda s: transition(s, BackupJob, run.backupjob_id, JobState.SUSPENDED))
    go(sqlite)
    assert why(sqlite, run) == "job_not_active"


def test_work_for_any_agent_is_told_to_the_least_busy_that_may(sqlite: Database, vault: str) -> None:
    sqlite.run(lambda s: make_agent(s, "busy", load=3, capacity=4))
    sqlite.run(lambda s: make_agent(s, "idle", load=1, capacity=4))
    sqlite.run(lambda s: make_agent(s, "far", load=0, capacity=4, zone="z2"))
    sqlite.run(lambda s: make_task(s, kind=TaskKind.VERIFY, placement={"hosts": ["busy", "idle"]}))
    assert go(sqlite).hosts == {"idle"}
    sqlite.run(lambda s: make_task(s, kind=TaskKind.VERIFY))
    assert go(sqlite).hosts == {"idle", "far"}
    with sqlite.reading() as session:
        agents = session.query(Service).all()
        assert [agent.host for agent in willing(agents, None)] == ["far", "idle", "busy"]
        assert [agent.host for agent in willing(agents, {"zones": ["z2"]})] == ["far"]
        assert willing(agents, {"hosts": ["nowhere"]}) == []


def test_many_that_wait_for_one_host_do_not_hide_others_nor_each_other(sqlite: Database, vault: str) -> None:
    agent = sqlite.run(lambda s: agent_with(s, "host-a", [f"vm-{n}" for n in range(5)], capacity=1))
    waiting = [queue(sqlite, f"job {n}", f"vm-{n}") for n in range(5)]
    assert go(sqlite).started == 1
    assert [why(sqlite, run) for run in waiting[1:]] == ["host_busy"] * 4
    sqlite.run(lambda s: agent_with(s, "host-b", ["other"]))
    late = queue(sqlite, "late", "other")
    assert go(sqlite).started == 1
    assert state(sqlite, late) == RunState.READY
    # one that ends makes room for exactly one
    sqlite.run(lambda s: slots.release(s, waiting[0].id))
    done = go(sqlite)
    assert (done.started, done.waiting) == (1, 3)
    assert state(sqlite, waiting[1]) == RunState.READY
    assert len(claim(sqlite, agent)) == 2
