"""What must happen once happens once, whoever else is there: real connections, all at the same moment."""

from __future__ import annotations

import threading
import time
from functools import partial

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from raksha.db import backups, groups, jobs, runs, slots, tasks, vaults
from raksha.db.models import BackupJob, BackupJobRun, Pin, Reservation, Task, VmResourceBackup
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import ChangedMeanwhile, EpochStale, StateConflict, StillNeeded
from raksha.states import (
    BackupKind,
    BackupState,
    BarrierState,
    MemberState,
    PinHolder,
    RunState,
    TaskKind,
    TaskState,
)
from tests.bed.databases import make_agent, make_copy, make_job, make_run, make_task, make_vault, race

ROUNDS = 10


def test_one_task_is_claimed_by_one_agent(database: Database) -> None:
    agents = database.run(lambda s: [make_agent(s, f"host-{n}").id for n in range(6)])
    for _round in range(ROUNDS):
        task = database.run(lambda s: make_task(s).id)
        claims = [partial(_claim, agent) for agent in agents]
        won = [result for result in race(database, *claims) if result]
        assert len(won) == 1, won
        with database.reading() as session:
            row = tasks.get(session, task)
            assert (row.state, row.epoch, row.attempts) == (TaskState.CLAIMED, 1, 1)
            assert row.service_id == won[0][0].service_id


def test_many_agents_claim_each_task_once(database: Database) -> None:
    agents = database.run(lambda s: [make_agent(s, f"host-{n}").id for n in range(5)])
    wanted = database.run(lambda s: {make_task(s).id for _ in range(40)})
    got: list[str] = []

    def work(agent: str) -> None:
        while claimed := database.run(partial(_claim, agent)):
            got.extend(task.id for task in claimed)

    threads = [threading.Thread(target=work, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    # an agent that came late to all candidates of a look gave up early: what is left is for the next look
    while claimed := database.run(partial(_claim, agents[0])):
        got.extend(task.id for task in claimed)
    assert sorted(got) == sorted(wanted)


def test_a_task_whose_lease_is_over_is_claimed_again_once(database: Database) -> None:
    agent = database.run(lambda s: make_agent(s, "host-a").id)
    database.run(lambda s: make_task(s, host="host-a").id)
    (first,) = database.run(lambda s: tasks.claim(s, agent, [TaskKind.BACKUP], 1, seconds=-1))
    # the same agent twice, as after a restart, and the scheduler that gives it up
    results = race(
        database,
        partial(_claim, agent),
        partial(_claim, agent),
        lambda s: tasks.give_up(s, tasks.get(s, first.id), TaskState.ERROR, {"code": "lost"}),
    )
    with database.reading() as session:
        row = tasks.get(session, first.id)
    claimed = [result for result in results[:2] if isinstance(result, list) and result]
    assert row.epoch == 2
    if row.state == TaskState.CLAIMED:
        assert len(claimed) == 1
        assert isinstance(results[2], StillNeeded | EpochStale)
    else:
        assert (claimed, results[2]) == ([], None)


def test_an_end_that_is_said_to_two_schedulers_at_once_is_taken_once_and_refused_by_none(database: Database) -> None:
    agent = database.run(lambda s: make_agent(s).id)
    for _ in range(5):
        task = database.run(lambda s: make_task(s, host="host-a").id)
        (claimed,) = database.run(partial(_claim, agent))

        def end(session: Session, task: str = task, epoch: int = claimed.epoch) -> bool:
            before = tasks.get(session, task)
            time.sleep(0.1)  # both have read by now, where two can write at once
            return tasks.finish(session, before.id, epoch, TaskState.DONE)

        assert sorted(race(database, end, end)) == [False, True]


def test_a_fire_time_makes_one_run(database: Database) -> None:
    for number in range(ROUNDS):
        job = database.run(lambda s, n=number: make_job(s, f"job {n}", next_run_at=1000 + n))
        fires = [partial(runs.fire, job=job, kind=BackupKind.FULL, next_run_at=2000 + number)] * 4
        results = race(database, *fires)
        assert sorted(type(result).__name__ for result in results) == ["BackupJobRun", *["NoneType"] * 3]
        with database.reading() as session:
            mine = BackupJobRun.backupjob_id == job.id
            assert session.scalar(select(func.count()).select_from(BackupJobRun).where(mine)) == 1
            assert jobs.get(session, None, job.id).next_run_at == 2000 + number


def test_a_fire_time_that_comes_again_is_refused_by_the_constraint(database: Database) -> None:
    job = database.run(lambda s: make_job(s, next_run_at=1000))
    first = database.run(lambda s: runs.fire(s, job, kind=BackupKind.FULL, next_run_at=2000))
    assert first is not None
    assert first.scheduled_at == 1000
    # a clock that was set back
    database.run(lambda s: s.execute(update(BackupJob).values(next_run_at=1000)))
    again = database.run(lambda s: runs.fire(s, jobs.due(s, 10)[0], kind=BackupKind.FULL, next_run_at=2000))
    assert again is None
    with database.reading() as session:
        # and the schedule goes on all the same
        assert jobs.get(session, None, job.id).next_run_at == 2000
        assert session.scalars(select(BackupJobRun.id)).all() == [first.id]


def test_a_failed_run_is_retried_once(database: Database) -> None:
    def failed(session: Session) -> BackupJobRun:
        run = make_run(session, make_job(session))
        transition(session, BackupJobRun, run.id, RunState.ERROR)
        return run

    run = database.run(failed)
    results = race(database, *[partial(runs.retry, failed=run, delay=5)] * 4)
    assert sorted(type(result).__name__ for result in results) == ["BackupJobRun", *["NoneType"] * 3]
    (new,) = [result for result in results if result is not None]
    assert (new.retry_of, new.attempt, new.state) == (run.id, 2, RunState.QUEUED)
    with database.reading() as session:
        assert runs.queued(session, 10) == []  # not before its delay is over


def test_of_two_moves_one_is_made_and_the_other_told(database: Database) -> None:
    for _round in range(ROUNDS):
        run = database.run(lambda s: make_run(s, make_job(s)).id)
        results = race(
            database,
            lambda s, run=run: transition(s, BackupJobRun, run, RunState.READY),
            lambda s, run=run: transition(s, BackupJobRun, run, RunState.CANCELLED),
        )
        (refused,) = [result for result in results if result is not None]
        assert isinstance(refused, StateConflict)
        with database.reading() as session:
            state = runs.get(session, None, run).state
        assert refused.fields["found"] == state
        assert state == (RunState.READY if results[0] is None else RunState.CANCELLED)


def test_a_move_waits_for_the_one_before_and_sees_what_it_left(database: Database) -> None:
    """Not a race: the first is not committed when the second comes, on every database."""
    run = database.run(lambda s: make_run(s, make_job(s)).id)
    second: list[object] = []

    def other() -> None:
        try:
            second.append(database.run(lambda s: transition(s, BackupJobRun, run, RunState.CANCELLED)))
        except StateConflict as error:
            second.append(error.fields["found"])

    thread = threading.Thread(target=other)

    def first(session: Session) -> None:
        transition(session, BackupJobRun, run, RunState.READY)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "it did not wait"

    database.run(first)
    thread.join(60)
    assert second == ["ready"]


def test_pin_or_delete(database: Database) -> None:
    outcomes = set()
    for _round in range(ROUNDS):
        copy = database.run(_trashable_copy)
        pinned, deleted = race(
            database,
            lambda s, id=copy: backups.pin(s, PinHolder.RESTORE, f"restore of {id}"[:36], [id]),
            lambda s, id=copy: (backups.trash(s, id), backups.begin_deleting(s, id)),
        )
        with database.reading() as session:
            row = backups.get(session, copy)
            pins = session.scalar(select(func.count()).select_from(Pin).where(Pin.vm_resource_backup_id == copy))
        assert row.pin_count == pins
        if pinned is None:
            assert isinstance(deleted, StillNeeded), deleted
            assert (row.state, pins) == (BackupState.AVAILABLE, 1)
        else:
            assert isinstance(pinned, StateConflict), pinned
            assert (row.state, pins) == (BackupState.DELETING, 0)
        outcomes.add(row.state)
    assert outcomes <= {BackupState.AVAILABLE, BackupState.DELETING}


def test_pins_of_many_are_counted_right(database: Database) -> None:
    copies = database.run(lambda s: [_trashable_copy(s, f"job {n}") for n in range(3)])
    holders = [f"holder {n}" for n in range(6)]
    pin = partial(backups.pin, kind=PinHolder.RUN, backup_ids=copies)
    results = race(database, *[partial(pin, holder_id=holder) for holder in holders])
    assert results == [None] * 6
    # one of them twice at once
    results = race(database, *[partial(backups.unpin, holder_id=h) for h in [*holders[:4], holders[0]]])
    assert sum(results) == 12, results
    with database.reading() as session:
        assert set(session.scalars(select(VmResourceBackup.pin_count))) == {2}


def test_slots_never_exceed_their_limit(database: Database) -> None:
    shared = [slots.Slot("host", "host-a", 3), slots.Slot("project", "p", 5)]
    want = [[slots.Slot("vm", f"vm {n}"), *shared] for n in range(8)]
    results = race(database, *[partial(slots.reserve, holder_id=f"run {n}", wanted=w) for n, w in enumerate(want)])
    with database.reading() as session:
        rows = session.scalars(select(Reservation)).all()
        hosts = slots.holders(session, "host", "host-a")
    winners = {f"run {n}" for n, result in enumerate(results) if result is None}
    assert all(result is None or isinstance(result, slots.Slot) for result in results), results
    assert 1 <= len(winners) <= 3
    assert set(hosts) == winners
    # all or nothing
    assert sorted(row.holder_id for row in rows) == sorted([*winners] * 3)


def test_one_vm_is_in_one_run(database: Database) -> None:
    # two groups that name the same VMs in the opposite order: neither waits for the other
    for number in range(ROUNDS):
        a, b = slots.Slot("vm", f"a {number}"), slots.Slot("vm", f"b {number}")
        results = race(
            database,
            lambda s, n=number, w=(a, b): slots.reserve(s, f"first {n}", w),
            lambda s, n=number, w=(b, a): slots.reserve(s, f"second {n}", w),
        )
        assert sorted(result is None for result in results) == [False, True], results


def test_a_number_of_a_commit_is_given_once(database: Database) -> None:
    vault = database.run(lambda s: make_vault(s).id)
    results = race(database, *[partial(vaults.take_number, id=vault, seen=0)] * 4)
    assert sorted(str(result) for result in results if isinstance(result, int)) == ["1"]
    assert sum(isinstance(result, ChangedMeanwhile) for result in results) == 3


def test_a_run_is_owned_by_one(database: Database) -> None:
    run = database.run(lambda s: make_run(s, make_job(s)).id)
    results = race(database, *[partial(runs.own, id=run, owner_id=f"scheduler {n}", seconds=30) for n in range(4)])
    assert [result for result in results if isinstance(result, int)] == [1]
    assert sum(isinstance(result, StillNeeded) for result in results) == 3


def test_two_last_members_move_the_group_on(database: Database) -> None:
    """Both report at once: one of them must see that both have, or the group stands still until its deadline."""
    for number in range(ROUNDS):

        def gather(session: Session, number: int = number) -> str:
            run = make_run(session, make_job(session, f"job {number}"))
            members = {vm: make_task(session, backupjobrun_id=run.id).id for vm in ("a", "b")}
            return groups.open_group(session, run.id, members, 60).id

        group = database.run(gather)
        for to, then in (
            (MemberState.JOINED, BarrierState.FREEZING),
            (MemberState.FROZEN, BarrierState.SNAPSHOTTING),
            (MemberState.CAPTURED, BarrierState.DONE),
        ):
            report = partial(groups.report, id=group, epoch=1, to=to, next_seconds=60)
            results = race(database, partial(report, vm_id="a"), partial(report, vm_id="b"))
            assert then in results, results
            with database.reading() as session:
                assert groups.get(session, group).state == then


def test_a_deadlock_is_done_again(database: Database) -> None:
    """Two transactions that lock the same rows in the opposite order: the server ends one, `run` does it again."""
    ids = database.run(lambda s: [make_task(s).id for _ in range(2)])
    both_have_one = threading.Barrier(2)
    attempts: list[int] = []

    def cross(session: Session, first: str, second: str) -> None:
        attempts.append(1)
        session.execute(update(Task).where(Task.id == first).values(priority=Task.priority + 1))
        if len(attempts) <= 2 and database.engine.dialect.name != "sqlite":
            both_have_one.wait(30)
        session.execute(update(Task).where(Task.id == second).values(priority=Task.priority + 1))

    a, b = ids
    results = race(database, partial(cross, first=a, second=b), partial(cross, first=b, second=a))
    assert results == [None, None]
    assert len(attempts) == (2 if database.engine.dialect.name == "sqlite" else 3)
    with database.reading() as session:
        assert session.scalars(select(Task.priority)).all() == [2, 2]


def test_an_update_counts_rows_that_it_met(database: Database) -> None:
    """Also where it changes nothing: the swap relies on it."""
    task = database.run(lambda s: make_task(s).id)
    for _twice in range(2):
        result = database.run(lambda s: s.execute(update(Task).where(Task.id == task).values(priority=7)).rowcount)
        assert result == 1


def test_reading_sees_one_moment(database: Database) -> None:
    database.run(lambda s: make_job(s, "first"))
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(BackupJob)) == 1
        database.run(lambda s: make_job(s, "second"))
        assert session.scalar(select(func.count()).select_from(BackupJob)) == 1
        assert session.scalar(text("SELECT count(*) FROM backupjob_vms")) == 1
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(BackupJob)) == 2


def _claim(agent: str, session: Session) -> list[Task]:
    return tasks.claim(session, agent, [TaskKind.BACKUP], 1, seconds=30)


def _trashable_copy(session: Session, name: str = "nightly") -> str:
    return make_copy(session, make_run(session, make_job(session, name)), make_vault(session)).id
