"""Restores that agents work on: begun, under way, over.

A restore is one task a VM. What a task makes is written down before it is made; what one says is fenced by the epoch of
its claim, in the transaction that takes the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from raksha.db import backups, restores, rows, slots, tasks
from raksha.db.columns import now
from raksha.db.models import Restore, Task
from raksha.db.transition import transition
from raksha.states import RestoreState, TaskState
from raksha.tasks import Report

#: states in which tasks can move it
GOING = (RestoreState.QUEUED, RestoreState.RUNNING, RestoreState.CANCELLING, RestoreState.NEEDS_ATTENTION)
_FAILED = {"code": "task_failed", "message": "an agent failed and did not say why"}


def begun(session: Session, restore_id: str, epoch: int) -> None:
    """One of its tasks was claimed."""
    mine = Restore.id == restore_id
    rows.changed(session, update(Restore).where(mine, Restore.epoch < epoch).values(epoch=epoch))
    rows.reread(session, Restore)
    if restores.get(session, None, restore_id).state == RestoreState.QUEUED:
        to = RestoreState.RUNNING
        transition(session, Restore, restore_id, to, start={RestoreState.QUEUED}, started_at=now())


def progress(session: Session, restore_id: str, said: Report) -> None:
    """A report of one of its tasks was taken."""
    restore = restores.get(session, None, restore_id)
    for made in said.made:
        if made not in restores.get(session, None, restore_id).made:
            restores.record_made(session, restore_id, restore.epoch, made)
    disks = [disk for task in tasks.of_restore(session, restore_id) for disk in (task.progress or {}).get("disks", ())]
    done, total = sum(disk["done"] for disk in disks), sum(disk["total"] for disk in disks)
    restores.progress(session, restore_id, restore.epoch, done=done, total=total)


def settle(session: Session, restore_id: str) -> None:
    """End a restore whose tasks have ended; nothing otherwise. Again: no harm."""
    restore = restores.get(session, None, restore_id)
    mine = tasks.of_restore(session, restore_id)
    states = {task.state for task in mine}
    if restore.state not in GOING or not mine or not states <= {*tasks.TERMINAL, TaskState.NEEDS_ATTENTION}:
        return
    to, values = _end(restore, mine, states)
    if restore.state == to:
        return
    if restore.state == RestoreState.QUEUED and to not in (RestoreState.CANCELLED, RestoreState.ERROR):
        begun(session, restore_id, restore.epoch)
    transition(session, Restore, restore_id, to, **values)
    if to != RestoreState.NEEDS_ATTENTION:
        backups.unpin(session, restore_id)
        slots.release(session, restore_id)


def _end(restore: Restore, mine: Sequence[Task], states: set[TaskState]) -> tuple[RestoreState, dict[str, Any]]:
    over = {"finished_at": now()}
    if TaskState.NEEDS_ATTENTION in states:
        return RestoreState.NEEDS_ATTENTION, {"error": _error(mine, TaskState.NEEDS_ATTENTION)}
    if states == {TaskState.DONE}:
        return RestoreState.DONE, {"result": {"vms": [task.result for task in mine]}, "error": None, **over}
    cancelled = TaskState.ERROR not in states
    if cancelled and restore.state in (RestoreState.QUEUED, RestoreState.CANCELLING):
        return RestoreState.CANCELLED, over
    return RestoreState.ERROR, {"error": _error(mine, TaskState.ERROR), **over}


def _error(mine: Sequence[Task], state: TaskState) -> dict[str, Any]:
    for task in mine:
        if task.state == state and task.error:
            return {**task.error, "vm_id": task.vm_id}
    return _FAILED
