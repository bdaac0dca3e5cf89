"""Consistency groups: one barrier for all VMs of a run.

    members      WAITING -> JOINED -> FROZEN -> CAPTURED -> THAWED           each under the epoch of its own claim
    group        GATHERING -> FREEZING -> SNAPSHOTTING -> DONE               moves on when its last member has
    anything wrong, or the deadline: the group is FAILED, and every member thaws
    what a member captured is lost with its claim: it is FAILED, even where the group is DONE

A member snapshots only while the group is SNAPSHOTTING and it is FROZEN under the same epoch: a new claim of its task
finds its epoch stale and fails the group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from sqlalchemy import func, literal, select, update
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.columns import SECOND, new_id, now
from raksha.db.models import Barrier, BarrierMember
from raksha.db.transition import transition
from raksha.errors import StateConflict
from raksha.states import BarrierState, MemberState

NOUN = "consistency group"


class Stage(Struct, frozen=True):
    """What the members do while the group is in a state, and what follows when all have."""

    #: where a member comes from and goes to
    start: MemberState
    to: MemberState
    then: BarrierState


STAGES: Mapping[BarrierState, Stage] = {
    BarrierState.GATHERING: Stage(MemberState.WAITING, MemberState.JOINED, BarrierState.FREEZING),
    BarrierState.FREEZING: Stage(MemberState.JOINED, MemberState.FROZEN, BarrierState.SNAPSHOTTING),
    BarrierState.SNAPSHOTTING: Stage(MemberState.FROZEN, MemberState.CAPTURED, BarrierState.DONE),
}
_OPEN = tuple(STAGES)
_GONE = {"code": "group_failed", "message": "what it captured with the others is lost; it was captured again by itself"}


def open_group(
    session: Session, run_id: str, tasks: Mapping[str, str], seconds: float, *, id: str | None = None
) -> Barrier:
    """A group of VMs, `tasks` by VM, that must have gathered within so many seconds. `id`: it is to have this one."""
    deadline = rows.clock(session) + round(seconds * SECOND)
    group = Barrier(id=id or new_id(), backupjobrun_id=run_id, deadline_at=deadline)
    session.add(group)
    session.flush()
    session.add_all(BarrierMember(barrier_id=group.id, vm_id=vm, task_id=task) for vm, task in sorted(tasks.items()))
    session.flush()
    return group


def of_run(session: Session, run_id: str) -> Barrier | None:
    return session.scalars(select(Barrier).where(Barrier.backupjobrun_id == run_id)).one_or_none()


def get(session: Session, id: str) -> Barrier:
    """Raises `RowNotFound`."""
    return rows.one(session, select(Barrier).where(Barrier.id == id), NOUN, id)


def members(session: Session, id: str) -> list[BarrierMember]:
    statement = select(BarrierMember).where(BarrierMember.barrier_id == id).order_by(BarrierMember.vm_id)
    return list(session.scalars(statement))


def report(
    session: Session, id: str, vm_id: str, epoch: int, to: MemberState, *, next_seconds: float, **facts: Any
) -> BarrierState:
    """A member has joined, frozen or captured, under the epoch of its claim. Returns what the group is now.

    The last one moves the group on, and the next stage must be over within `next_seconds`. Repeated: no harm.
    `facts`: `frozen_at`, `captured_at`, `clock_error_seconds`. Raises `StateConflict` when it is not the group's turn
    for that (any more), `EpochStale` for another claim than the one that joined.
    """
    # the group's row first, by a real write: two last members stand in line here, else neither would see the other
    rows.changed(session, update(Barrier).where(Barrier.id == id).values(reports=Barrier.reports + 1))
    rows.reread(session, Barrier)
    group = get(session, id)
    member = _member(session, id, vm_id)
    if member.state == to and member.epoch == epoch:
        return group.state
    stage = STAGES.get(group.state)
    if stage is None or stage.to != to or group.deadline_at < rows.clock(session):
        raise StateConflict(noun=NOUN, id=id, found=group.state, wanted=_wanted(to), to=f"{to} by {vm_id}")
    if to == MemberState.JOINED:
        _take_part(session, member, epoch)
    if member.state != to:
        transition(session, BarrierMember, member.id, to, start={stage.start}, epoch=epoch, **facts)
    if _count(session, id, stage.start) == 0:
        deadline = now() + literal(round(next_seconds * SECOND))
        transition(session, Barrier, id, stage.then, start={group.state}, deadline_at=deadline)
    return get(session, id).state


def thawed(session: Session, id: str, vm_id: str, epoch: int, **facts: Any) -> bool:
    """A member's file systems go on, well or not. `facts`: `thawed_at`. False: known already."""
    member = _member(session, id, vm_id)
    if member.state != MemberState.CAPTURED or member.epoch != epoch:
        return False
    transition(session, BarrierMember, member.id, MemberState.THAWED, epoch=epoch, **facts)
    return True


def begun_anew(session: Session, id: str, vm_id: str, epoch: int) -> bool:
    """A newer claim of a member asks to join a group that is over: it takes its snapshot without the others. False:
    known already."""
    member = _member(session, id, vm_id)
    if member.epoch >= epoch or member.state not in (MemberState.CAPTURED, MemberState.THAWED):
        return False
    to = MemberState.FAILED
    transition(
        session, BarrierMember, member.id, to, start={member.state}, frozen_at=None, captured_at=None, error=_GONE
    )
    return True


def fail(session: Session, id: str, error: Any, vm_id: str | None = None) -> bool:
    """The group is over, because of a member if one is named: all thaw. False: it was over before."""
    group = get(session, id)
    if group.state not in _OPEN:
        return False
    if vm_id is not None:
        member = _member(session, id, vm_id)
        if member.state not in (MemberState.THAWED, MemberState.FAILED):
            transition(session, BarrierMember, member.id, MemberState.FAILED, start={member.state}, error=error)
    try:
        transition(session, Barrier, id, BarrierState.FAILED, error=error)
    except StateConflict:  # it came to its end meanwhile
        return False
    return True


def overdue(session: Session, limit: int) -> list[Barrier]:
    """Groups that are past their deadline."""
    late = Barrier.state.in_(_OPEN), Barrier.deadline_at < now()
    return list(session.scalars(select(Barrier).where(*late).order_by(Barrier.deadline_at).limit(limit)))


def _member(session: Session, id: str, vm_id: str) -> BarrierMember:
    mine = BarrierMember.barrier_id == id, BarrierMember.vm_id == vm_id
    return rows.one(session, select(BarrierMember).where(*mine), "member of a group", vm_id)


def _take_part(session: Session, member: BarrierMember, epoch: int) -> None:
    """While the group gathers, a newer claim may step in the place of an older one."""
    older = BarrierMember.id == member.id, BarrierMember.epoch < epoch
    rows.changed(session, update(BarrierMember).where(*older).values(epoch=epoch))
    rows.reread(session, BarrierMember)


def _count(session: Session, id: str, state: MemberState) -> int:
    mine = BarrierMember.barrier_id == id, BarrierMember.state == state
    return session.execute(select(func.count()).select_from(BarrierMember).where(*mine)).scalar_one()


def _wanted(to: MemberState) -> str:
    return ", ".join(state for state, stage in STAGES.items() if stage.to == to)
