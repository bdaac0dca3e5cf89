"""Rows that have done their work: answers to requests that nobody repeats any more, processes that are gone, pins of
work that is over."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

from msgspec import Struct
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import backups, idempotency, jobs, runs, services, tasks, verifications
from raksha.db.models import BackupJobRun, Restore, Task, Verification
from raksha.db.session import Database
from raksha.errors import IdentityUnavailable, RowNotFound, StillNeeded
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.states import PinHolder, RestoreState

_log = logging.getLogger(__name__)

#: seconds that a POST may be repeated
REPEATABLE = 86400.0
_LOOKED_AT = 1000
_ENDED = (RestoreState.DONE, RestoreState.CANCELLED, RestoreState.ERROR)


class Forgotten(Struct, frozen=True):
    """What one round removed."""

    keys: int
    services: int
    pins: int


def tidy(database: Database, settings: SchedulerSettings, access: Access = ENVIRONMENT) -> Forgotten:
    """One round."""
    _end_trusts(database, access)
    keys = database.run(partial(idempotency.forget, older_than=REPEATABLE))
    with database.reading() as session:
        silent = services.silent(session, settings.forget_services, _LOOKED_AT)
    gone = 0
    for service in silent:
        try:
            database.run(partial(services.remove, id=service.id, silent_for=settings.forget_services))
        except (RowNotFound, StillNeeded):  # it is back
            continue
        gone += 1
    with database.reading() as session:
        over = [id for kind, id in backups.pin_holders(session) if _over(session, kind, id)]
    pins = sum(database.run(partial(backups.unpin, holder_id=id)) for id in over)
    return Forgotten(keys, gone, pins)


def _end_trusts(database: Database, access: Access) -> None:
    """Of jobs that others took over."""
    with database.reading() as session:
        found = {job.id: list(job.former_trusts) for job in jobs.with_former_trusts(session, _LOOKED_AT)}
    for id, trusts in found.items():
        ended = []
        try:
            for trust in trusts:
                access.end(trust)
                ended.append(trust)
        except IdentityUnavailable as error:
            _log.warning("a former trust of job %s cannot be ended yet: %s", id, error, extra={"backupjob": id})
        with suppress(RowNotFound):  # it went meanwhile, and its trusts with it
            database.run(partial(jobs.forget_former_trusts, id=id, ended=ended))


def _over(session: Session, kind: PinHolder, id: str) -> bool:
    """Whoever pinned has unpinned in the transaction in which he ended: what is left is of no one."""
    if kind == PinHolder.RUN:
        run = session.get(BackupJobRun, id)
        return run is None or run.state in runs.ENDED
    if kind == PinHolder.RESTORE:
        restore = session.get(Restore, id)
        return restore is None or restore.state in _ENDED
    if kind == PinHolder.CONSOLIDATE:
        task = session.get(Task, id)
        return task is None or task.state in tasks.TERMINAL
    if kind == PinHolder.VERIFY:
        verification = session.get(Verification, id)
        return verification is None or verification.state not in verifications.GOING
    return False
