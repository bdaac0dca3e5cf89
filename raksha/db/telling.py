"""Notes what is to be told of jobs, runs and restores, in the transaction that changes them.

Moves between states are noted where all of them are made (`raksha.db.transition`), so none can be forgotten; what is no
move is noted by whoever makes it. Where notifications are not enabled (`session.NOTIFY`), nothing is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha import notifications
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobRun, BackupJobRunVm, BackupJobVm, Base, Notification, Restore
from raksha.db.session import NOTIFY
from raksha.notifications import Event, Reason
from raksha.states import JobState, RestoreState, RunState

#: by noun and state that it came to
MOVES: Mapping[tuple[type[Base], StrEnum], Event] = {
    (BackupJob, JobState.PAUSED): Event.JOB_PAUSE,
    (BackupJob, JobState.SUSPENDED): Event.JOB_SUSPEND,
    (BackupJob, JobState.ACTIVE): Event.JOB_RESUME,
    (BackupJob, JobState.DELETING): Event.JOB_UPDATE,
    (BackupJobRun, RunState.RUNNING): Event.RUN_START,
    (BackupJobRun, RunState.AVAILABLE): Event.RUN_END,
    (BackupJobRun, RunState.DEGRADED): Event.RUN_DEGRADE,
    (BackupJobRun, RunState.ERROR): Event.RUN_ERROR,
    (BackupJobRun, RunState.CANCELLED): Event.RUN_CANCEL,
    (BackupJobRun, RunState.NEEDS_ATTENTION): Event.RUN_ATTENTION,
    (Restore, RestoreState.RUNNING): Event.RESTORE_START,
    (Restore, RestoreState.DONE): Event.RESTORE_END,
    (Restore, RestoreState.ERROR): Event.RESTORE_ERROR,
    (Restore, RestoreState.CANCELLED): Event.RESTORE_CANCEL,
    (Restore, RestoreState.NEEDS_ATTENTION): Event.RESTORE_ATTENTION,
}
#: said only of a move that says when it began: others come to the same state again, from where a person had to look
_STARTS = frozenset({Event.RUN_START, Event.RESTORE_START})


def moved(session: Session, noun: type[Base], id: str, to: StrEnum, values: Mapping[str, Any]) -> None:
    """A row came to a state, with these values."""
    event = MOVES.get((noun, to))
    if event is Event.RUN_END and "commit_number" not in values:
        event = Event.RUN_HEAL
    if event is not None and (event not in _STARTS or "started_at" in values):
        tell(session, event, noun, id)


def tell(session: Session, event: Event, noun: type[Base], id: str) -> None:
    """Of a row as it is now."""
    if not session.info.get(NOTIFY):
        return
    session.flush()
    # anew, whatever the session holds of it: others may have written past it
    row: Any = session.get(noun, id, populate_existing=True)
    payload = _RECORDS[noun](session, row)
    session.add(Notification(event=event, payload=msgspec.to_builtins(payload)))
    # now: the next that happens to it gets a higher number
    session.flush()


def _job(session: Session, row: BackupJob) -> notifications.JobPayload:
    named = select(BackupJobVm).where(BackupJobVm.backupjob_id == row.id).order_by(BackupJobVm.position)
    return notifications.JobPayload(
        id=row.id,
        project_id=row.project_id,
        user_id=row.user_id,
        name=row.name,
        state=row.state,
        reason=_reason(row.state_reason) if row.state == JobState.SUSPENDED else None,
        vms=[notifications.Protected(vm.vm_id, vm.source) for vm in session.scalars(named)],
        selects=row.vm_selector is not None,
        vault_service_id=row.vault_service_id,
        created_at=_at(row.created_at),
        updated_at=_at(row.updated_at),
    )


def _run(session: Session, row: BackupJobRun) -> notifications.RunPayload:
    mine = select(BackupJobRunVm).where(BackupJobRunVm.backupjobrun_id == row.id).order_by(BackupJobRunVm.vm_id)
    return notifications.RunPayload(
        id=row.id,
        backupjob_id=row.backupjob_id,
        project_id=row.project_id,
        user_id=row.user_id,
        state=row.state,
        kind=row.kind,
        trigger=row.trigger,
        attempt=row.attempt,
        retry_of=row.retry_of,
        request_id=row.request_id,
        vms=[_vm(vm) for vm in session.scalars(mine)],
        consistency=row.consistency,
        group_consistent=row.group_consistent,
        bytes_total=row.bytes_total,
        bytes_sent=row.bytes_sent,
        bytes_stored=row.bytes_stored,
        error=_reason(row.error),
        scheduled_at=_or_none(row.scheduled_at),
        created_at=_at(row.created_at),
        started_at=_or_none(row.started_at),
        taken_at=_or_none(row.taken_at),
        finished_at=_or_none(row.finished_at),
        proven_restorable_at=_or_none(row.proven_restorable_at),
    )


def _vm(row: BackupJobRunVm) -> notifications.RunVm:
    return notifications.RunVm(row.vm_id, row.state, row.consistency, _reason(row.unproven_reason))


#: its words may name what another project has
_ELSEWHERE = "it went into another project; the API tells whoever began it what it says"


def _restore(_session: Session, row: Restore) -> notifications.RestorePayload:
    return notifications.RestorePayload(
        id=row.id,
        backupjobrun_id=row.backupjobrun_id,
        project_id=row.project_id,
        user_id=row.user_id,
        state=row.state,
        target=row.target["kind"],
        vms=[vm["vm"] for vm in row.target["vms"]],
        request_id=row.request_id,
        bytes_total=row.bytes_total,
        bytes_done=row.bytes_done,
        error=_reason(row.error, _ELSEWHERE if row.target.get("project") else None),
        created_at=_at(row.created_at),
        started_at=_or_none(row.started_at),
        finished_at=_or_none(row.finished_at),
    )


_RECORDS: Mapping[type[Base], Any] = {BackupJob: _job, BackupJobRun: _run, Restore: _restore}


def _reason(document: Any, instead: str | None = None) -> Reason | None:
    """What else it knows is for operators, as in the API. `instead` of its words: not all who read may see them."""
    if not document:
        return None
    return Reason(str(document.get("code", "error")), instead or str(document.get("message", "")))


def _at(micros: int) -> datetime:
    return datetime.fromtimestamp(micros // SECOND, UTC).replace(microsecond=micros % SECOND)


def _or_none(micros: int | None) -> datetime | None:
    return None if micros is None else _at(micros)
