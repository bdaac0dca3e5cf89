"""What is going on in a deployment, as its database says: which phases, and every state that a run was ever seen in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.columns import SECOND
from raksha.db.models import BackupJobRun, BackupJobRunVm, Barrier, Restore, Task, Vault
from raksha.db.session import Database
from raksha.states import BarrierState, Consistency, RestoreState, RunState, TaskKind, TaskState

#: where a run or restore can be when something is killed
PHASES = (
    "queued", "ready", "claimed", "gathering", "freezing", "snapshotting", "streaming", "stored", "committing",
    "finishing", "retention", "collecting", "restoring",
)  # fmt: skip
ENDED = (RunState.AVAILABLE, RunState.CANCELLED, RunState.ERROR)
#: of a run that retention has removed
GONE = "gone"
RESTORED = (RestoreState.DONE, RestoreState.CANCELLED, RestoreState.ERROR)
_OF_RUN = {RunState.QUEUED: "queued", RunState.READY: "ready", RunState.COMMITTING: "committing",
           RunState.DELETING: "retention"}  # fmt: skip
_OF_GROUP = {BarrierState.GATHERING: "gathering", BarrierState.FREEZING: "freezing",
             BarrierState.SNAPSHOTTING: "snapshotting"}  # fmt: skip
_OPEN = (TaskState.READY, TaskState.CLAIMED)


class Watcher:
    """For one thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: by id, the facts of each run when it was last seen
        self.runs: dict[str, dict[str, Any]] = {}
        #: runs that were seen as restore points
        self.points: set[str] = set()
        #: of each VM of each run when it was taken, epoch seconds, and whether its file systems stood still
        self.taken: dict[tuple[str, str], tuple[float, bool]] = {}

    def look(self) -> set[str]:
        """The phases that something is in now. Raises `DatabaseUnavailable`."""
        with self._database.reading() as session:
            self._note(session)
            return set(_phases(session))

    def _note(self, session: Session) -> None:
        for seen in self.runs.values():
            seen["state"] = GONE
        for run in session.scalars(select(BackupJobRun)):
            self.runs[run.id] = {
                "job": run.backupjob_id, "state": run.state, "trigger": run.trigger, "scheduled_at": run.scheduled_at,
                "retry_of": run.retry_of, "error": run.error,
            }  # fmt: skip
            if run.state == RunState.AVAILABLE:
                self.points.add(run.id)
        for vm in session.scalars(select(BackupJobRunVm).where(BackupJobRunVm.taken_at.is_not(None))):
            quiesced = vm.consistency == Consistency.QUIESCED
            self.taken[vm.backupjobrun_id, vm.vm_id] = (vm.taken_at or 0) / SECOND, quiesced


def _phases(session: Session) -> Iterator[str]:
    for of_run in session.scalars(select(BackupJobRun.state).where(BackupJobRun.state.not_in(ENDED)).distinct()):
        if of_run in _OF_RUN:
            yield _OF_RUN[of_run]
    for of_group in session.scalars(select(Barrier.state).where(Barrier.state.in_(_OF_GROUP)).distinct()):
        yield _OF_GROUP[of_group]
    open_ = Task.state.in_(_OPEN) | ((Task.kind == TaskKind.BACKUP) & BackupJobRun.state.in_([RunState.RUNNING]))
    joined = select(Task.kind, Task.state, Task.progress).outerjoin(
        BackupJobRun, BackupJobRun.id == Task.backupjobrun_id
    )
    for kind, state, progress in session.execute(joined.where(open_)):
        if kind == TaskKind.BACKUP and state != TaskState.READY:
            sent = any(disk.get("sent") for disk in (progress or {}).get("disks", ()))
            yield "stored" if state == TaskState.DONE else "streaming" if sent else "claimed"
        elif kind == TaskKind.FINISH:
            yield "finishing"
        elif kind == TaskKind.RESTORE and state == TaskState.CLAIMED:
            yield "restoring"
        elif kind == TaskKind.CONSOLIDATE:
            yield "retention"
    if session.scalars(select(Vault.id).where(Vault.collector_until > rows.clock(session))).first():
        yield "collecting"


def unfinished(session: Session) -> list[str]:
    """What is still under way: runs, restores, tasks."""
    found = [f"run {run.id}: {run.state} {run.queued_reason}" for run in session.scalars(
        select(BackupJobRun).where(BackupJobRun.state.not_in((*ENDED, RunState.NEEDS_ATTENTION))))]  # fmt: skip
    found += [f"restore {one.id}: {one.state}" for one in session.scalars(
        select(Restore).where(Restore.state.not_in((*RESTORED, RestoreState.NEEDS_ATTENTION))))]  # fmt: skip
    over = (TaskState.DONE, TaskState.ERROR, TaskState.CANCELLED, TaskState.NEEDS_ATTENTION)
    found += [f"{task.kind} {task.id} of {task.backupjobrun_id or task.restore_id} on {task.host}: {task.state}"
              for task in session.scalars(select(Task).where(Task.state.not_in(over)))]  # fmt: skip
    return found
