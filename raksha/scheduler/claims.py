"""What agents do with tasks: claim, renew, report, finish, hand back. Each may be said twice.

Every answer comes from one transaction. What an epoch may say, `raksha.db.tasks` decides; `EpochStale`: somebody else
has the task.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha import logs
from raksha.config_scheduler import SchedulerSettings
from raksha.db import jobs, restores, rows, services, tasks, vaults
from raksha.db.models import BackupJobRun, Task
from raksha.db.session import Database
from raksha.errors import IdentityUnavailable, RakshaError, StateConflict, StillNeeded, TrustBroken
from raksha.scheduler import outcome
from raksha.scheduler.about import about_task, request_of
from raksha.scheduler.access import ENVIRONMENT, NOWHERE, TRIED, Access, Place
from raksha.states import TaskKind, TaskState
from raksha.tasks import (
    CLOUD_KINDS,
    Claim,
    Claimed,
    Claims,
    Finish,
    HandBack,
    Held,
    Order,
    Renewed,
    Report,
    RestoreOrder,
    VaultAccess,
)

_log = logging.getLogger(__name__)

#: seconds before a task is claimed again whose vault could not be opened
_LATER = 15.0
_ENDS = (TaskState.DONE, TaskState.ERROR, TaskState.CANCELLED, TaskState.NEEDS_ATTENTION)


def claim(database: Database, settings: SchedulerSettings, said: Claim, access: Access = ENVIRONMENT) -> Claims:
    """Tasks whose vault cannot be opened are not given away: they fail if the trust is broken, or go back.

    Raises `RowNotFound`: register (again). `StillNeeded`: a later start of this agent has registered.
    """

    def work(session: Session) -> list[tuple[Claimed, _Means | RakshaError]]:
        service = services.get(session, said.service_id)
        if service.instance != said.instance:
            detail = f"it was started again as {service.instance}"
            raise StillNeeded(noun=services.NOUN, id=service.id, found=service.state, detail=detail)
        holding = None if said.holding is None else {(each.task_id, each.epoch) for each in said.holding}
        got = tasks.claim(session, service.id, said.kinds, said.limit, settings.task_lease, holding)
        for task in got:
            outcome.begun(session, task)
        return [(_claimed(session, task, settings), _means(session, task, access)) for task in got]

    held = frozenset(each.task_id for each in said.holding or ())
    given = (_lent(database, access, task, means, held) for task, means in database.run(work))
    return Claims(tasks=tuple(task for task in given if task is not None))


class _Means(Struct, frozen=True):
    """What of the database says what a task is done with."""

    place: Place
    #: by which it acts in the cloud; none: it has nothing to do there
    cloud: tuple[str, ...] = ()


def _means(session: Session, task: Task, access: Access) -> _Means | RakshaError:
    if task.vault_id is None:
        return _Means(NOWHERE)
    job = _job(session, task)
    try:
        place = access.place(session, vaults.get(session, task.vault_id), job, alone=True)
    except TrustBroken as error:
        return error
    try:
        return _Means(place, _cloud_trusts(session, task, job))
    except TrustBroken as error:
        return error


def _cloud_trusts(session: Session, task: Task, job: str | None) -> tuple[str, ...]:
    """Backups ask what the cloud knows of a server, restores make servers and volumes, or keep a server off.

    Those into another project have their own for that, and never those of the project that they read. Raises
    `TrustBroken` where it has ended.
    """
    if task.kind == TaskKind.BACKUP and job is not None:
        own = jobs.trust(session, job)
        return () if own is None else (own,)
    if task.restore_id is not None and (restore := restores.get(session, None, task.restore_id)).target.get("project"):
        if restore.trust_id is None:
            raise TrustBroken(detail="that of the restore has ended")
        return (restore.trust_id,)
    order = order_of(task)
    if isinstance(order, RestoreOrder) and order.target.get("kind") in (*CLOUD_KINDS, "in_place"):
        return tuple(jobs.trusts(session, task.project_id)[:TRIED])
    return ()


def _job(session: Session, task: Task) -> str | None:
    """By whose trust it is done. That of a restore: any of the project's, as what is read may be of several jobs."""
    if task.restore_id is not None:
        return None
    mine = BackupJobRun.id == task.backupjobrun_id
    return session.scalars(select(BackupJobRun.backupjob_id).where(mine)).one_or_none()


def _lent(
    database: Database, access: Access, task: Claimed, means: _Means | RakshaError, held: frozenset[str]
) -> Claimed | None:
    """With what opens its vault, and acts in its cloud. None: there is nothing to be had: it was ended, or went back.

    `held`: tasks that this agent is at work on: it goes on with what it was lent, and is told more when there is more.
    """
    try:
        if isinstance(means, RakshaError):
            raise means
        lent, cloud = access.lend(means.place), access.cloud(means.cloud)
    except (TrustBroken, IdentityUnavailable) as error:
        if task.task_id in held:
            return task
        with logs.about(task.task_id, getattr(task.order, "backupjobrun", None), task.request_id):
            _refused(database, task, error)
        return None
    vault = task.vault if lent is None or task.vault is None else replace(task.vault, credentials=lent)
    return replace(task, vault=vault, cloud=cloud)


def _refused(database: Database, task: Claimed, error: RakshaError) -> None:
    if isinstance(error, IdentityUnavailable):
        _log.warning("the task goes back: %s", error, extra={"action": "claim"})
        back = HandBack(task_id=task.task_id, epoch=task.epoch, delay=_LATER)
        ending = partial(hand_back, database, back)
    else:
        _log.error("the task has failed: %s", error, extra={"action": "claim"})
        document = error.document()
        end = Finish(task_id=task.task_id, epoch=task.epoch, to=TaskState.ERROR, error=document)
        ending = partial(finish, database, end)
    try:
        ending()
    except RakshaError as problem:  # its lease ends, and it is claimed again
        _log.warning("the task stays as it is: %s", problem, extra={"action": "claim"})


def _claimed(session: Session, task: Task, settings: SchedulerSettings) -> Claimed:
    return Claimed(
        task_id=task.id,
        epoch=task.epoch,
        lease_seconds=settings.task_lease,
        order=order_of(task),
        vault=_vault(session, task),
        request_id=request_of(session, task),
    )


def order_of(task: Task) -> Order:
    """As it was written at dispatch."""
    return cast(Order, msgspec.convert(task.order, type=Order))


def _vault(session: Session, task: Task) -> VaultAccess | None:
    if task.vault_id is None:
        return None
    vault = vaults.get(session, task.vault_id)
    if vault.vault_uuid is None:
        raise StateConflict(noun=vaults.NOUN, id=vault.id, found="not made", wanted="made", to="used")
    return VaultAccess(url=vault.url, vault_uuid=vault.vault_uuid)


def renew(database: Database, settings: SchedulerSettings, said: Held, access: Access = ENVIRONMENT) -> Renewed:
    """Raises `RowNotFound`, `EpochStale`, `StateConflict` when the task has ended."""

    def work(session: Session) -> tuple[Task, _Means | RakshaError]:
        task = tasks.renew(session, said.task_id, said.epoch, settings.task_lease)
        return task, _means(session, task, access)

    task, means = database.run(work)
    lent, cloud = None, None
    try:
        if isinstance(means, _Means):
            lent, cloud = access.lend(means.place), access.cloud(means.cloud)
    except RakshaError as error:  # with what it has, it may still come to its end
        with about_task(database, task):
            _log.warning("nothing newer can be lent: %s", error, extra={"action": "renew"})
    cancel = task.cancel_requested_at is not None
    return Renewed(lease_seconds=settings.task_lease, cancel=cancel, credentials=lent, cloud=cloud)


def report(database: Database, said: Report) -> None:
    """Raises `RowNotFound`, `EpochStale`, `StateConflict` when the task has ended."""

    def work(session: Session) -> None:
        progress = {"step": said.step, "disks": msgspec.to_builtins(said.disks)}
        if tasks.report(session, tasks.Report(said.task_id, said.epoch, said.number, progress)):
            outcome.progress(session, tasks.get(session, said.task_id), said)

    database.run(work)


def finish(database: Database, said: Finish) -> None:
    """Raises `RowNotFound`, `EpochStale`, and `StateConflict` if the task ended otherwise."""
    if said.to not in _ENDS:
        raise StateConflict(noun=tasks.NOUN, id=said.task_id, found="claimed", wanted="an end", to=said.to)

    def work(session: Session) -> None:
        task = tasks.get(session, said.task_id)
        to, error = said.to, said.error
        problem = outcome.problem(task, said) if task.epoch == said.epoch and task.state == TaskState.CLAIMED else None
        if problem is not None:  # refused for ever, so it is an end; its agent need not say it again
            to, error = TaskState.ERROR, problem.document()
        elif task.epoch == said.epoch and _known_as_refused(task):
            return
        result = None if to != TaskState.DONE else msgspec.to_builtins(said.result)
        if tasks.finish(session, said.task_id, said.epoch, to, result=result, error=error):
            outcome.ended(session, tasks.get(session, said.task_id), said)

    database.run(work)


def _known_as_refused(task: Task) -> bool:
    return task.state == TaskState.ERROR and (task.error or {}).get("code") == "result_invalid"


def hand_back(database: Database, said: HandBack) -> None:
    """Raises `RowNotFound`, `EpochStale` when another has it already, `StateConflict` when it has ended."""

    def work(session: Session) -> None:
        task = tasks.get(session, said.task_id)
        if task.epoch == said.epoch and task.state in (TaskState.READY, TaskState.CANCELLED):
            return
        if task.cancel_requested_at is not None:  # nobody wants it any more
            tasks.finish(session, task.id, said.epoch, TaskState.CANCELLED)
            outcome.ended(session, tasks.get(session, task.id), None)
            return
        tasks.hand_back(session, task.id, said.epoch, said.delay)
        rows.reread(session, Task)

    database.run(work)
