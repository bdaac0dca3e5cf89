"""What the queries of each noun promise to API, scheduler and agents, on every database."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.db import backups, groups, idempotency, jobs, restores, runs, services, slots, tasks, vaults
from raksha.db.columns import SECOND
from raksha.db.models import (
    BackupJob,
    BackupJobRun,
    BackupJobRunVm,
    BackupJobRunVmResource,
    Service,
    Task,
    Tombstone,
    VmResourceBackup,
)
from raksha.db.paging import Sort, Wanted
from raksha.db.session import Database
from raksha.db.transition import transition, transition_all
from raksha.db.usage import limits, set_limit, usage
from raksha.errors import (
    ChangedMeanwhile,
    EpochStale,
    KeyReused,
    MarkerUnknown,
    RequestUnderWay,
    RowNotFound,
    SortKeyUnknown,
    StateConflict,
    StillNeeded,
)
from raksha.states import (
    BackupKind,
    BackupState,
    BarrierState,
    JobState,
    MemberState,
    PinHolder,
    RestoreState,
    RunState,
    ServiceKind,
    ServiceState,
    TaskKind,
    TaskState,
    Trigger,
)
from tests.bed.databases import PROJECT, make_agent, make_copy, make_job, make_run, make_task, make_vault

BACKUP = [TaskKind.BACKUP]


# -- jobs and runs ------------------------------------------------------------------------------------


def test_a_job_is_read_as_it_was_written(database: Database) -> None:
    members = [jobs.Member("vm-2", ("vdb",)), jobs.Member("vm-1")]
    schedule = {"cron": "0 3 * * *", "zone": "Europe/Berlin"}
    job = database.run(lambda s: make_job(s, members=members, schedule=schedule, bandwidth_limit=10**10))
    assert (job.state, job.version) == (JobState.ACTIVE, 1)
    with database.reading() as session:
        found = jobs.get(session, PROJECT, job.id)
        assert (found.schedule, found.bandwidth_limit, found.next_run_at) == (schedule, 10**10, None)
        (named,) = jobs.members(session, [job.id]).values()
        assert [(m.vm_id, m.excluded_disks) for m in named] == [("vm-2", ["vdb"]), ("vm-1", [])]
        with pytest.raises(RowNotFound):
            jobs.get(session, "another project", job.id)


def test_a_change_on_an_old_version_is_refused(database: Database) -> None:
    job = database.run(make_job)
    database.run(lambda s: jobs.change(s, job.id, 1, members=[jobs.Member("vm-9")], name="weekly"))
    with pytest.raises(ChangedMeanwhile) as refused:
        database.run(lambda s: jobs.change(s, job.id, 1, name="mine"))
    assert (refused.value.fields["found"], refused.value.fields["given"]) == (2, 1)
    with pytest.raises(RowNotFound):
        database.run(lambda s: jobs.change(s, "no job", 1, name="mine"))
    with database.reading() as session:
        assert (jobs.get(session, None, job.id).name, jobs.get(session, None, job.id).version) == ("weekly", 2)
        assert [m.vm_id for m in jobs.members(session, [job.id])[job.id]] == ["vm-9"]


def test_lists_refuse_what_they_do_not_know(database: Database) -> None:
    job = database.run(make_job)
    other = database.run(lambda s: make_job(s, project_id="another"))
    with database.reading() as session:
        assert [j.id for j in jobs.listed(session, PROJECT, Wanted()).rows] == [job.id]
        assert len(jobs.listed(session, None, Wanted()).rows) == 2
        with pytest.raises(SortKeyUnknown, match="created_at, id, name"):
            jobs.listed(session, PROJECT, Wanted(sort=(Sort("schedule"),)))
        # a marker out of somebody else's list tells nothing
        with pytest.raises(MarkerUnknown):
            jobs.listed(session, PROJECT, Wanted(marker=other.id))


def test_due_jobs_and_those_that_are_not(database: Database) -> None:
    def work(session: Session) -> list[str]:
        make_job(session, "late", next_run_at=2000)
        make_job(session, "later", next_run_at=1000)
        make_job(session, "never")
        make_job(session, "not yet", next_run_at=2**60)
        paused = make_job(session, "paused", next_run_at=1000)
        transition(session, BackupJob, paused.id, JobState.PAUSED)
        return [job.name for job in jobs.due(session, 10)]

    assert database.run(work) == ["later", "late"]


def test_a_paused_job_does_not_fire_though_it_was_seen_due(database: Database) -> None:
    job = database.run(lambda s: make_job(s, next_run_at=1000))
    database.run(lambda s: transition(s, BackupJob, job.id, JobState.PAUSED))
    assert database.run(lambda s: runs.fire(s, job, kind=BackupKind.FULL, next_run_at=2000)) is None
    with database.reading() as session:
        assert jobs.get(session, None, job.id).next_run_at == 1000


def test_a_job_whose_schedule_was_changed_meanwhile_does_not_fire(database: Database) -> None:
    job = database.run(lambda s: make_job(s, next_run_at=1000))
    database.run(lambda s: jobs.change(s, job.id, 1, next_run_at=5000))
    assert database.run(lambda s: runs.fire(s, job, kind=BackupKind.FULL, next_run_at=2000)) is None
    with database.reading() as session:
        assert jobs.get(session, None, job.id).next_run_at == 5000
        assert runs.listed(session, PROJECT, Wanted()).rows == []


def test_missed_times_are_counted(database: Database) -> None:
    job = database.run(lambda s: make_job(s, next_run_at=1000))
    assert database.run(lambda s: runs.pass_over(s, job, next_run_at=2000, missed=3))
    assert not database.run(lambda s: runs.pass_over(s, job, next_run_at=2000, missed=3))
    with database.reading() as session:
        found = jobs.get(session, None, job.id)
        assert (found.missed_runs, found.next_run_at) == (3, 2000)
        assert runs.listed(session, PROJECT, Wanted()).rows == []


def test_runs_count_towards_the_next_full_one(database: Database) -> None:
    def work(session: Session) -> list[int]:
        job, counts = make_job(session), []
        for kind in (BackupKind.FULL, BackupKind.INCREMENTAL, BackupKind.INCREMENTAL, BackupKind.FULL):
            make_run(session, job, kind=kind)
            counts.append(session.execute(select(BackupJob.runs_since_full)).scalar_one())
        return counts

    assert database.run(work) == [0, 1, 2, 0]


def test_the_queue_is_fair_between_projects(database: Database) -> None:
    def work(session: Session) -> list[str]:
        for project, count in (("greedy", 5), ("modest", 2), ("late", 1)):
            job = make_job(session, project_id=project)
            for number in range(count):
                run = make_run(session, job, description=f"{project} {number}")
                session.execute(update(BackupJobRun).where(BackupJobRun.id == run.id).values(created_at=number))
        waits = make_run(session, make_job(session, project_id="waits"), not_before=2**60)
        assert waits.state == RunState.QUEUED
        return [run.description for run in runs.queued(session, 6)]

    queue = database.run(work)
    assert {*queue[:3]} == {"greedy 0", "modest 0", "late 0"}
    assert {*queue[3:5]} == {"greedy 1", "modest 1"}
    assert queue[5] == "greedy 2"


# -- tasks --------------------------------------------------------------------------------------------


def test_a_claim_is_reported_on_and_finished_once(database: Database) -> None:
    agent = database.run(lambda s: make_agent(s).id)
    database.run(lambda s: make_task(s, order={"vm": "vm-1"}))
    (task,) = database.run(lambda s: tasks.claim(s, agent, BACKUP, 5, 30))
    assert (task.epoch, task.order, task.service_id) == (1, {"vm": "vm-1"}, agent)
    assert database.run(lambda s: tasks.claim(s, agent, BACKUP, 5, 30)) == []

    def report(number: int, epoch: int = 1) -> bool:
        return database.run(lambda s: tasks.report(s, tasks.Report(task.id, epoch, number, {"done": number})))

    # reordered and doubled
    assert [report(1), report(3), report(2), report(3)] == [True, True, False, False]
    with pytest.raises(EpochStale):
        report(4, epoch=0)
    assert database.run(lambda s: tasks.finish(s, task.id, 1, TaskState.DONE, result={"segments": 7}))
    # the acknowledgement was lost, the agent repeats
    assert not database.run(lambda s: tasks.finish(s, task.id, 1, TaskState.DONE, result={"segments": 7}))
    with pytest.raises(StateConflict, match="is done"):
        database.run(lambda s: tasks.finish(s, task.id, 1, TaskState.ERROR))
    with pytest.raises(StateConflict):
        report(4)
    with database.reading() as session:
        row = tasks.get(session, task.id)
        assert (row.state, row.result, row.progress) == (TaskState.DONE, {"segments": 7}, {"done": 3})


def test_a_claim_that_was_answered_to_nobody_is_given_again(database: Database) -> None:
    """Whoever names all claims that it knows of, gets the others back at once, beside its limit."""
    here, there = database.run(lambda s: (make_agent(s, "host-a").id, make_agent(s, "host-b").id))
    database.run(lambda s: [make_task(s) for _ in range(2)] and None)
    one, two = database.run(lambda s: tasks.claim(s, here, BACKUP, 5, 30))
    assert database.run(lambda s: tasks.claim(s, here, BACKUP, 5, 30)) == [], "it does not say"
    known = {(one.id, one.epoch), (two.id, two.epoch)}
    assert database.run(lambda s: tasks.claim(s, here, BACKUP, 0, 30, known)) == []
    (again,) = database.run(lambda s: tasks.claim(s, here, BACKUP, 0, 30, {(one.id, one.epoch)}))
    assert (again.id, again.epoch) == (two.id, 2)
    # the claim that it knows of is an old one
    (again,) = database.run(lambda s: tasks.claim(s, here, BACKUP, 0, 30, known))
    assert (again.id, again.epoch) == (two.id, 3)
    assert database.run(lambda s: tasks.claim(s, there, BACKUP, 5, 30, ())) == [], "what others have is theirs"
    assert database.run(lambda s: tasks.claim(s, here, [TaskKind.FINISH], 5, 30, ())) == [], "only what it asks for"
    assert len(database.run(lambda s: tasks.claim(s, here, BACKUP, 5, 30, ()))) == 2, "a new start knows of none"


def test_a_task_of_a_host_stays_with_it(database: Database) -> None:
    here, there = database.run(lambda s: (make_agent(s, "host-a").id, make_agent(s, "host-b").id))
    bound = database.run(lambda s: make_task(s, host="host-a").id)
    assert database.run(lambda s: tasks.claim(s, there, BACKUP, 5, 30)) == []
    (first,) = database.run(lambda s: tasks.claim(s, here, BACKUP, 5, -1))
    # its lease is over: nobody else gets it, and it does not go back to the queue
    assert database.run(lambda s: tasks.claim(s, there, BACKUP, 5, 30)) == []
    assert [task.id for task in database.run(lambda s: tasks.expired(s, 5))] == [bound]
    with pytest.raises(ValueError, match="bound to host-a"):
        database.run(lambda s: tasks.requeue(s, first))
    (again,) = database.run(lambda s: tasks.claim(s, here, BACKUP, 5, 30))
    assert (again.id, again.epoch, again.attempts) == (bound, 2, 2)
    # the one that was stopped in between
    for late in (
        lambda s: tasks.renew(s, bound, 1, 30),
        lambda s: tasks.report(s, tasks.Report(bound, 1, 9, {})),
        lambda s: tasks.finish(s, bound, 1, TaskState.DONE),
        lambda s: tasks.hand_back(s, bound, 1),
    ):
        with pytest.raises(EpochStale, match="its epoch is 2, not 1"):
            database.run(late)


def test_who_looked_before_another_claimed_or_renewed_gets_nothing(database: Database) -> None:
    """The moment between the look and the swap, which no race hits for sure."""
    agent = database.run(make_agent)
    database.run(lambda s: make_task(s, host="host-a"))
    (first,) = database.run(lambda s: tasks.claim(s, agent.id, BACKUP, 1, -1))
    (seen,) = database.run(lambda s: tasks.expired(s, 1))
    database.run(lambda s: tasks.renew(s, first.id, 1, -0.5))
    assert not database.run(lambda s: tasks._claim_one(s, seen, agent, 30))
    (seen,) = database.run(lambda s: tasks.expired(s, 1))
    assert len(database.run(lambda s: tasks.claim(s, agent.id, BACKUP, 1, -1))) == 1
    assert not database.run(lambda s: tasks._claim_one(s, seen, agent, 30))
    with pytest.raises(EpochStale):
        database.run(lambda s: tasks.give_up(s, seen, TaskState.ERROR, {}))
    with database.reading() as session:
        assert tasks.get(session, first.id).epoch == 2


def test_a_late_renewal_counts_while_nobody_took_over(database: Database) -> None:
    agent = database.run(lambda s: make_agent(s).id)
    database.run(make_task)
    (task,) = database.run(lambda s: tasks.claim(s, agent, BACKUP, 1, -1))
    renewed = database.run(lambda s: tasks.renew(s, task.id, 1, 30))
    assert renewed.lease_until > task.lease_until + 30 * SECOND
    assert database.run(lambda s: tasks.expired(s, 5)) == []
    with pytest.raises(StillNeeded, match="prolonged its lease"):
        database.run(lambda s: tasks.requeue(s, task))


def test_work_for_anybody_goes_back_to_the_queue_under_a_new_epoch(database: Database) -> None:
    here, there = database.run(lambda s: (make_agent(s, "host-a").id, make_agent(s, "host-b").id))
    id = database.run(lambda s: make_task(s).id)
    (task,) = database.run(lambda s: tasks.claim(s, here, BACKUP, 1, -1))
    database.run(lambda s: tasks.requeue(s, task))
    with pytest.raises(EpochStale):
        database.run(lambda s: tasks.finish(s, id, 1, TaskState.DONE))
    (again,) = database.run(lambda s: tasks.claim(s, there, BACKUP, 1, 30))
    assert (again.id, again.epoch) == (id, 3)


def test_placement_says_who_may(database: Database) -> None:
    a, b = database.run(lambda s: (make_agent(s, "host-a", zone="z1").id, make_agent(s, "host-b", zone="z2").id))
    database.run(lambda s: make_task(s, placement={"zones": ["z2"]}))
    database.run(lambda s: make_task(s, placement={"hosts": ["host-a"]}))
    got_a = database.run(lambda s: tasks.claim(s, a, BACKUP, 5, 30))
    got_b = database.run(lambda s: tasks.claim(s, b, BACKUP, 5, 30))
    assert [t.placement for t in got_a] == [{"hosts": ["host-a"]}]
    assert [t.placement for t in got_b] == [{"zones": ["z2"]}]


def test_a_service_that_drains_gets_only_what_is_on_its_host(database: Database) -> None:
    agent = database.run(lambda s: make_agent(s, "host-a").id)
    mine = database.run(lambda s: make_task(s, host="host-a").id)
    database.run(lambda s: tasks.claim(s, agent, BACKUP, 1, -1))
    database.run(make_task)
    database.run(lambda s: transition(s, Service, agent, ServiceState.DRAINING))
    got = database.run(lambda s: tasks.claim(s, agent, BACKUP, 5, 30))
    assert [task.id for task in got] == [mine]


def test_priority_and_delay(database: Database) -> None:
    agent = database.run(lambda s: make_agent(s).id)
    database.run(lambda s: [make_task(s, priority=p, order={"p": p}) for p in (0, 5, 1)])
    got = [database.run(lambda s: tasks.claim(s, agent, BACKUP, 1, 30))[0] for _ in range(2)]
    assert [task.order["p"] for task in got] == [5, 1]
    database.run(lambda s: tasks.hand_back(s, got[0].id, 1, delay=60))
    (last,) = database.run(lambda s: tasks.claim(s, agent, BACKUP, 5, 30))
    assert last.order["p"] == 0


def test_a_cancelled_run_ends_what_nobody_has_and_asks_who_has(database: Database) -> None:
    agent = database.run(lambda s: make_agent(s).id)
    run = database.run(lambda s: make_run(s, make_job(s)).id)
    a, b = database.run(lambda s: [make_task(s, ready=False, backupjobrun_id=run).id for _ in range(2)])
    assert database.run(lambda s: tasks.release(s, run_id=run)) == 2
    (claimed,) = database.run(lambda s: tasks.claim(s, agent, BACKUP, 1, 30))
    assert database.run(lambda s: tasks.cancel(s, run_id=run)) == 1
    (other,) = {a, b} - {claimed.id}
    with database.reading() as session:
        assert tasks.get(session, other).state == TaskState.CANCELLED
        assert tasks.get(session, claimed.id).cancel_requested_at is not None
    assert database.run(lambda s: tasks.renew(s, claimed.id, 1, 30)).cancel_requested_at is not None


# -- from the run to the restore point, and out --------------------------------------------------------


def _committing(session: Session, job: BackupJob, epoch: int = 1, **more: object) -> BackupJobRun:
    run = make_run(session, job, **more)
    transition_all(session, BackupJobRun, RunState.READY, [BackupJobRun.id == run.id])
    transition(session, BackupJobRun, run.id, RunState.RUNNING)
    transition(session, BackupJobRun, run.id, RunState.COMMITTING, epoch=epoch - 1, new_epoch=True)
    return run


def test_a_run_becomes_a_restore_point_with_all_its_copies(database: Database) -> None:
    def work(session: Session) -> tuple[str, str, list[str]]:
        job, vault = make_job(session), make_vault(session)
        old = make_copy(session, make_run(session, job), vault)
        run = _committing(session, job)
        copies = [
            make_copy(session, run, vault, parent=old, available=False),
            make_copy(session, run, vault, available=False, resource="vdb"),
        ]
        return run.id, old.id, [copy.id for copy in copies]

    run, old, copies = database.run(work)
    with pytest.raises(EpochStale):
        database.run(lambda s: runs.publish(s, run, 0, commit_number=1))
    with database.reading() as session:
        assert {backups.get(session, id).state for id in copies} == {BackupState.CREATING}
    database.run(lambda s: runs.publish(s, run, 1, commit_number=1))
    with database.reading() as session:
        row = runs.get(session, PROJECT, run)
        assert (row.state, row.commit_number, row.bytes_stored) == (RunState.AVAILABLE, 1, 2000)
        assert [(backups.get(session, id).state, backups.get(session, id).top) for id in (old, *copies)] == [
            (BackupState.AVAILABLE, False), (BackupState.AVAILABLE, True), (BackupState.AVAILABLE, True),
        ]  # fmt: skip
        detail = runs.detail(session, row)
        (vm,) = detail.vms
        assert [disk.resource for disk in detail.resources[vm.id]] == ["vda", "vdb"]
        assert {detail.backups[disk.id].id for disk in detail.resources[vm.id]} == set(copies)
        assert [copy.id for copy in backups.chain(session, copies[0])] == [copies[0], old]
        assert usage(session, PROJECT).stored_bytes == 3000
    with pytest.raises(StateConflict):
        database.run(lambda s: runs.publish(s, run, 1, commit_number=1))


def test_a_commit_is_taken_over_when_its_owner_is_gone(database: Database) -> None:
    run = database.run(lambda s: _committing(s, make_job(s)).id)
    assert [r.id for r in database.run(lambda s: runs.abandoned(s, RunState.COMMITTING, 5))] == [run]
    epoch = database.run(lambda s: runs.own(s, run, "first", 30))
    database.run(lambda s: runs.keep(s, run, epoch, -1))
    second = database.run(lambda s: runs.own(s, run, "second", 30))
    assert second == epoch + 1
    with pytest.raises(EpochStale):
        database.run(lambda s: runs.keep(s, run, epoch, 30))
    with pytest.raises(EpochStale):
        database.run(lambda s: runs.publish(s, run, epoch, commit_number=1))
    assert database.run(lambda s: runs.abandoned(s, RunState.COMMITTING, 5)) == []


def test_bytes_of_a_run_are_those_of_its_disks(database: Database) -> None:
    def work(session: Session) -> str:
        run = make_run(session, make_job(session))
        for name in ("a", "b"):
            vm = BackupJobRunVm(backupjobrun_id=run.id, vm_id=name)
            session.add(vm)
            session.flush()
            session.add(BackupJobRunVmResource(backupjobrun_vm_id=vm.id, resource="vda", bytes_total=10, bytes_done=4))
        make_copy(session, make_run(session, make_job(session)), make_vault(session))
        runs.sum_progress(session, run.id)
        return run.id

    run = database.run(work)
    with database.reading() as session:
        row = runs.get(session, None, run)
        assert (row.bytes_total, row.bytes_done, row.bytes_sent) == (20, 8, 0)


def test_the_way_out_of_a_copy(database: Database) -> None:
    def chain(session: Session) -> tuple[str, str]:
        job, vault = make_job(session), make_vault(session)
        parent = make_copy(session, make_run(session, job), vault)
        return parent.id, make_copy(session, make_run(session, job), vault, parent=parent).id

    parent, child = database.run(chain)
    database.run(lambda s: backups.pin(s, PinHolder.RESTORE, "a restore", [parent, child]))
    database.run(lambda s: backups.pin(s, PinHolder.RESTORE, "a restore", [parent, child]))
    for id in (parent, child):
        database.run(lambda s, id=id: backups.trash(s, id))
    with pytest.raises(StillNeeded):  # pinned
        database.run(lambda s: backups.begin_deleting(s, child))
    with pytest.raises(StateConflict):
        database.run(lambda s: backups.pin(s, PinHolder.RESTORE, "another", [child]))
    assert database.run(lambda s: backups.unpin(s, "a restore")) == 2
    assert database.run(lambda s: backups.unpin(s, "a restore")) == 0
    with pytest.raises(StillNeeded):  # the child builds on it
        database.run(lambda s: backups.begin_deleting(s, parent))
    database.run(lambda s: backups.begin_deleting(s, child))
    database.run(lambda s: s.execute(VmResourceBackup.__table__.delete().where(VmResourceBackup.id == child)))
    database.run(lambda s: backups.begin_deleting(s, parent))


def test_a_pin_of_several_is_all_or_none(database: Database) -> None:
    def work(session: Session) -> list[str]:
        job, vault = make_job(session), make_vault(session)
        return [make_copy(session, make_run(session, job), vault).id for _ in range(3)]

    copies = database.run(work)
    database.run(lambda s: backups.trash(s, copies[1]))
    with pytest.raises(StateConflict):
        database.run(lambda s: backups.pin(s, PinHolder.RUN, "a run", copies))
    with database.reading() as session:
        assert backups.pinned_by(session, "a run") == []
        assert [backups.get(session, id).pin_count for id in copies] == [0, 0, 0]


def test_a_consolidation_swaps_the_map_it_found(database: Database) -> None:
    def work(session: Session) -> tuple[str, str]:
        job, vault = make_job(session), make_vault(session)
        parent = make_copy(session, make_run(session, job), vault)
        return parent.id, make_copy(session, make_run(session, job), vault, parent=parent).id

    parent, child = database.run(work)
    with database.reading() as session:
        old = str(backups.get(session, child).map_digest)
    swap = {"old": old, "new": "f" * 64, "map_size": 9, "backing_id": None}
    database.run(lambda s: backups.swap_map(s, child, **swap))
    with pytest.raises(StillNeeded, match="ffff"):
        database.run(lambda s: backups.swap_map(s, child, **swap))
    database.run(lambda s: (backups.trash(s, parent), backups.begin_deleting(s, parent)))
    with database.reading() as session:
        row = backups.get(session, child)
        assert (row.map_digest, row.other_map_digest, row.map_size) == ("f" * 64, old, 9)


def test_what_a_collection_may_take(database: Database) -> None:
    """Segments of a task that is over are garbage only when the run that they are for is over as well."""

    def work(session: Session) -> dict[str, str]:
        job, vault = make_job(session), make_vault(session)
        known = {"vault": vault.id}
        for name, task_state, run_state in (
            ("failed", TaskState.ERROR, RunState.ERROR),
            ("stored", TaskState.DONE, None),
            ("stuck", TaskState.NEEDS_ATTENTION, RunState.ERROR),
        ):
            run = _committing(session, job)
            task = make_task(session, backupjobrun_id=run.id, vault_id=vault.id)
            transition(session, Task, task.id, TaskState.CLAIMED)
            transition(session, Task, task.id, task_state)
            if run_state is not None:
                transition(session, BackupJobRun, run.id, run_state)
            known[name] = task.id
        for name in ("available", "trashed", "creating"):
            copy = make_copy(session, make_run(session, job), vault, available=name != "creating")
            known[name] = copy.id
        backups.trash(session, known["trashed"])
        return known

    known = database.run(work)
    with database.reading() as session:
        ground = backups.ground(session, known["vault"])
    assert {copy.id for copy in ground.alive} == {known["available"], known["trashed"]}
    assert ground.ended_tasks == {known["failed"]}
    assert ground.last_commit == 0


def test_a_run_that_is_removed_leaves_tombstones(database: Database) -> None:
    def work(session: Session) -> tuple[str, str, str, str]:
        job, vault = make_job(session), make_vault(session)
        run = _committing(session, job)
        copy = make_copy(session, run, vault, available=False)
        task = make_task(session, backupjobrun_id=run.id, vault_id=vault.id)
        groups.open_group(session, run.id, {"vm-1": task.id}, 60)
        transition(session, Task, task.id, TaskState.CLAIMED, new_epoch=True)
        runs.publish(session, run.id, 1, commit_number=1)
        transition(session, BackupJobRun, run.id, RunState.DELETING)
        return job.id, run.id, copy.id, task.id

    job, run, copy, task = database.run(work)
    with pytest.raises(StillNeeded, match="its copy"):
        database.run(lambda s: runs.remove(s, run, 1))
    database.run(lambda s: (backups.trash(s, copy), backups.begin_deleting(s, copy)))
    with pytest.raises(StillNeeded, match="its task"):
        database.run(lambda s: runs.remove(s, run, 1))
    database.run(lambda s: tasks.finish(s, task, 1, TaskState.DONE))
    with pytest.raises(EpochStale):
        database.run(lambda s: runs.remove(s, run, 0))
    with pytest.raises(StillNeeded):
        database.run(lambda s: jobs.remove(s, job))
    database.run(lambda s: runs.remove(s, run, 1))
    with database.reading() as session:
        assert [(t.task_id, t.epoch) for t in session.scalars(select(Tombstone))] == [(task, 1)]
        (vault,) = vaults.all_vaults(session)
        assert backups.ground(session, vault.id).ended_tasks == {task}
        assert session.scalars(select(BackupJobRunVm.id)).all() == []
    database.run(lambda s: transition(s, BackupJob, job, JobState.DELETING))
    database.run(lambda s: jobs.remove(s, job))
    assert database.run(lambda s: backups.forget(s, [task])) == 1


# -- slots, groups, restores, services ----------------------------------------------------------------


def test_slots_are_taken_together_and_given_back(database: Database) -> None:
    vm, host = slots.Slot("vm", "vm-1"), slots.Slot("host", "host-a", 2)
    assert database.run(lambda s: slots.reserve(s, "first", [vm, host])) is None
    assert database.run(lambda s: slots.reserve(s, "first", [vm, host])) is None  # again: no harm
    other = slots.Slot("vm", "vm-2")
    assert database.run(lambda s: slots.reserve(s, "second", [other, vm, host])) == vm
    assert database.run(lambda s: slots.holders(s, "vm", "vm-2")) == []
    assert database.run(lambda s: slots.reserve(s, "second", [other, host])) is None
    assert database.run(lambda s: slots.reserve(s, "third", [host])) == host
    assert database.run(slots.all_holders) == {"first", "second"}
    assert database.run(lambda s: slots.release(s, "first")) == 2
    assert database.run(lambda s: slots.reserve(s, "third", [vm, host])) is None


def _group(session: Session, seconds: float = 60) -> str:
    run = make_run(session, make_job(session))
    members = {vm: make_task(session, backupjobrun_id=run.id).id for vm in ("a", "b")}
    return groups.open_group(session, run.id, members, seconds).id


def test_a_group_freezes_only_when_all_have_joined(database: Database) -> None:
    group = database.run(_group)

    def report(vm: str, to: MemberState, epoch: int = 1) -> BarrierState:
        return database.run(lambda s: groups.report(s, group, vm, epoch, to, next_seconds=60))

    assert report("a", MemberState.JOINED) == BarrierState.GATHERING
    with pytest.raises(StateConflict):
        report("a", MemberState.FROZEN)  # not its turn
    assert report("a", MemberState.JOINED) == BarrierState.GATHERING  # repeated
    assert report("a", MemberState.JOINED, epoch=2) == BarrierState.GATHERING  # another claim steps in
    assert report("b", MemberState.JOINED) == BarrierState.FREEZING
    assert report("a", MemberState.FROZEN, epoch=2) == BarrierState.FREEZING
    with pytest.raises(EpochStale):
        report("b", MemberState.FROZEN, epoch=7)  # not the claim that joined
    assert report("b", MemberState.FROZEN) == BarrierState.SNAPSHOTTING
    assert report("a", MemberState.CAPTURED, epoch=2) == BarrierState.SNAPSHOTTING
    assert report("b", MemberState.CAPTURED) == BarrierState.DONE
    assert database.run(lambda s: groups.thawed(s, group, "a", 2))
    assert not database.run(lambda s: groups.fail(s, group, {"code": "late"}))


def test_a_group_that_failed_or_is_late_goes_no_further(database: Database) -> None:
    group = database.run(_group)
    database.run(lambda s: groups.report(s, group, "a", 1, MemberState.JOINED, next_seconds=60))
    assert database.run(lambda s: groups.fail(s, group, {"code": "quiesce_failed"}, "a"))
    with pytest.raises(StateConflict):
        database.run(lambda s: groups.report(s, group, "b", 1, MemberState.JOINED, next_seconds=60))
    with database.reading() as session:
        assert groups.get(session, group).error == {"code": "quiesce_failed"}
        assert [m.state for m in groups.members(session, group)] == [MemberState.FAILED, MemberState.WAITING]
    late = database.run(lambda s: _group(s, seconds=-1))
    with pytest.raises(StateConflict):
        database.run(lambda s: groups.report(s, late, "a", 1, MemberState.JOINED, next_seconds=60))
    assert [g.id for g in database.run(lambda s: groups.overdue(s, 5))] == [late]


def test_a_restore_is_fenced_and_says_what_it_makes(database: Database) -> None:
    def work(session: Session) -> str:
        run = make_run(session, make_job(session))
        return restores.create(session, run, target={"kind": "domain"}, user_id="u").id

    id = database.run(work)
    database.run(lambda s: transition(s, restores.Restore, id, RestoreState.RUNNING, epoch=0, new_epoch=True))
    database.run(lambda s: restores.record_made(s, id, 1, {"volume": "v1"}))
    database.run(lambda s: restores.record_made(s, id, 1, {"volume": "v2"}))
    database.run(lambda s: restores.progress(s, id, 1, done=5, total=10))
    with pytest.raises(EpochStale):
        database.run(lambda s: restores.progress(s, id, 0, done=9, total=10))
    with database.reading() as session:
        row = restores.get(session, PROJECT, id)
        assert (row.made, row.bytes_done, row.bytes_total) == ([{"volume": "v1"}, {"volume": "v2"}], 5, 10)
        assert [r.id for r in restores.in_state(session, [RestoreState.RUNNING], 5)] == [id]
        with pytest.raises(RowNotFound):
            restores.get(session, "another", id)


def test_a_service_keeps_its_id_over_restarts(database: Database) -> None:
    first = database.run(lambda s: make_agent(s, capabilities={"engines": ["pull"]}))
    database.run(lambda s: transition(s, Service, first.id, ServiceState.DISABLED, state_reason="disk"))
    second = database.run(lambda s: make_agent(s, instance="again"))
    assert (second.id, second.state, second.state_reason) == (first.id, ServiceState.DISABLED, "disk")
    with pytest.raises(StillNeeded, match="started again as again"):
        database.run(lambda s: services.heartbeat(s, first.id, first.instance, load=3))
    beat = database.run(lambda s: services.heartbeat(s, first.id, "again", load=3))
    assert (beat.load, beat.state) == (3, ServiceState.DISABLED)
    assert [s.id for s in database.run(lambda s: services.alive(s, ServiceKind.AGENT, 30))] == [first.id]
    assert database.run(lambda s: services.alive(s, ServiceKind.AGENT, -1)) == []
    with pytest.raises(StillNeeded):
        database.run(lambda s: services.remove(s, first.id, 3600))


def test_vms_are_where_they_run(database: Database) -> None:
    a, b = database.run(lambda s: (make_agent(s, "host-a").id, make_agent(s, "host-b").id))
    web = services.Sight("web", "web", "running", PROJECT, disks=({"name": "vda"},))
    off = services.Sight("web", "web", "shut off", PROJECT)
    database.run(lambda s: services.see(s, a, [web, services.Sight("db", "db", "running", "another")]))
    database.run(lambda s: services.see(s, b, [off]))
    with database.reading() as session:
        assert [service.host for service, _vm in services.agents_of(session, "web")] == ["host-a", "host-b"]
        assert services.vm(session, PROJECT, "web").disks == [{"name": "vda"}]
        with pytest.raises(RowNotFound):
            services.vm(session, PROJECT, "db")
        assert {vm.vm_id for vm in services.vms(session, PROJECT, Wanted()).rows} == {"web"}
    # it moved, and what an agent no longer names is gone
    database.run(lambda s: services.see(s, b, [web]))
    database.run(lambda s: services.see(s, a, []))
    with database.reading() as session:
        assert [service.host for service, _vm in services.agents_of(session, "web")] == ["host-b"]
        assert services.agents_of(session, "db") == []


def test_vault_services_and_the_projects_part_of_them(database: Database) -> None:
    first = database.run(lambda s: make_vault(s, made=False))
    assert database.run(lambda s: make_vault(s, made=False)).id == first.id
    assert database.run(lambda s: make_vault(s, "another")).id != first.id
    database.run(lambda s: vaults.declare(s, "main", kind="directory", url="file:///moved", is_default=True))
    database.run(lambda s: vaults.declare(s, "a private one", kind="swift", url="swift://", project_id="another"))
    with database.reading() as session:
        assert [s.url for s in vaults.services(session, PROJECT)] == ["file:///moved"]
        assert [s.name for s in vaults.services(session, "another")] == ["main", "a private one"]
    database.run(lambda s: vaults.established(s, first.id, "uuid-1"))
    with pytest.raises(ChangedMeanwhile):
        database.run(lambda s: vaults.established(s, first.id, "uuid-2"))
    assert database.run(lambda s: vaults.take_number(s, first.id, 0)) == 1
    assert database.run(lambda s: vaults.collect(s, first.id, "one", 60))
    assert not database.run(lambda s: vaults.collect(s, first.id, "two", 60))
    database.run(lambda s: vaults.collected(s, first.id, "one"))
    assert database.run(lambda s: vaults.collect(s, first.id, "two", 60))


def test_a_repeated_post_is_answered_as_the_first(database: Database) -> None:
    answer = {"status": 202, "headers": {"Location": "/x"}, "body": {"id": "x"}}

    def post(session: Session) -> str:
        assert idempotency.begin(session, PROJECT, "key", "f1") is None
        job = make_job(session)
        idempotency.finish(session, PROJECT, "key", **answer)
        return job.id

    database.run(post)
    again = database.run(lambda s: idempotency.begin(s, PROJECT, "key", "f1"))
    assert again is not None
    assert (again.status, again.headers, again.body) == tuple(answer.values())
    with pytest.raises(KeyReused):
        database.run(lambda s: idempotency.begin(s, PROJECT, "key", "f2"))
    assert database.run(lambda s: idempotency.begin(s, "another", "key", "f2")) is None
    with pytest.raises(RequestUnderWay):
        database.run(lambda s: idempotency.begin(s, "another", "key", "f2"))
    assert database.run(lambda s: idempotency.forget(s, 3600)) == 0
    assert database.run(lambda s: idempotency.forget(s, -1)) == 2


def test_limits_of_a_project(database: Database) -> None:
    database.run(lambda s: set_limit(s, PROJECT, "jobs", 5))
    database.run(lambda s: set_limit(s, PROJECT, "jobs", 7))
    database.run(lambda s: set_limit(s, "another", "jobs", 1))
    with database.reading() as session:
        assert limits(session, PROJECT) == {"jobs": 7}


def test_rows_can_be_read_after_their_session(database: Database) -> None:
    """Whatever was changed behind them within it."""

    def work(session: Session) -> tuple[BackupJobRun, Task]:
        run, task = make_run(session, make_job(session)), make_task(session)
        transition(session, BackupJobRun, run.id, RunState.READY)
        runs.change(session, run.id, 1, description="mine", protected=True)
        transition_all(session, Task, TaskState.CLAIMED, [Task.id == task.id])
        return run, task

    run, task = database.run(work)
    assert (run.state, run.description, run.protected, run.version) == (RunState.READY, "mine", True, 2)
    assert (run.trigger, run.kind, task.state) == (Trigger.REQUEST, BackupKind.FULL, TaskState.CLAIMED)
