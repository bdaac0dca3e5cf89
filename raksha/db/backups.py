"""Stored disk copies: parents, chains, pins, trash, and what a collection must know.

Pinning a copy and deleting it both change the copy's own row on a condition, so of the two exactly one succeeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, delete, exists, func, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from raksha.db import rows
from raksha.db.columns import SECOND, now
from raksha.db.models import BackupJobRun, BackupJobRunVmResource, Pin, Task, Tombstone, Vault, VmResourceBackup
from raksha.db.transition import transition, transition_all
from raksha.errors import RowNotFound, StateConflict, StillNeeded
from raksha.states import BackupKind, BackupState, PinHolder, RunState, TaskKind, TaskState

NOUN = "resource backup"

_TERMINAL = (TaskState.DONE, TaskState.ERROR, TaskState.CANCELLED)
_OPEN = (RunState.QUEUED, RunState.READY, RunState.RUNNING, RunState.COMMITTING, RunState.CANCELLING,
         RunState.NEEDS_ATTENTION)  # fmt: skip
_POINTS = (RunState.AVAILABLE, RunState.DEGRADED)
#: states in which a copy is restored from, and can be pinned
READABLE = (BackupState.AVAILABLE, BackupState.DEGRADED)
#: pinned ones are alive whatever else they are
_ALIVE = (BackupState.AVAILABLE, BackupState.DEGRADED, BackupState.TRASHED)


class Ground(Struct, frozen=True):
    """What a collection of a vault works from. All of one moment."""

    #: copies whose segments are alive
    alive: list[VmResourceBackup]
    #: ids of tasks that are over, and so is their run: segments that they stored and that no live map names are garbage
    ended_tasks: set[str]
    #: number of the last commit that the database knows
    last_commit: int
    #: all runs that wrote to the vault, or may
    runs: dict[str, RunState]


class Known(Struct, frozen=True):
    """A stored copy and what its run tells of it."""

    copy: VmResourceBackup
    #: of the commit: copies of a VM are ordered by it
    number: int
    #: its run is a restore point, not on its way out
    is_point: bool


def create(session: Session, resource: BackupJobRunVmResource, vault: Vault, **more: Any) -> VmResourceBackup:
    """The row of a copy in the making. `more`: columns of `VmResourceBackup`."""
    backup = VmResourceBackup(
        backupjobrun_vm_resource_id=resource.id,
        resource=resource.resource,
        vault_id=vault.id,
        vault_service_id=vault.vault_service_id,
        vault_service_url=vault.url,
        project_id=vault.project_id,
        **more,
    )
    session.add(backup)
    session.flush()
    return backup


def get(session: Session, id: str) -> VmResourceBackup:
    """Raises `RowNotFound`."""
    return rows.one(session, select(VmResourceBackup).where(VmResourceBackup.id == id), NOUN, id)


def of_vm(session: Session, vault_id: str, vm_id: str) -> list[Known]:
    """Copies of a VM's disks in a vault that hold data, of any job, the newest commit first."""
    here = VmResourceBackup.vm_id == vm_id, VmResourceBackup.vault_id == vault_id
    return _known(session, [*here, VmResourceBackup.state.in_(_ALIVE)], None)


def on_base(session: Session, vault_id: str, base_image: str, limit: int, *, but_vm: str | None = None) -> list[Known]:
    """Available full copies of disks that share a base image, in the same vault, the newest first: sources of dedupe.

    `but_vm`: not of this one.
    """
    here = VmResourceBackup.vault_id == vault_id, VmResourceBackup.state == BackupState.AVAILABLE
    same = VmResourceBackup.base_image == base_image, VmResourceBackup.kind == BackupKind.FULL
    others = () if but_vm is None else (VmResourceBackup.vm_id != but_vm,)
    return _known(session, [*here, *same, *others, BackupJobRun.state.in_(_POINTS)], limit)


def _known(session: Session, where: Sequence[ColumnElement[bool]], limit: int | None) -> list[Known]:
    run = BackupJobRun.id == VmResourceBackup.backupjobrun_id
    columns = VmResourceBackup, func.coalesce(BackupJobRun.commit_number, 0), BackupJobRun.state
    order = BackupJobRun.commit_number.desc(), VmResourceBackup.created_at.desc(), VmResourceBackup.id
    statement = select(*columns).join(BackupJobRun, run).where(*where).order_by(*order).limit(limit)
    return [Known(copy, number, state in _POINTS) for copy, number, state in session.execute(statement)]


def chain(session: Session, id: str) -> list[VmResourceBackup]:
    """A copy and all that it builds on, itself first. Raises `RowNotFound`."""
    found: list[VmResourceBackup] = []
    step: str | None = id
    while step is not None:
        found.append(get(session, step))
        step = found[-1].vm_resource_backup_backing_id
    return found


def with_parents(session: Session, ids: Iterable[str]) -> dict[str, VmResourceBackup]:
    """Copies and all that they build on, by id, each looked up once. Raises `RowNotFound`."""
    found: dict[str, VmResourceBackup] = {}
    for id in ids:
        step: str | None = id
        while step is not None and step not in found:
            found[step] = get(session, step)
            step = found[step].vm_resource_backup_backing_id
    return found


def children(session: Session, id: str) -> list[VmResourceBackup]:
    """Copies that build on this one."""
    on_it = VmResourceBackup.vm_resource_backup_backing_id == id
    return list(session.scalars(select(VmResourceBackup).where(on_it)))


def of_run(session: Session, run_id: str) -> list[VmResourceBackup]:
    mine = VmResourceBackup.backupjobrun_id == run_id
    return list(session.scalars(select(VmResourceBackup).where(mine).order_by(VmResourceBackup.id)))


# -- pins -------------------------------------------------------------------------------------------


def pin(session: Session, kind: PinHolder, holder_id: str, backup_ids: Iterable[str]) -> None:
    """Keep copies as they are until `unpin`; again for the same holder is no harm.

    Raises `RowNotFound`, `StateConflict` for one that is not available (any more): the caller drops the transaction.
    """
    held = set(session.scalars(select(Pin.vm_resource_backup_id).where(Pin.holder_id == holder_id)))
    new = sorted(set(backup_ids) - held)  # in one order: two who pin the same never block each other
    if not new:
        return
    readable = VmResourceBackup.state.in_(READABLE)
    statement = update(VmResourceBackup).where(VmResourceBackup.id.in_(new), readable)
    if rows.changed(session, statement.values(pin_count=VmResourceBackup.pin_count + 1)) != len(new):
        for id in new:
            if (found := get(session, id).state) not in READABLE:
                raise StateConflict(noun=NOUN, id=id, found=found, wanted=BackupState.AVAILABLE, to="pinned")
        raise RowNotFound(noun=NOUN, id=", ".join(new))
    session.add_all(Pin(vm_resource_backup_id=id, holder_kind=kind, holder_id=holder_id) for id in new)
    session.flush()
    rows.reread(session, VmResourceBackup)


def unpin(session: Session, holder_id: str) -> int:
    """Let go of all copies that a holder has pinned. How many."""
    held = session.scalars(select(Pin.vm_resource_backup_id).where(Pin.holder_id == holder_id)).all()
    count = 0
    for id in sorted(held):
        mine = Pin.holder_id == holder_id, Pin.vm_resource_backup_id == id
        # who removes the row counts it down: two who do it at once count once
        if rows.changed(session, delete(Pin).where(*mine)) == 1:
            count += 1
            less = update(VmResourceBackup).where(VmResourceBackup.id == id)
            rows.changed(session, less.values(pin_count=VmResourceBackup.pin_count - 1))
    rows.reread(session, VmResourceBackup)
    return count


def pinned_by(session: Session, holder_id: str) -> list[VmResourceBackup]:
    statement = select(VmResourceBackup).join(Pin, Pin.vm_resource_backup_id == VmResourceBackup.id)
    return list(session.scalars(statement.where(Pin.holder_id == holder_id).order_by(VmResourceBackup.id)))


def pin_holders(session: Session) -> list[tuple[PinHolder, str]]:
    """Everybody who pins something: for the one who looks for pins of work that is over."""
    statement = select(Pin.holder_kind, Pin.holder_id).distinct().order_by(Pin.holder_id)
    return [(kind, id) for kind, id in session.execute(statement)]


# -- the way out ------------------------------------------------------------------------------------


def fail(session: Session, run_id: str) -> None:
    """Copies in the making are none: their run failed. They build on nothing, and keep nothing from going."""
    mine = VmResourceBackup.backupjobrun_id == run_id
    nothing = {"vm_resource_backup_backing_id": None}
    transition_all(session, VmResourceBackup, BackupState.ERROR, [mine], start={BackupState.CREATING}, **nothing)


def trash(session: Session, id: str) -> None:
    """No new reader gets it; who has it pinned reads on, who builds on it stays whole. Raises `StateConflict`."""
    transition(session, VmResourceBackup, id, BackupState.TRASHED, trashed_at=now())


def begin_deleting(session: Session, id: str) -> None:
    """Its objects may go now. Raises `StillNeeded` while it is pinned or others build on it, `StateConflict`."""
    child = aliased(VmResourceBackup)
    # through a table of its own: MariaDB does not look into the table that it changes
    on_it = select(child.vm_resource_backup_backing_id).where(child.vm_resource_backup_backing_id == id).limit(1)
    nobody = {
        "somebody reads it": VmResourceBackup.pin_count == 0,
        "others build on it": ~VmResourceBackup.id.in_(select(on_it.subquery().c.vm_resource_backup_backing_id)),
    }
    transition(session, VmResourceBackup, id, BackupState.DELETING, where=nobody)


def swap_map(
    session: Session, id: str, *, old: str, new: str, map_size: int, backing_id: str | None, **more: Any
) -> None:
    """Put another map in the place of `old`: where a consolidation is decided. `old` stays known until nobody reads it
    (`forget_other`). `more`: columns that change with it.

    Raises `RowNotFound`, and `StillNeeded` when the copy is no longer as the consolidation found it.
    """
    as_found = VmResourceBackup.id == id, VmResourceBackup.map_digest == old
    free = VmResourceBackup.state == BackupState.AVAILABLE, VmResourceBackup.other_map_digest.is_(None)
    values = {"map_digest": new, "other_map_digest": old, "map_size": map_size, **more}
    statement = update(VmResourceBackup).where(*as_found, *free)
    if rows.changed(session, statement.values(**values, vm_resource_backup_backing_id=backing_id)) == 0:
        found = get(session, id)
        raise StillNeeded(noun=NOUN, id=id, found=found.state, detail=f"its map is {found.map_digest}")
    rows.reread(session, VmResourceBackup)


def swapped(session: Session, vault_id: str, vm_id: str | None = None) -> list[VmResourceBackup]:
    """Copies (of one VM) with a new map of which somebody may still read the old one, and what that builds on."""
    mine = [VmResourceBackup.vault_id == vault_id, VmResourceBackup.other_map_digest.is_not(None)]
    if vm_id is not None:
        mine.append(VmResourceBackup.vm_id == vm_id)
    return list(session.scalars(select(VmResourceBackup).where(*mine).order_by(VmResourceBackup.id)))


def forget_other(session: Session, copy: VmResourceBackup) -> None:
    """The vault names the new map of a copy, and nobody reads the old one. Raises `StillNeeded` while somebody does."""
    unread = VmResourceBackup.pin_count == 0, VmResourceBackup.map_digest == copy.map_digest
    statement = update(VmResourceBackup).where(VmResourceBackup.id == copy.id, *unread)
    if rows.changed(session, statement.values(other_map_digest=None)) == 0:
        raise StillNeeded(noun=NOUN, id=copy.id, found=copy.state, detail="somebody reads it")
    rows.reread(session, VmResourceBackup)


# -- collecting -------------------------------------------------------------------------------------


def ground(session: Session, vault_id: str) -> Ground:
    """What is alive and what has ended, for a collection. The session must be one of `Database.reading`: one moment."""
    vault = session.get(Vault, vault_id)
    if vault is None:
        raise RowNotFound(noun="vault", id=vault_id)
    pinned = exists().where(Pin.vm_resource_backup_id == VmResourceBackup.id)
    alive = or_(VmResourceBackup.state.in_(_ALIVE), pinned)
    copies = session.scalars(select(VmResourceBackup).where(VmResourceBackup.vault_id == vault_id, alive))
    # a task is done before its run is published: until then no row says that what it stored is alive
    open_run = exists().where(BackupJobRun.id == Task.backupjobrun_id, BackupJobRun.state.in_(_OPEN))
    ended = Task.vault_id == vault_id, Task.state.in_(_TERMINAL), ~open_run
    tasks = session.scalars(select(Task.id).where(*ended))
    buried = session.scalars(select(Tombstone.task_id).where(Tombstone.vault_id == vault_id))
    states = session.execute(select(BackupJobRun.id, BackupJobRun.state).where(BackupJobRun.vault_id == vault_id))
    return Ground(list(copies), {*tasks, *buried}, vault.last_commit, {id: state for id, state in states})  # noqa: C416


def forget(session: Session, task_ids: Iterable[str]) -> int:
    """Remove tombstones of tasks of which no segment is listed any more. How many."""
    return rows.changed(session, delete(Tombstone).where(Tombstone.task_id.in_(list(task_ids))))


def buried(session: Session, vault_id: str, older_than: float) -> set[str]:
    """Tombstones that have stood for so many seconds: listings that lag have caught up with them."""
    old = Tombstone.vault_id == vault_id, Tombstone.created_at < now() - literal(round(older_than * SECOND))
    return set(session.scalars(select(Tombstone.task_id).where(*old)))


def known_maps(session: Session, run_id: str) -> set[str] | None:
    """Digests of all maps of a run that are, or are about to be, of use. None: a consolidation of it is under way."""
    mine = Task.backupjobrun_id == run_id, Task.kind == TaskKind.CONSOLIDATE, Task.state.not_in(_TERMINAL)
    if session.scalars(select(Task.id).where(*mine).limit(1)).first() is not None:
        return None
    columns = select(VmResourceBackup.map_digest, VmResourceBackup.other_map_digest)
    found = session.execute(columns.where(VmResourceBackup.backupjobrun_id == run_id))
    return {digest for pair in found for digest in pair if digest is not None}
