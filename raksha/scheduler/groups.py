"""The members of a consistency group tell how far they are, and ask how far the group is.

A stage that is past its deadline fails the group when anybody asks, not only when somebody looks after it: whoever is
frozen thaws the sooner.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import groups, rows
from raksha.db.session import Database
from raksha.errors import StateConflict
from raksha.states import BarrierState, MemberState
from raksha.tasks import Enter, Look, Seen, Thawed

LATE = {"code": "group_late", "message": "not all VMs of the group were ready in time"}
_FAILED = {"code": "member_failed", "message": "a VM of the group could not be frozen or captured with the others"}
_OVER = (BarrierState.DONE, BarrierState.FAILED)
#: the column in which a member's time at a stage is kept
_TIMES = {MemberState.FROZEN: "frozen_at", MemberState.CAPTURED: "captured_at"}


def enter(database: Database, settings: SchedulerSettings, said: Enter) -> Seen:
    """Raises `RowNotFound`, `EpochStale` for another claim than the one that joined, `StateConflict` when it is not the
    turn of that and the group goes on; a group that is over is no error: the answer says so."""
    if said.to == MemberState.FAILED:
        database.run(lambda session: groups.fail(session, said.group, said.error or _FAILED, said.vm))
        return look(database, Look(group=said.group))
    try:
        database.run(lambda session: _report(session, settings, said))
    except StateConflict:
        seen = look(database, Look(group=said.group))
        if seen.state not in _OVER:
            raise
        if said.to == MemberState.JOINED:
            database.run(lambda session: groups.begun_anew(session, said.group, said.vm, said.epoch))
        return seen
    return look(database, Look(group=said.group))


def _report(session: Session, settings: SchedulerSettings, said: Enter) -> BarrierState:
    facts: dict[str, Any] = {}
    if said.to in _TIMES:
        facts = {_TIMES[said.to]: said.at, "clock_error_seconds": said.clock_error_seconds}
    seconds = settings.freeze_timeout
    return groups.report(session, said.group, said.vm, said.epoch, said.to, next_seconds=seconds, **facts)


def look(database: Database, said: Look) -> Seen:
    """Raises `RowNotFound`."""
    with database.reading() as session:
        seen = _seen(session, said.group)
    if seen.state in _OVER or seen.now <= seen.deadline_at:
        return seen
    database.run(lambda session: _fail_late(session, said.group))
    with database.reading() as session:
        return _seen(session, said.group)


def thawed(database: Database, said: Thawed) -> None:
    """Raises `RowNotFound`."""
    database.run(lambda session: groups.thawed(session, said.group, said.vm, said.epoch, thawed_at=said.at))


def _seen(session: Session, id: str) -> Seen:
    group = groups.get(session, id)
    return Seen(state=group.state, now=rows.clock(session), deadline_at=group.deadline_at)


def _fail_late(session: Session, id: str) -> None:
    """Looks once more: its last member may have come meanwhile."""
    if groups.get(session, id).deadline_at < rows.clock(session):
        groups.fail(session, id, LATE)
