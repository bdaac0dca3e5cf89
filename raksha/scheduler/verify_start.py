"""Verifications begin: those that somebody asked for, and those that it is time for.

    asked for       one restore point, or all of a job
    to be booted    `boot_start`
    by age          all of the job that was looked at longest ago, one job of a project at a time; first of all those
                    with damaged points, since what these lack may have been stored again

A VERIFY task for each vault that holds any of it, for any agent that the job's `placement` allows. All that is read is
pinned until the end. What the database knows of it counts, not what stands in the vault.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from functools import partial

import msgspec
from msgspec import Struct
from sqlalchemy.orm import Session

from raksha import logs
from raksha.config_scheduler import SchedulerSettings
from raksha.db import backups, jobs, runs, tasks, verifications
from raksha.db.models import BackupJobRun, Verification, VmResourceBackup
from raksha.db.session import Database
from raksha.errors import RowNotFound, StateConflict
from raksha.scheduler import boot_start, verifying
from raksha.scheduler.consolidating import key_of
from raksha.scheduler.recording import machine_digest, recorded
from raksha.states import PinHolder, RunState, TaskKind, Trigger, VerificationState
from raksha.tasks import Copy, VerifyOrder

_log = logging.getLogger(__name__)

#: looked at in one round
LOOKED_AT = 200
#: a person waits for it, but others for their backups
_ASKED_FOR = 0
#: when nothing else is to be done
_BY_AGE = -100
_HUNDREDTHS = 100
_GONE = {"code": "run_gone", "message": "there is no restore point to look at any more"}


class Started(Struct, frozen=True):
    """What one round did."""

    begun: int
    #: whose tasks are over: to be judged
    read: tuple[str, ...]


def start(database: Database, settings: SchedulerSettings) -> Started:
    """One round."""
    if settings.verify_every > 0:
        _add_due(database, settings)
    boot_start.add_due(database, settings)
    with database.reading() as session:
        found = [(row.id, row.request_id) for row in verifications.going(session, LOOKED_AT)]
    begun, read = 0, []
    for id, request_id in found:
        with logs.about(None, None, request_id):
            try:
                begun += database.run(partial(_one, id=id, settings=settings))
            except (StateConflict, RowNotFound):  # another scheduler was first, or what it reads is going
                continue
            with database.reading() as session:
                if verifying.is_read(session, id):
                    read.append(id)
    return Started(begun, tuple(read))


def _add_due(database: Database, settings: SchedulerSettings) -> None:
    def work(session: Session) -> None:
        job = verifications.due(session, settings.verify_every)
        if job is not None:
            # what was found damaged is whole again only if all of it is read
            damaged = any(point.state == RunState.DEGRADED for point in runs.points_of(session, job.id))
            percent = _HUNDREDTHS if damaged else settings.verify_percent
            verifications.create(session, job, None, data=percent > 0, percent=percent, trigger=Trigger.SCHEDULE)

    try:
        database.run(work)
    except StateConflict:  # somebody has asked for it
        return


def _one(session: Session, id: str, settings: SchedulerSettings) -> bool:
    """Whether it got its tasks now."""
    row = verifications.get(session, None, id)
    if row.boot:
        return boot_start.one(session, row, settings)
    mine = tasks.of_verification(session, id)
    if row.cancel_requested_at is not None:
        tasks.cancel(session, verification_id=id)
        verifying.settle(session, id)
        return False
    if mine or row.state != VerificationState.QUEUED:
        verifying.settle(session, id)
        return False
    return _start(session, row, settings)


def _start(session: Session, row: Verification, settings: SchedulerSettings) -> bool:
    points = _points(session, row)
    copies = {copy.id: copy for point in points for copy in backups.of_run(session, point.id)}
    wanted = [copy for copy in copies.values() if copy.state in backups.READABLE]
    if not wanted:
        verifications.end(session, row.id, VerificationState.ERROR, error=_GONE)
        return False
    if not verifications.take(session, row.id, row.epoch):
        return False
    backups.pin(session, PinHolder.VERIFY, row.id, backups.with_parents(session, [copy.id for copy in wanted]))
    numbers = {point.id: point.commit_number or 0 for point in points}
    placement = jobs.get(session, None, row.backupjob_id).placement
    for vault in sorted({copy.vault_id for copy in wanted}):
        there = [copy for copy in wanted if copy.vault_id == vault]
        order = _order(session, row, there, numbers, settings)
        tasks.add(
            session, kind=TaskKind.VERIFY, project_id=row.project_id, verification_id=row.id, vault_id=vault,
            placement=placement, priority=_BY_AGE if row.trigger == Trigger.SCHEDULE else _ASKED_FOR,
            order=msgspec.to_builtins(order),
        )  # fmt: skip
    tasks.release(session, verification_id=row.id)
    return True


def _points(session: Session, row: Verification) -> list[BackupJobRun]:
    if row.backupjobrun_id is not None:
        point = runs.get(session, None, row.backupjobrun_id)
        return [point] if point.state in runs.POINTS else []
    return runs.points_of(session, row.backupjob_id)


def _order(
    session: Session,
    row: Verification,
    copies: Sequence[VmResourceBackup],
    numbers: dict[str, int],
    settings: SchedulerSettings,
) -> VerifyOrder:
    machines: dict[str, dict[str, str | None]] = {}
    for copy in copies:
        of_run = machines.setdefault(copy.backupjobrun_id, {})
        if copy.vm_id not in of_run:
            of_run[copy.vm_id] = machine_digest(session, copy.backupjobrun_id, copy.vm_id)
    return VerifyOrder(
        copies=tuple(Copy(key=key_of(copy), size=copy.size, number=numbers[copy.backupjobrun_id]) for copy in copies),
        data=row.data,
        percent=row.percent,
        offset=secrets.randbelow(_HUNDREDTHS) if row.percent < _HUNDREDTHS else 0,
        heal=row.data,
        recorded=recorded(session, [copy.id for copy in copies]),
        machines=machines,
        bandwidth_limit=settings.verify_bandwidth or None,
    )
