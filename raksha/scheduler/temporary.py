"""What backups from storage have in the cloud for the time being: told by agents before it is made, kept with the task.

    {"kind": "temp_snapshot", "volume": V, "id": None, "previous_status": "in-use"}     about to be made
    {"kind": "temp_snapshot", "volume": V, "id": S}                                     it is there
    {"kind": "temp_snapshot", "volume": V, "gone": True}                                it was removed

Kinds are `temp_snapshot`, `temp_volume` and `attachment`. Snapshots and volumes bear the id of the task in their
metadata, so they are found without their ids; an attachment is found by its id, or by the volume that it is of.

    kept    {"volume": V, "previous_status": …, "temp_snapshot_id": S, "temp_volume_id": …, "attachments": […]}

A key that is there with None is of something that may be there. What the next attempt of a task says comes beside what
the last one has said. A FINISH speaks for the backup that it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.columns import now
from raksha.db.models import Task
from raksha.states import TaskKind
from raksha.tasks import Report

_COLUMNS = {"temp_snapshot": "temp_snapshot_id", "temp_volume": "temp_volume_id"}
_ATTACHMENTS = "attachments"
#: volumes of one task that are remembered, and attachments of one volume
_MOST = 64


def told(session: Session, task: Task, said: Report) -> None:
    """A report of a BACKUP or FINISH task was taken."""
    mine = _backup(session, task)
    if mine is None:
        return
    kept = noted(mine.temporary or [], said.made)
    if kept != (mine.temporary or []):
        keep(session, mine, kept)


def keep(session: Session, task: Task, kept: Sequence[Mapping[str, Any]]) -> None:
    """In the place of what was known of a backup."""
    there = {"temporary": list(kept), "clear_at": now()} if kept else {"temporary": None, "clear_at": None}
    rows.changed(session, update(Task).where(Task.id == task.id).values(**there))
    rows.reread(session, Task)


def noted(kept: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is known after a report. What cannot be understood changes nothing."""
    found = {str(each["volume"]): dict(each) for each in kept}
    for said in made:
        volume, kind = said.get("volume"), said.get("kind")
        if not isinstance(volume, str) or not (kind in _COLUMNS or kind == "attachment"):
            continue
        if volume not in found and len(found) >= _MOST:
            continue
        record = found.setdefault(volume, {"volume": volume})
        if said.get("previous_status") and not record.get("previous_status"):
            record["previous_status"] = str(said["previous_status"])
        _note(record, str(kind), said.get("id"), gone=bool(said.get("gone")))
    return [record for record in found.values() if record.keys() - {"volume", "previous_status"}]


def _note(record: dict[str, Any], kind: str, id: object, *, gone: bool) -> None:
    known = str(id) if id else None
    if kind == "attachment":
        others = [each for each in record.get(_ATTACHMENTS, ()) if each is not None and each != known]
        attached = others if gone else [*others, known][-_MOST:]
        if gone and known is None:
            attached = []
        record[_ATTACHMENTS] = attached
        if not attached:
            del record[_ATTACHMENTS]
    elif gone:
        record.pop(_COLUMNS[kind], None)
    else:
        record[_COLUMNS[kind]] = known


def _backup(session: Session, task: Task) -> Task | None:
    if task.kind == TaskKind.BACKUP:
        return task
    mine = Task.backupjobrun_id == task.backupjobrun_id, Task.vm_id == task.vm_id, Task.kind == TaskKind.BACKUP
    return session.scalars(select(Task).where(*mine)).one_or_none()
