"""Rows for the scheduler: jobs that are due, agents that see VMs. All times are relative to the database's clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import rows, schedules, services, tasks
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobRun, Reservation, Service, Task
from raksha.db.session import Database
from raksha.schedule import Schedule
from raksha.states import TaskKind, TaskState
from tests.bed.databases import PROJECT, make_agent, make_job

#: nothing waits for the sake of others: the next look comes at once
SETTINGS = SchedulerSettings(name="scheduler-1", interval=0, retry_delay=0)
HOUR = 3600


def job_due(session: Session, name: str = "nightly", *, late: int = 10, every: int = HOUR, **more: Any) -> BackupJob:
    """A job whose fire time was `late` seconds ago, and comes each `every` seconds."""
    now = rows.clock(session) // SECOND
    schedule = more.pop("schedule", None) or Schedule(every=every, anchor=now - late)
    job = make_job(session, name, **more)
    values = {**schedules.columns(schedule, job.id, now - late - 1), "fired_upto": (now - late - 1) * SECOND}
    session.execute(update(BackupJob).where(BackupJob.id == job.id).values(**values))
    session.refresh(job)
    return job


def agent_with(
    session: Session, host: str, vms: Iterable[str], project_id: str | None = PROJECT, **more: Any
) -> Service:
    agent = make_agent(session, host, **more)
    services.see(session, agent.id, [services.Sight(vm, f"name of {vm}", "running", project_id) for vm in vms])
    return agent


def silent(session: Session, agent: Service, seconds: float) -> None:
    """The last heartbeat of an agent was so long ago."""
    heard = rows.clock(session) - round(seconds * SECOND)
    session.execute(update(Service).where(Service.id == agent.id).values(heartbeat_at=heard))


def aged(session: Session, noun: Any, id: str, seconds: float) -> None:
    """A run or task was made so many seconds earlier than it was."""
    session.execute(update(noun).where(noun.id == id).values(created_at=noun.created_at - round(seconds * SECOND)))


def runs_of(database: Database, job_id: str | None = None) -> list[BackupJobRun]:
    with database.reading() as session:
        mine = () if job_id is None else (BackupJobRun.backupjob_id == job_id,)
        order = BackupJobRun.created_at, BackupJobRun.attempt, BackupJobRun.id
        return list(session.scalars(select(BackupJobRun).where(*mine).order_by(*order)))


def run_of(database: Database, job_id: str) -> BackupJobRun:
    (run,) = runs_of(database, job_id)
    return run


def job_of(database: Database, id: str) -> BackupJob:
    with database.reading() as session:
        return session.get_one(BackupJob, id)


def tasks_of(database: Database, run_id: str) -> list[Task]:
    with database.reading() as session:
        return sorted(tasks.of_run(session, run_id), key=lambda task: task.vm_id or "")


def held(database: Database) -> dict[tuple[str, str], list[str]]:
    """Holders of slots, by kind and name."""
    found: dict[tuple[str, str], list[str]] = {}
    with database.reading() as session:
        for slot in session.scalars(select(Reservation).order_by(Reservation.kind, Reservation.name, Reservation.slot)):
            found.setdefault((slot.kind, slot.name), []).append(slot.holder_id)
    return found


def claim(database: Database, agent: Service, seconds: float = 60, limit: int = 10) -> list[Task]:
    kinds = (TaskKind.BACKUP, TaskKind.FINISH, TaskKind.VERIFY, TaskKind.RESTORE)
    return database.run(lambda s: tasks.claim(s, agent.id, kinds, limit, seconds))


def finish_all(database: Database, agent: Service) -> None:
    """Its agent has heard what became of runs."""
    for task in claim(database, agent):
        assert task.kind == TaskKind.FINISH
        finish(database, task)


def finish(database: Database, task: Task, to: TaskState = TaskState.DONE, error: Any = None) -> None:
    database.run(lambda s: tasks.finish(s, task.id, task.epoch, to, error=error))
