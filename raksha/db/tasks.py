"""Tasks: claimed under a lease, fenced by an epoch, reported on idempotently::

    claim              epoch e+1, lease until now + seconds: the claimer alone may report, under e+1
    renew, report      prolong the lease
    finish, hand_back  the end of the claim

When a lease is over, a task bound to a host is claimed again by the agent of that host only; any other goes back to
the queue (`requeue`). Whoever had it before finds his epoch stale. A task that says what it `needs` is of any agent
that is capable of that: it gets its host with the claim, by the same compare-and-swap, and loses it on its way back.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, and_, case, exists, func, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from raksha.db import rows
from raksha.db.columns import SECOND, now
from raksha.db.models import BackupJobRun, Service, Task
from raksha.db.transition import transition, transition_all
from raksha.errors import EpochStale, RowNotFound, StateConflict, StillNeeded
from raksha.states import RunState, ServiceState, TaskKind, TaskState

NOUN = "task"

TERMINAL = (TaskState.DONE, TaskState.ERROR, TaskState.CANCELLED)
#: candidates looked at for one that is wanted: placement rules some out, others are faster
_CANDIDATES = 8
_OVER_RUNS = (RunState.AVAILABLE, RunState.DEGRADED, RunState.CANCELLED, RunState.ERROR, RunState.DELETING)
#: the host of what any agent can do goes with the claim
_UNBOUND = case((Task.needs.is_(None), Task.host), else_=None)
_OVER = {"its agent has prolonged its lease": Task.lease_until < now()}


class Report(Struct, frozen=True):
    """What an agent says about a task it has claimed."""

    task_id: str
    epoch: int
    #: 1, 2, …: within an epoch
    number: int
    progress: Any


def add(session: Session, *, kind: TaskKind, project_id: str, **more: Any) -> Task:
    """A new task, not claimable before `release`. `more`: columns of `Task`."""
    task = Task(kind=kind, project_id=project_id, **more)
    session.add(task)
    session.flush()
    return task


def get(session: Session, id: str) -> Task:
    """Raises `RowNotFound`."""
    return rows.one(session, select(Task).where(Task.id == id), NOUN, id)


def of_run(session: Session, run_id: str) -> list[Task]:
    return list(session.scalars(select(Task).where(Task.backupjobrun_id == run_id).order_by(Task.created_at, Task.id)))


def of_restore(session: Session, restore_id: str) -> list[Task]:
    mine = Task.restore_id == restore_id
    return list(session.scalars(select(Task).where(mine).order_by(Task.created_at, Task.id)))


def of_verification(session: Session, verification_id: str) -> list[Task]:
    mine = Task.verification_id == verification_id
    return list(session.scalars(select(Task).where(mine).order_by(Task.created_at, Task.id)))


def release(
    session: Session, *, run_id: str | None = None, restore_id: str | None = None, verification_id: str | None = None
) -> int:
    """Make all waiting tasks of a run, restore or verification claimable at once. How many."""
    mine = _of(run_id, restore_id, verification_id)
    return transition_all(session, Task, TaskState.READY, [mine], start={TaskState.PENDING})


def withdraw(session: Session, *, run_id: str) -> int:
    """Take back what nobody has claimed yet: its run lost its turn. How many."""
    mine = Task.backupjobrun_id == run_id
    return transition_all(session, Task, TaskState.PENDING, [mine], start={TaskState.READY})


# -- the agent's side -------------------------------------------------------------------------------


def claim(
    session: Session,
    service_id: str,
    kinds: Collection[TaskKind],
    limit: int,
    seconds: float,
    holding: Collection[tuple[str, int]] | None = None,
) -> list[Task]:
    """Up to `limit` tasks for this agent, each with a new epoch and a lease of `seconds`.

    Its own host's first, among them those whose lease is over: their capture is on this host. A service that is drained
    or disabled gets only these, and what ends its captures. Before all of them, and beside the limit, what it has
    claimed without knowing of it: `holding` are ids and epochs of the claims that it knows of (None: it does not say).
    """
    service = session.get(Service, service_id)
    if service is None:
        return []
    lost = _lost(session, service, kinds, holding) if holding is not None else []
    again = [task for task in lost if _claim_one(session, task, service, seconds)]
    claimed: list[Task] = []
    for task in _candidates(session, service, kinds, limit) if limit > 0 else ():
        if len(claimed) == limit:
            break
        if _allowed(task, service) and _claim_one(session, task, service, seconds):
            claimed.append(task)
    return [*again, *claimed]


def _lost(
    session: Session, service: Service, kinds: Collection[TaskKind], holding: Collection[tuple[str, int]]
) -> list[Task]:
    """Claims of this agent that were answered to nobody, or to an earlier start of it."""
    mine = Task.service_id == service.id, Task.state == TaskState.CLAIMED, Task.kind.in_(sorted(kinds))
    return [task for task in session.scalars(select(Task).where(*mine)) if (task.id, task.epoch) not in holding]


def _candidates(session: Session, service: Service, kinds: Collection[TaskKind], limit: int) -> Iterator[Task]:
    """The next place is only looked at when those before had not enough."""
    wanted: ColumnElement[bool] = Task.kind.in_(sorted(kinds))
    order = Task.priority.desc(), Task.created_at
    over = and_(Task.state == TaskState.CLAIMED, Task.host == service.host, Task.lease_until < now())
    statement = select(Task).where(wanted, over).order_by(*order).limit(limit)
    yield from session.scalars(statement).all()
    enabled = service.state == ServiceState.ENABLED
    if not enabled:
        wanted = wanted & (Task.kind == TaskKind.FINISH)
    anybodys = and_(Task.host.is_(None), or_(Task.needs.is_(None), Task.needs.in_(capable_of(service))))
    for where in (Task.host == service.host, anybodys)[: 1 + enabled]:
        ready = Task.state == TaskState.READY, Task.not_before <= now(), where
        found = session.scalars(select(Task).where(wanted, *ready).order_by(*order).limit(limit * _CANDIDATES)).all()
        # agents that look at the same moment should not all reach for the same one
        yield from sorted(found, key=lambda task: (-task.priority, random.random()))  # noqa: S311


def _allowed(task: Task, service: Service) -> bool:
    if task.host is not None or not task.placement:
        return True
    hosts, zones = task.placement.get("hosts"), task.placement.get("zones")
    return (not hosts or service.host in hosts) and (not zones or service.zone in zones)


def capable_of(service: Service) -> list[str]:
    """What tasks may need that this agent has."""
    return sorted(name for name, has in (service.capabilities or {}).items() if has)


def _claim_one(session: Session, task: Task, service: Service, seconds: float) -> bool:
    try:
        transition(
            session,
            Task,
            task.id,
            TaskState.CLAIMED,
            start={task.state},
            epoch=task.epoch,
            new_epoch=True,
            where={"another was first": Task.lease_until == task.lease_until},
            service_id=service.id,
            host=task.host if task.needs is None else service.host,
            lease_until=_until(seconds),
            attempts=Task.attempts + 1,
            report_number=0,
            started_at=task.started_at or now(),
        )
    except (RowNotFound, EpochStale, StateConflict, StillNeeded):  # another was first
        return False
    return True


def renew(session: Session, id: str, epoch: int, seconds: float) -> Task:
    """Prolong the lease; also when it is over, as long as nobody else has claimed the task. The row says what is wanted
    of it (`cancel_requested_at`).

    Raises `RowNotFound`, `EpochStale`, `StateConflict`.
    """
    if rows.changed(session, update(Task).where(*_held(id, epoch)).values(lease_until=_until(seconds))) == 0:
        raise _not_held(session, id, epoch)
    rows.reread(session, Task)
    return get(session, id)


def report(session: Session, given: Report) -> bool:
    """Take a report of progress. False: it, or a later one, was taken before; nothing changed.

    Raises `RowNotFound`, `EpochStale`, `StateConflict`.
    """
    newer = Task.report_number < given.number
    values = {"progress": given.progress, "report_number": given.number}
    if rows.changed(session, update(Task).where(*_held(given.task_id, given.epoch), newer).values(**values)) == 1:
        rows.reread(session, Task)
        return True
    task = get(session, given.task_id)
    if task.epoch != given.epoch or task.state != TaskState.CLAIMED:
        raise _not_held(session, given.task_id, given.epoch)
    return False


def finish(session: Session, id: str, epoch: int, to: TaskState, *, result: Any = None, error: Any = None) -> bool:
    """Take the result of a claim. False: it was taken before, nothing changed.

    Raises `RowNotFound`, `EpochStale`, and `StateConflict` if the task ended otherwise.
    """
    try:
        transition(
            session, Task, id, to, start={TaskState.CLAIMED}, epoch=epoch,
            result=result, error=error, finished_at=now(),
        )  # fmt: skip
    except StateConflict:
        if get(session, id).state == to:
            return False
        raise
    return True


def hand_back(session: Session, id: str, epoch: int, delay: float = 0.0) -> None:
    """Give a claimed task back to the queue, not to be claimed for `delay` seconds.

    Raises `EpochStale`, `StateConflict`.
    """
    transition(
        session, Task, id, TaskState.READY, start={TaskState.CLAIMED}, epoch=epoch,
        service_id=None, host=_UNBOUND, lease_until=0, not_before=_until(delay),
    )  # fmt: skip


# -- the scheduler's side ---------------------------------------------------------------------------


def expired(session: Session, limit: int, grace: float = 0.0) -> list[Task]:
    """Claimed tasks whose lease has been over for `grace` seconds, the oldest first."""
    over = Task.state == TaskState.CLAIMED, Task.lease_until < _until(-grace)
    return list(session.scalars(select(Task).where(*over).order_by(Task.lease_until).limit(limit)))


def is_anybodys(task: Task) -> bool:
    """Whether another agent may have it, once the lease of the one who has it is over."""
    return task.host is None or task.needs is not None


def held_of_anybodys(session: Session, host: str) -> int:
    """How many tasks that any agent could do this host's has at work."""
    mine = Task.state == TaskState.CLAIMED, Task.host == host, Task.needs.is_not(None)
    return session.execute(select(func.count()).select_from(Task).where(*mine)).scalar_one()


def to_clear(session: Session, limit: int) -> list[Task]:
    """Backups that are over, and may have left something in the cloud; the longest waiting first. One that is done has
    what it has until its run is over, and its agent has heard of that."""
    finish = aliased(Task)
    same = finish.backupjobrun_id == Task.backupjobrun_id, finish.vm_id == Task.vm_id, finish.kind == TaskKind.FINISH
    unfinished = exists().where(*same, finish.state.not_in(TERMINAL))
    over = exists().where(BackupJobRun.id == Task.backupjobrun_id, BackupJobRun.state.in_(_OVER_RUNS))
    failed = Task.state.in_((TaskState.ERROR, TaskState.CANCELLED))
    ended = or_(failed, and_(Task.state == TaskState.DONE, over, ~unfinished))
    statement = select(Task).where(Task.clear_at <= now(), ended).order_by(Task.clear_at).limit(limit)
    return list(session.scalars(statement))


def clear_later(session: Session, id: str, seconds: float) -> None:
    """What it may have left could not be removed now."""
    left = Task.id == id, Task.clear_at.is_not(None)
    rows.changed(session, update(Task).where(*left).values(clear_at=_until(seconds)))
    rows.reread(session, Task)


def requeue(session: Session, task: Task) -> None:
    """Back to the queue with a task whose lease is over and that any agent can do; with a new epoch, so that a late
    report is refused. A task bound to a host stays with that host: `ValueError`.

    Raises `EpochStale`, `StateConflict`, `StillNeeded` if its agent was faster.
    """
    if not is_anybodys(task):
        raise ValueError(f"task {task.id} is bound to {task.host}")
    transition(
        session, Task, task.id, TaskState.READY, start={TaskState.CLAIMED}, epoch=task.epoch, new_epoch=True,
        where=_OVER, service_id=None, host=None, lease_until=0,
    )  # fmt: skip


def give_up(session: Session, task: Task, to: TaskState, error: Any) -> None:
    """End a task whose lease is over: ERROR or NEEDS_ATTENTION, with a new epoch.

    Raises `EpochStale`, `StateConflict`, `StillNeeded` if its agent was faster.
    """
    transition(
        session, Task, task.id, to, start={task.state}, epoch=task.epoch, new_epoch=True,
        where=_OVER, error=error, finished_at=now(),
    )  # fmt: skip


def cancel(
    session: Session, *, run_id: str | None = None, restore_id: str | None = None, verification_id: str | None = None
) -> int:
    """End what nobody has claimed, and ask for the end of what somebody has. How many are still claimed."""
    mine = _of(run_id, restore_id, verification_id)
    unclaimed = {TaskState.PENDING, TaskState.READY}
    transition_all(session, Task, TaskState.CANCELLED, [mine], start=unclaimed, finished_at=now())
    claimed = update(Task).where(mine, Task.state == TaskState.CLAIMED)
    count = rows.changed(session, claimed.values(cancel_requested_at=now()))
    rows.reread(session, Task)
    return count


def _of(run_id: str | None, restore_id: str | None, verification_id: str | None) -> ColumnElement[bool]:
    if run_id is not None:
        return Task.backupjobrun_id == run_id
    return Task.restore_id == restore_id if restore_id is not None else Task.verification_id == verification_id


def _until(seconds: float) -> ColumnElement[int]:
    return now() + literal(round(seconds * SECOND))


def _held(id: str, epoch: int) -> tuple[ColumnElement[bool], ...]:
    return Task.id == id, Task.state == TaskState.CLAIMED, Task.epoch == epoch


def _not_held(session: Session, id: str, epoch: int) -> EpochStale | StateConflict:
    task = get(session, id)
    if task.epoch != epoch:
        return EpochStale(noun=NOUN, id=id, found=task.epoch, given=epoch)
    return StateConflict(noun=NOUN, id=id, found=task.state, wanted=TaskState.CLAIMED, to="reported on")
