"""Looks after those who no longer do.

    a lease that is over    work of any agent: back to the queue under a new epoch, a few times, then failed
                            or cancelled, where somebody has asked for that; failed when nobody is there who can
                            work of a host: its agent claims it again; failed when the host stays away too long
    a run nobody claims     back to the queue with all its tasks: its VMs may be elsewhere by now
    a group that is late    failed: all its members thaw (advance decides what becomes of the run)
    slots of what is over   free
    a drained service       is called so

A task of a host never goes to another: what it captured is there. A late report of an old epoch is refused by the
database. Each change is made only if what was found still holds, so an agent that comes back in time wins.
"""

from __future__ import annotations

import logging
from functools import partial

from msgspec import Struct
from sqlalchemy import delete, exists, func, literal, select
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import backups, groups, rows, services, slots, tasks
from raksha.db.columns import SECOND, now
from raksha.db.models import BackupJobRun, BackupJobRunVm, Barrier, Restore, Service, Task
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import EpochStale, RowNotFound, StateConflict, StillNeeded
from raksha.scheduler.about import about_task
from raksha.scheduler.groups import LATE
from raksha.scheduler.placement import able
from raksha.states import RestoreState, RunState, ServiceKind, ServiceState, TaskKind, TaskState

_log = logging.getLogger(__name__)

#: rows of a kind looked at in one round
LOOKED_AT = 1000

_OVER_RUNS = (RunState.AVAILABLE, RunState.DEGRADED, RunState.CANCELLED, RunState.ERROR, RunState.DELETING)
_OVER_RESTORES = (RestoreState.DONE, RestoreState.CANCELLED, RestoreState.ERROR)
_LOST = {"code": "agent_lost", "message": "its agent was silent for too long"}
_UNCLAIMED = {"code": "not_claimed", "message": "no agent has claimed it in time; it is tried again"}
#: somebody else was first: there is nothing left to do
_FIRST = (EpochStale, RowNotFound, StateConflict, StillNeeded)


class Reaped(Struct, frozen=True):
    """What one round did."""

    requeued: int
    failed: int
    #: runs that went back to the queue
    withdrawn: int
    groups: int
    slots: int


def reap(database: Database, settings: SchedulerSettings) -> Reaped:
    """One round."""
    withdrawn = _withdraw_unclaimed(database, settings)
    with database.reading() as session:
        over = tasks.expired(session, LOOKED_AT)
        gone = tasks.expired(session, LOOKED_AT, grace=settings.host_patience) + _left_behind(session, settings)
        nobodys = _nobodys(session, settings)
        late = [group.id for group in groups.overdue(session, LOOKED_AT)]
    free = [task for task in over if tasks.is_anybodys(task) and task.kind != TaskKind.CONSOLIDATE]
    unwanted = [task for task in free if task.cancel_requested_at is not None]
    again = [task for task in free if task.attempts < settings.max_claims and task not in unwanted]
    lost = [task for task in free if task.attempts >= settings.max_claims and task not in unwanted]
    lost += [task for task in gone if not tasks.is_anybodys(task)]
    lost += nobodys
    # of a scheduler that died: another has begun anew
    lost += [task for task in over if task.kind == TaskKind.CONSOLIDATE]
    requeued = sum(_tried(database, partial(tasks.requeue, task=task)) for task in again)
    for task in unwanted:
        _tried(database, partial(tasks.give_up, task=task, to=TaskState.CANCELLED, error=None))
    give_up = partial(tasks.give_up, to=TaskState.ERROR, error=_LOST)
    failed = sum(_tried(database, partial(give_up, task=task)) for task in lost)
    for task in lost:
        if task.kind == TaskKind.CONSOLIDATE:
            database.run(partial(backups.unpin, holder_id=task.id))
        with about_task(database, task):
            _log.warning("%s on %s: its agent is lost", task.kind, task.host, extra={"action": "reap"})
    failed_groups = sum(database.run(partial(groups.fail, id=id, error=LATE)) for id in late)
    with database.reading() as session:
        ended, drained = _ended(session), bool(services.drained(session))
    freed = database.run(lambda session: sum(slots.release(session, holder) for holder in ended)) if ended else 0
    if drained:
        database.run(_call_drained)
    return Reaped(requeued, failed, withdrawn, failed_groups, freed)


def _tried(database: Database, work: partial[None]) -> bool:
    try:
        database.run(work)
    except _FIRST:
        return False
    return True


# -- what nobody claims -----------------------------------------------------------------------------


def _withdraw_unclaimed(database: Database, settings: SchedulerSettings) -> int:
    old = now() - literal(round(settings.gather_timeout * SECOND))
    mine = Task.backupjobrun_id == BackupJobRun.id
    claimed, fresh = exists().where(mine, Task.epoch > 0), exists().where(mine, Task.created_at >= old)
    with database.reading() as session:
        statement = select(BackupJobRun.id).where(BackupJobRun.state == RunState.READY, ~claimed, ~fresh)
        ids = list(session.scalars(statement.limit(LOOKED_AT)))
    return sum(_tried(database, partial(withdraw, run_id=id, settings=settings)) for id in ids)


def withdraw(session: Session, run_id: str, settings: SchedulerSettings) -> None:
    """A run back to the queue, as if it had never been started. Raises `StillNeeded` if a task of it was claimed."""
    count = tasks.withdraw(session, run_id=run_id)
    mine = Task.backupjobrun_id == run_id
    there = session.execute(select(func.count()).select_from(Task).where(mine)).scalar_one()
    if count != there:
        raise StillNeeded(noun=tasks.NOUN, id=run_id, found=TaskState.CLAIMED, detail="an agent has claimed it")
    later = now() + literal(round(3 * settings.interval * SECOND))
    transition(
        session, BackupJobRun, run_id, RunState.QUEUED,
        start={RunState.READY}, queued_reason=_UNCLAIMED, not_before=later,
    )  # fmt: skip
    # no claim of them ever wrote anything, so nothing needs to remember them
    for noun in (Barrier, Task, BackupJobRunVm):
        rows.changed(session, delete(noun).where(noun.backupjobrun_id == run_id))
    backups.unpin(session, run_id)
    slots.release(session, run_id)


def _left_behind(session: Session, settings: SchedulerSettings) -> list[Task]:
    """Claimable tasks of hosts whose agents have been silent for too long: others of their run are under way, or it is
    over and nobody hears of that. An agent that comes back learns it from its next orders."""
    old = now() - literal(round(settings.host_patience * SECOND))
    agent = Service.kind == ServiceKind.AGENT, Service.host == Task.host, Service.heartbeat_at >= old
    waiting = Task.state == TaskState.READY, Task.host.is_not(None), Task.created_at < old, ~exists().where(*agent)
    begun = BackupJobRun.id == Task.backupjobrun_id, BackupJobRun.state.not_in((RunState.READY, RunState.QUEUED))
    return list(session.scalars(select(Task).where(*waiting, exists().where(*begun)).limit(LOOKED_AT)))


def _nobodys(session: Session, settings: SchedulerSettings) -> list[Task]:
    """Claimable tasks that any agent could do that is capable of it, and that wait since long: there is no such agent,
    and others of their run are under way."""
    old = now() - literal(round(settings.host_patience * SECOND))
    waiting = Task.state == TaskState.READY, Task.needs.is_not(None), Task.created_at < old
    begun = BackupJobRun.id == Task.backupjobrun_id, BackupJobRun.state.not_in((RunState.READY, RunState.QUEUED))
    found = list(session.scalars(select(Task).where(*waiting, exists().where(*begun)).limit(LOOKED_AT)))
    agents = services.alive(session, ServiceKind.AGENT, settings.host_patience) if found else []
    return [task for task in found if not able(agents, task.placement, task.needs)]


# -- what is over -----------------------------------------------------------------------------------


def _ended(session: Session) -> list[str]:
    """Runs and restores that hold slots, are over, and have no task left on any host. None of them begins again."""
    holders = sorted(slots.all_holders(session))
    going = BackupJobRun.id.in_(holders), BackupJobRun.state.not_in(_OVER_RUNS)
    restoring = Restore.id.in_(holders), Restore.state.not_in(_OVER_RESTORES)
    found = set(session.scalars(select(BackupJobRun.id).where(*going)))
    found |= set(session.scalars(select(Restore.id).where(*restoring)))
    for column in (Task.backupjobrun_id, Task.restore_id):
        unfinished = column.in_(holders), Task.state.not_in(tasks.TERMINAL)
        found |= {id for id in session.scalars(select(column).where(*unfinished)) if id is not None}
    return [holder for holder in holders if holder not in found]


def _call_drained(session: Session) -> None:
    for service in services.drained(session):
        try:
            transition(session, Service, service.id, ServiceState.DRAINED, start={ServiceState.DRAINING})
        except StateConflict:  # its operator has thought better of it
            continue
