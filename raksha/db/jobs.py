"""Backup jobs: what tenants define, and which of them are due."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, delete, exists, literal, select, update
from sqlalchemy.orm import Session

from raksha.db import rows, runs, telling
from raksha.db.columns import SECOND, now
from raksha.db.models import BackupJob, BackupJobRun, BackupJobVm, Task
from raksha.db.paging import Columns, Page, Wanted, page
from raksha.db.transition import transition
from raksha.errors import StillNeeded
from raksha.notifications import Event
from raksha.states import JobState, Source, TaskKind, TaskState

NOUN = "backup job"

#: what lists can be sorted and filtered by
COLUMNS: Columns = {
    "id": BackupJob.id,
    "name": BackupJob.name,
    "state": BackupJob.state,
    "created_at": BackupJob.created_at,
    "updated_at": BackupJob.updated_at,
}


class Member(Struct, frozen=True):
    """A VM that a job names, and its disks that are left out; or a volume, in the place of a VM."""

    vm_id: str
    excluded_disks: tuple[str, ...] = ()
    source: Source = Source.HYPERVISOR
    #: volumes may be in use by a server
    force: bool = False


def create(session: Session, *, project_id: str, members: Iterable[Member], **definition: Any) -> BackupJob:
    """A new job, active. `definition`: columns of `BackupJob`."""
    job = BackupJob(project_id=project_id, **definition)
    session.add(job)
    session.flush()
    _name_members(session, job.id, members)
    telling.tell(session, Event.JOB_CREATE, BackupJob, job.id)
    return job


def get(session: Session, project_id: str | None, id: str) -> BackupJob:
    """A job of this project (None: of any). Raises `RowNotFound`, also for that of another."""
    mine = () if project_id is None else (BackupJob.project_id == project_id,)
    return rows.one(session, select(BackupJob).where(BackupJob.id == id, *mine), NOUN, id)


def listed(
    session: Session, project_id: str | None, wanted: Wanted, where: Sequence[ColumnElement[bool]] = ()
) -> Page[BackupJob]:
    """Raises `SortKeyUnknown`, `MarkerUnknown`."""
    mine = () if project_id is None else (BackupJob.project_id == project_id,)
    return page(session, select(BackupJob).where(*mine, *where), COLUMNS, wanted)


def members(session: Session, job_ids: Sequence[str]) -> dict[str, list[BackupJobVm]]:
    """The VMs and volumes that jobs name, in the order given; every job has an entry."""
    found: dict[str, list[BackupJobVm]] = {id: [] for id in job_ids}
    order = BackupJobVm.backupjob_id, BackupJobVm.position
    for member in session.scalars(select(BackupJobVm).where(BackupJobVm.backupjob_id.in_(job_ids)).order_by(*order)):
        found[member.backupjob_id].append(member)
    return found


def change(
    session: Session, id: str, version: int, *, members: Iterable[Member] | None = None, **definition: Any
) -> None:
    """Change a job that its reader knew at `version`. `members`: instead of those that it has.

    Raises `RowNotFound`, `ChangedMeanwhile`.
    """
    _change(session, id, version, members, definition)
    telling.tell(session, Event.JOB_UPDATE, BackupJob, id)


def _change(
    session: Session, id: str, version: int, members: Iterable[Member] | None, definition: dict[str, Any]
) -> None:
    # as they were: to ask after they are changed is too late
    before = [] if members is None else _named(session, id)
    rows.change_version(session, BackupJob, NOUN, id, version, {**definition, "updated_at": now()})
    if members is not None:
        named = list(members)
        if _from_storage(before) - _from_storage(named):
            rows.changed(session, update(BackupJob).where(BackupJob.id == id).values(clear_at=now()))
        rows.changed(session, delete(BackupJobVm).where(BackupJobVm.backupjob_id == id))
        _name_members(session, id, named)


def _named(session: Session, id: str) -> list[BackupJobVm]:
    return members(session, [id])[id]


def _from_storage(members: Iterable[Member | BackupJobVm]) -> set[str]:
    return {each.vm_id for each in members if each.source != Source.HYPERVISOR}


def to_clear(session: Session, limit: int) -> list[BackupJob]:
    """Jobs that name something no more of which a snapshot may have stayed, with no run or end of one under way that
    could leave one more."""
    mine = BackupJobRun.backupjob_id == BackupJob.id
    going = exists().where(mine, BackupJobRun.state.in_(runs.UNDER_WAY))
    unfinished = Task.kind == TaskKind.FINISH, Task.state.in_((TaskState.PENDING, TaskState.READY, TaskState.CLAIMED))
    ending = exists().where(mine, Task.backupjobrun_id == BackupJobRun.id, *unfinished)
    due = BackupJob.clear_at <= now(), BackupJob.state != JobState.DELETING, ~going, ~ending
    return list(session.scalars(select(BackupJob).where(*due).order_by(BackupJob.clear_at).limit(limit)))


def cleared(session: Session, id: str, seen: int) -> None:
    """Nothing is left, unless more came since it was `seen` (`clear_at`)."""
    same = BackupJob.id == id, BackupJob.clear_at == seen
    rows.changed(session, update(BackupJob).where(*same).values(clear_at=None))
    rows.reread(session, BackupJob)


def clear_later(session: Session, id: str, seconds: float) -> None:
    """It could not be removed now."""
    left = BackupJob.id == id, BackupJob.clear_at.is_not(None)
    later = now() + literal(round(seconds * SECOND))
    rows.changed(session, update(BackupJob).where(*left).values(clear_at=later))
    rows.reread(session, BackupJob)


def trusts(session: Session, project_id: str, first: str | None = None) -> list[str]:
    """Of the project's jobs: that of the job `first`, then those of jobs that work."""
    mine = BackupJob.project_id == project_id, BackupJob.trust_id.is_not(None)
    order = (BackupJob.id != first), (BackupJob.state == JobState.SUSPENDED), BackupJob.created_at.desc()
    return list(session.scalars(select(BackupJob.trust_id).where(*mine).order_by(*order)))


def trust(session: Session, id: str) -> str | None:
    """By which a job acts. Raises `RowNotFound`."""
    return get(session, None, id).trust_id


def has_trust(session: Session, trust_id: str) -> bool:
    """Whether a job acts by it."""
    return session.scalars(select(BackupJob.id).where(BackupJob.trust_id == trust_id)).first() is not None


def take_over(session: Session, id: str, version: int, *, user_id: str, trust_id: str | None) -> None:
    """It acts for another user from now on. Raises `RowNotFound`, `ChangedMeanwhile`."""
    job = get(session, None, id)
    former = [*job.former_trusts, *([job.trust_id] if job.trust_id is not None else [])]
    _change(session, id, version, None, {"user_id": user_id, "trust_id": trust_id, "former_trusts": former})
    telling.tell(session, Event.JOB_TAKE_OVER, BackupJob, id)


def with_former_trusts(session: Session, limit: int) -> list[BackupJob]:
    """Jobs that were taken over, and whose runs have all ended: trusts of theirs are to be ended."""
    going = exists().where(BackupJobRun.backupjob_id == BackupJob.id, BackupJobRun.state.in_(runs.UNDER_WAY))
    statement = select(BackupJob).where(BackupJob.former_trusts != [], ~going).limit(limit)
    return list(session.scalars(statement))


def forget_former_trusts(session: Session, id: str, ended: Sequence[str]) -> None:
    """They are no more. Raises `RowNotFound`."""
    job = get(session, None, id)
    left = [trust for trust in job.former_trusts if trust not in ended]
    # one that came meanwhile is not lost: the next look sees it
    same = BackupJob.id == id, BackupJob.former_trusts == job.former_trusts
    rows.changed(session, update(BackupJob).where(*same).values(former_trusts=left))


def due(session: Session, limit: int) -> list[BackupJob]:
    """Active jobs whose time has come, the longest waiting first. `runs.fire` starts them."""
    statement = (
        select(BackupJob)
        .where(BackupJob.state == JobState.ACTIVE, BackupJob.next_run_at <= now())
        .order_by(BackupJob.next_run_at)
        .limit(limit)
    )
    return list(session.scalars(statement))


def begin_deleting(session: Session, id: str) -> None:
    """It fires no more; its runs end, and are removed by schedulers, then its row. Runs that have ended go at once.

    Raises `RowNotFound`, `StateConflict` if it is being deleted already.
    """
    transition(session, BackupJob, id, JobState.DELETING, next_run_at=None)
    going = BackupJobRun.backupjob_id == id, BackupJobRun.state.in_(runs.CANCELLABLE)
    unasked = BackupJobRun.cancel_requested_at.is_(None)
    rows.changed(session, update(BackupJobRun).where(*going, unasked).values(cancel_requested_at=now()))
    runs.delete_ended(session, id)


def deleting(session: Session, limit: int) -> list[BackupJob]:
    """Jobs on their way out: runs of them that end now are to be deleted (`runs.delete_ended`), and then the job."""
    statement = select(BackupJob).where(BackupJob.state == JobState.DELETING).order_by(BackupJob.updated_at)
    return list(session.scalars(statement.limit(limit)))


def has_runs(session: Session, id: str) -> bool:
    """Whether any run of it is left."""
    return session.scalars(select(BackupJobRun.id).where(BackupJobRun.backupjob_id == id).limit(1)).first() is not None


def remove(session: Session, id: str, ended: Sequence[str] = ()) -> None:
    """Remove the row of a job that is DELETING and has no runs left, and whose trusts are among those that were ended.

    Raises `RowNotFound`, `StillNeeded`.
    """
    job = get(session, None, id)
    left = exists().where(BackupJobRun.backupjob_id == id)
    deleting = [BackupJob.id == id, BackupJob.state == JobState.DELETING]
    deleting += [BackupJob.former_trusts == job.former_trusts, BackupJob.trust_id.is_not_distinct_from(job.trust_id)]
    if not {*job.former_trusts, job.trust_id} <= {None, *ended}:
        raise StillNeeded(noun=NOUN, id=id, found=job.state, detail="it was taken over meanwhile")
    # what is told of it has to be read before; it is told only if the row goes
    telling.tell(session, Event.JOB_DELETE, BackupJob, id)
    if rows.changed(session, delete(BackupJob).where(*deleting, ~left)) == 0:
        found = get(session, None, id).state
        raise StillNeeded(noun=NOUN, id=id, found=found, detail=f"it is not {JobState.DELETING}, or has runs left")


def _name_members(session: Session, job_id: str, members: Iterable[Member]) -> None:
    session.add_all(
        BackupJobVm(
            backupjob_id=job_id,
            vm_id=m.vm_id,
            excluded_disks=list(m.excluded_disks),
            source=m.source,
            force=m.force,
            position=position,
        )
        for position, m in enumerate(members)
    )
    session.flush()
