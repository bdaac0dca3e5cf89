"""What becomes of restore points after they were read.

    damaged     of each finding: the copies that it names, and what builds on them, and every other copy whose map names
                the same object: DEGRADED, and so is their run. Nothing builds on them or shares their data from then
                on, so the next run of such a disk reads everything
    sound       a copy of which all bytes were read is AVAILABLE (again), and so is a run when all of its copies are

An agent tells what it found; a scheduler looks for the other copies before it ends the verification, all in one
transaction. When it dies between, another does the same again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from raksha.db import backups, rows, tasks, vaults, verifications
from raksha.db.columns import now
from raksha.db.models import BackupJobRun, Task, Verification, VmResourceBackup
from raksha.db.session import Database
from raksha.db.transition import transition, transition_all
from raksha.errors import Damaged, RowNotFound, StateConflict
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.scheduler.consolidating import key_of
from raksha.scheduler.places import writing
from raksha.states import BackupState, RunState, TaskState, VerificationState
from raksha.tasks import Report, Verified
from raksha.types import ResourceKey
from raksha.vault.catalog import Catalog
from raksha.vault.store import SEGMENTS

_log = logging.getLogger(__name__)

_PATIENCE = 60.0
_WHOLE = 100
#: ids named in one statement: servers do not take any number
_AT_ONCE = 500
_FAILED = {"code": "task_failed", "message": "an agent failed and did not say why"}


class _Judged(Struct, frozen=True):
    """Ids of copies."""

    sound: frozenset[str]
    damaged: frozenset[str]
    findings: tuple[dict[str, Any], ...]
    healed: tuple[str, ...]


def begun(session: Session, id: str) -> None:
    """One of its tasks was claimed. Raises `StateConflict`: it is over by now."""
    if verifications.get(session, None, id).state == VerificationState.QUEUED:
        queued = {VerificationState.QUEUED}
        transition(session, Verification, id, VerificationState.RUNNING, start=queued, started_at=now())


def progress(session: Session, id: str, _said: Report) -> None:
    """A report of one of its tasks was taken."""
    disks = [disk for task in tasks.of_verification(session, id) for disk in (task.progress or {}).get("disks", ())]
    verifications.progress(
        session, id, done=sum(disk["done"] for disk in disks), total=sum(disk["total"] for disk in disks)
    )


def settle(session: Session, id: str) -> None:
    """End one whose tasks failed or were cancelled; nothing otherwise: what was read is judged. Again: no harm."""
    row = verifications.get(session, None, id)
    states = [task.state for task in tasks.of_verification(session, id)]
    if row.state not in verifications.GOING or not set(states) <= set(tasks.TERMINAL):
        return
    if states and set(states) == {TaskState.DONE}:
        return
    if row.cancel_requested_at is not None:
        verifications.end(session, id, VerificationState.CANCELLED)
    elif states:
        verifications.end(session, id, VerificationState.ERROR, error=_error(session, id))
    else:
        return
    backups.unpin(session, id)


def _error(session: Session, id: str) -> dict[str, Any]:
    told = (task.error for task in tasks.of_verification(session, id) if task.state == TaskState.ERROR)
    return next((error for error in told if error), _FAILED)


def is_read(session: Session, id: str) -> bool:
    """Whether it is to be judged."""
    states = {task.state for task in tasks.of_verification(session, id)}
    row = verifications.get(session, None, id)
    return not row.boot and row.state == VerificationState.RUNNING and states == {TaskState.DONE}


def judge(database: Database, id: str, access: Access = ENVIRONMENT) -> None:
    """Draw the conclusions. Raises what stores raise: it is tried again."""
    with database.reading() as session:
        if not is_read(session, id):
            return
        done = tasks.of_verification(session, id)
    judged = [_judge(database, task, access) for task in done]
    try:
        database.run(partial(_end, id=id, judged=judged))
    except (StateConflict, RowNotFound):  # another scheduler was first
        return
    lost = sum(len(each.damaged) for each in judged)
    told = {"action": "verify", "verification": id}
    for each in judged:
        for finding in each.findings:
            _log.error("damaged: %s: %s", finding["object"], finding["detail"], extra=told)
        for name in each.healed:
            _log.warning("healed: %s", name, extra=told)
    _log.info("verification %s is done: %d stored copies are damaged", id, lost, extra=told)


def _judge(database: Database, task: Task, access: Access) -> _Judged:
    said = msgspec.convert(task.result, Verified)
    objects = {str(finding["object"]) for finding in said.findings}
    with database.reading() as session:
        vault = vaults.get(session, task.vault_id or "")
        alive = [copy for copy in backups.ground(session, vault.id).alive if copy.state in backups.READABLE]
    by_key = {key_of(copy): copy.id for copy in alive}
    hit = {by_key[key] for key in _hits(said) if key in by_key}
    segments = {name for name in objects if name.startswith(f"{SEGMENTS}/")}
    if segments:
        read = {by_key[key] for key in said.sound if key in by_key} | hit
        others = [copy for copy in alive if copy.id not in read]
        with writing(vault, _PATIENCE, access.credentials(database, vault)) as catalog:
            hit |= {copy.id for copy in _naming(catalog, others, segments)}
    damaged = _with_dependents(alive, hit)
    sound = {by_key[key] for key in said.sound if key in by_key} - damaged
    return _Judged(frozenset(sound), frozenset(damaged), said.findings, said.healed)


def _hits(said: Verified) -> Iterator[ResourceKey]:
    for finding in said.findings:
        yield from msgspec.convert(finding["hits"], tuple[ResourceKey, ...])


def _naming(catalog: Catalog, copies: Sequence[VmResourceBackup], objects: set[str]) -> Iterator[VmResourceBackup]:
    """Copies whose maps need any of these objects. One whose map cannot be read is found when it is verified itself."""
    for copy in copies:
        try:
            names = catalog.map_of(key_of(copy), copy.map_digest or "").object_names()
            if not objects.isdisjoint(names):
                yield copy
        except Damaged:
            continue


def _with_dependents(alive: Iterable[VmResourceBackup], hit: set[str]) -> set[str]:
    found, rest = set(hit), list(alive)
    while more := {copy.id for copy in rest if copy.vm_resource_backup_backing_id in found} - found:
        found |= more
    return found


def _end(session: Session, id: str, judged: Sequence[_Judged]) -> None:
    row = verifications.get(session, None, id)
    sound = {copy for each in judged for copy in each.sound}
    damaged = {copy for each in judged for copy in each.damaged}
    findings = [finding for each in judged for finding in each.findings]
    healed = [name for each in judged for name in each.healed]
    running, available, degraded = {VerificationState.RUNNING}, {BackupState.AVAILABLE}, {BackupState.DEGRADED}
    verifications.end(
        session, id, VerificationState.DONE, start=running,
        copies=len(sound | damaged), findings=findings, healed=healed,
    )  # fmt: skip
    backups.unpin(session, id)
    for some in _batches(damaged):
        lost = VmResourceBackup.id.in_(some)
        transition_all(session, VmResourceBackup, BackupState.DEGRADED, [lost], start=available)
    all_read = row.data and row.percent == _WHOLE
    if all_read:
        for some in _batches(sound):
            read = VmResourceBackup.id.in_(some)
            transition_all(session, VmResourceBackup, BackupState.AVAILABLE, [read], start=degraded)
            rows.changed(session, update(VmResourceBackup).where(read).values(verified_at=now()))
        rows.reread(session, VmResourceBackup)
    of = set[str]()
    for some in _batches(sound | damaged):
        of |= {*session.scalars(select(VmResourceBackup.backupjobrun_id).where(VmResourceBackup.id.in_(some)))}
    for some in _batches(of):
        _move_runs(session, some, findings, all_read)


def _batches(ids: Iterable[str]) -> Iterator[list[str]]:
    ordered = sorted(ids)
    return (ordered[at : at + _AT_ONCE] for at in range(0, len(ordered), _AT_ONCE))


def _move_runs(session: Session, ids: Sequence[str], findings: Sequence[dict[str, Any]], all_read: bool) -> None:
    """Runs say what the worst of their copies is."""
    same_run = VmResourceBackup.backupjobrun_id == BackupJobRun.id
    lost = exists().where(same_run, VmResourceBackup.state == BackupState.DEGRADED)
    unread = exists().where(same_run, VmResourceBackup.verified_at.is_(None))
    mine = BackupJobRun.id.in_(ids)
    why = findings[0] if findings else {}
    error = {"code": why.get("code", "damaged"), "message": why.get("detail", "it builds on what is damaged")}
    for id in session.scalars(
        select(BackupJobRun.id).where(mine, lost, BackupJobRun.state == RunState.AVAILABLE)
    ).all():
        _move(session, id, RunState.DEGRADED, RunState.AVAILABLE, error)
    for id in session.scalars(
        select(BackupJobRun.id).where(mine, ~lost, BackupJobRun.state == RunState.DEGRADED)
    ).all():
        _move(session, id, RunState.AVAILABLE, RunState.DEGRADED, None)
    if all_read:
        whole = mine, ~lost, ~unread, BackupJobRun.state == RunState.AVAILABLE
        rows.changed(session, update(BackupJobRun).where(*whole).values(verified_at=now()))
        rows.reread(session, BackupJobRun)


def _move(session: Session, id: str, to: RunState, start: RunState, error: dict[str, Any] | None) -> None:
    with suppress(StateConflict):  # it is being deleted
        transition(session, BackupJobRun, id, to, start={start}, error=error)
