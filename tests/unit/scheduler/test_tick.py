"""Due jobs become runs, or say why not."""

from __future__ import annotations

from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.orm import Session

from raksha.db import rows, schedules
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobRun
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.schedule import CatchUp, Schedule, Window
from raksha.scheduler.tick import BATCH, tick
from raksha.states import BackupKind, JobState, RunState, Trigger
from tests.bed.databases import make_job, make_run
from tests.bed.scheduling import HOUR, job_due, job_of, run_of, runs_of


def ended(database: Database, run: BackupJobRun, to: RunState = RunState.AVAILABLE) -> None:
    """A run that came to its end."""
    path = [RunState.READY, RunState.RUNNING, RunState.COMMITTING] if to == RunState.AVAILABLE else []
    for state in (*path, to):
        database.run(lambda s, state=state: transition(s, BackupJobRun, run.id, state))


def due_again(database: Database, job_id: str, late: int = 5) -> int:
    """As if an interval had gone by: the schedule moves, not the clock. The new fire time."""

    def work(session: Session) -> int:
        now = rows.clock(session) // SECOND
        job = session.get_one(BackupJob, job_id)
        job.schedule = {**job.schedule, "anchor": now - late}
        job.next_run_at, job.fired_upto = (now - late) * SECOND, (now - late - 1) * SECOND
        return int(job.next_run_at)

    return database.run(work)


def test_a_job_that_is_due_becomes_one_run_and_its_next_time_is_set(sqlite: Database) -> None:
    job = sqlite.run(lambda s: job_due(s, late=10))
    done = tick(sqlite)
    assert (done.seen, done.fired, done.passed) == (1, 1, 0)
    run = run_of(sqlite, job.id)
    assert (run.state, run.trigger, run.kind) == (RunState.QUEUED, Trigger.SCHEDULE, BackupKind.FULL)
    assert run.scheduled_at == job.next_run_at
    assert job_of(sqlite, job.id).next_run_at == job.next_run_at + HOUR * SECOND
    assert job_of(sqlite, job.id).missed_runs == 0
    assert tick(sqlite).seen == 0
    assert len(runs_of(sqlite)) == 1


def test_what_is_not_due_paused_or_by_hand_is_left_alone(sqlite: Database) -> None:
    def work(session: Session) -> None:
        job_due(session, "later", late=-30)
        make_job(session, "by hand")
        paused = job_due(session, "paused")
        transition(session, BackupJob, paused.id, JobState.PAUSED)

    sqlite.run(work)
    assert tick(sqlite).seen == 0
    assert runs_of(sqlite) == []


def test_more_than_a_batch_is_fired_in_one_round(sqlite: Database) -> None:
    count = 2 * BATCH + 7
    sqlite.run(lambda s: [job_due(s, f"job {n}") for n in range(count)])
    assert tick(sqlite).fired == count
    assert len({run.backupjob_id for run in runs_of(sqlite)}) == count


def test_after_a_downtime_the_latest_runs_once_and_the_others_are_counted(sqlite: Database) -> None:
    job = sqlite.run(lambda s: job_due(s, late=3 * HOUR + 60))
    assert tick(sqlite).fired == 1
    assert len(runs_of(sqlite)) == 1
    after = job_of(sqlite, job.id)
    assert after.missed_runs == 3
    assert after.last_missed_reason["code"] == "downtime"
    assert after.last_missed_at is not None
    assert after.next_run_at == job.next_run_at + 4 * HOUR * SECOND


def test_skip_runs_nothing_and_goes_on_with_the_next_time(sqlite: Database) -> None:
    schedule = Schedule(every=HOUR, anchor=0, catch_up=CatchUp.SKIP)

    def work(session: Session) -> BackupJob:
        now = rows.clock(session) // SECOND
        moved = replace(schedule, anchor=now - 2 * HOUR - 600)
        return job_due(session, late=2 * HOUR + 600, schedule=moved)

    job = sqlite.run(work)
    done = tick(sqlite)
    assert (done.fired, done.passed) == (0, 1)
    after = job_of(sqlite, job.id)
    assert (after.missed_runs, after.last_missed_reason["code"]) == (3, "downtime")
    assert after.next_run_at == job.next_run_at + 3 * HOUR * SECOND


def test_a_late_run_waits_for_its_window_and_what_was_missed_is_counted_then(sqlite: Database) -> None:
    def work(session: Session) -> BackupJob:
        now = rows.clock(session) // SECOND
        # the window closed two hours ago, its last fire was missed
        minute = (now // 60 - 180) % 1440
        window = Window(minute, (minute + 60) % 1440)
        schedule = Schedule(every=1800, anchor=(now // 60 - 180) * 60, window=window)
        return job_due(session, late=now - schedule.anchor, schedule=schedule)

    job = sqlite.run(work)
    done = tick(sqlite)
    assert (done.seen, done.fired, done.passed) == (1, 0, 0)
    after = job_of(sqlite, job.id)
    # a day after the window opened last; nothing is forgotten until then
    assert after.next_run_at == job.next_run_at + 24 * HOUR * SECOND
    assert after.fired_upto == job.fired_upto
    assert after.missed_runs == 0
    # the time has come: the row is as it will be, the window is opened around now
    sqlite.run(lambda s: s.execute(text("UPDATE backupjobs SET next_run_at = 1")))

    def opened(session: Session) -> None:
        row = session.get_one(BackupJob, job.id)
        row.schedule = {key: value for key, value in row.schedule.items() if key != "window"}

    sqlite.run(opened)
    assert tick(sqlite).fired == 1
    assert job_of(sqlite, job.id).missed_runs == 6


def test_a_run_is_let_pass_while_the_last_one_is_under_way(sqlite: Database) -> None:
    job = sqlite.run(lambda s: job_due(s))
    running = sqlite.run(lambda s: make_run(s, job))
    done = tick(sqlite)
    assert (done.fired, done.passed) == (0, 1)
    after = job_of(sqlite, job.id)
    assert after.missed_runs == 1
    assert after.last_missed_reason["code"] == "previous_run_under_way"
    assert after.last_missed_reason["backupjobrun_id"] == running.id
    assert after.next_run_at == job.next_run_at + HOUR * SECOND
    ended(sqlite, running)
    due_again(sqlite, job.id)
    assert tick(sqlite).fired == 1


def test_a_full_run_that_was_let_pass_is_owed(sqlite: Database) -> None:
    job = sqlite.run(lambda s: job_due(s, runs_since_full=1))
    first = sqlite.run(lambda s: make_run(s, job, kind=BackupKind.FULL))
    # every minute is one of the full schedule
    sqlite.run(lambda s: setattr(s.get_one(BackupJob, job.id), "full_schedule", {"cron": "* * * * *"}))
    due_again(sqlite, job.id, late=70)
    tick(sqlite)
    assert job_of(sqlite, job.id).next_full_at is not None
    ended(sqlite, first)
    sqlite.run(lambda s: setattr(s.get_one(BackupJob, job.id), "full_schedule", None))
    due_again(sqlite, job.id)
    assert tick(sqlite).fired == 1
    assert runs_of(sqlite)[-1].kind == BackupKind.FULL
    assert job_of(sqlite, job.id).next_full_at is None


def test_full_every_third_run(sqlite: Database) -> None:
    def work(session: Session) -> BackupJob:
        now = rows.clock(session) // SECOND
        return job_due(session, late=60, schedule=Schedule(every=HOUR, anchor=now - 60, full_every=3))

    job = sqlite.run(work)
    for number in range(7):
        if number:
            due_again(sqlite, job.id, late=40 - number)
        assert tick(sqlite).fired == 1
        (open_run,) = [run for run in runs_of(sqlite) if run.state == RunState.QUEUED]
        ended(sqlite, open_run)
    kinds = "".join(run.kind.value[0] for run in sorted(runs_of(sqlite), key=lambda run: run.scheduled_at or 0))
    assert kinds == "fiifiif"


def test_a_job_whose_full_run_failed_begins_with_a_full_one_again(sqlite: Database) -> None:
    job = sqlite.run(lambda s: job_due(s))
    tick(sqlite)
    ended(sqlite, run_of(sqlite, job.id), RunState.ERROR)
    due_again(sqlite, job.id)
    tick(sqlite)
    assert [run.kind for run in runs_of(sqlite)] == [BackupKind.FULL] * 2


def test_a_job_that_cannot_be_read_is_suspended_and_the_others_fire(sqlite: Database) -> None:
    broken = sqlite.run(lambda s: job_due(s, "broken", late=20))
    zone = {"cron": "* * * * *", "zone": "Mars/Olympus"}
    sqlite.run(lambda s: setattr(s.get_one(BackupJob, broken.id), "schedule", zone))
    alien = sqlite.run(lambda s: job_due(s, "alien", late=20))
    sqlite.run(lambda s: setattr(s.get_one(BackupJob, alien.id), "schedule", {"every": "often"}))
    good = sqlite.run(lambda s: job_due(s, "good"))
    assert tick(sqlite).fired == 1
    assert run_of(sqlite, good.id).state == RunState.QUEUED
    assert job_of(sqlite, broken.id).state == JobState.SUSPENDED
    assert job_of(sqlite, broken.id).state_reason["code"] == "zone_unknown"
    assert job_of(sqlite, alien.id).state_reason["code"] == "schedule_invalid"


def test_columns_of_a_schedule_are_read_as_they_were_written(sqlite: Database) -> None:
    schedule = Schedule(
        cron="30 22 * * 1-5", zone="Europe/Paris", start=1_700_000_000, jitter=600, window=Window.parse("22:00-06:00"),
        full_cron="0 1 * * 0", full_every=9, catch_up=CatchUp.SKIP,
    )  # fmt: skip

    def work(session: Session) -> Schedule | None:
        job = make_job(session)
        for name, value in schedules.columns(schedule, job.id, 1_700_000_000).items():
            setattr(job, name, value)
        session.flush()
        session.expire(job)
        assert schedules.of(job) == replace(schedule, seed=job.id)
        for name, value in schedules.columns(None, job.id, 0).items():
            setattr(job, name, value)
        return schedules.of(job)

    assert sqlite.run(work) is None
