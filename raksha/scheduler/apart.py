"""What keeps runs apart: slots of VMs, hosts, projects and vaults, and the room that a project has.

Each of these is a reason to wait that the database alone knows, so `at_once` looks before anybody else is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.db import room, slots, tasks, usage
from raksha.db.models import BackupJob, BackupJobRun, Reservation, VaultService
from raksha.db.slots import Slot
from raksha.scheduler.placement import Placed, Wait
from raksha.scheduler.round import Round


def at_once(
    session: Session, round_: Round, run: BackupJobRun, job: BackupJob, service: VaultService, named: Collection[str]
) -> Wait | None:
    """Why a run has to wait whichever hosts its VMs are on. `named`: VMs that cannot be left out."""
    own = usage.limits(session, job.project_id)
    shared = _shared(round_, job, service, own)
    blocked = (
        no_room(session, round_, job, own)
        or vm_in_use(session, run, named)
        or kept(round_, [*(Slot("vm", id) for id in named), *shared])
    )
    # one that was overtaken for too long has to say what else it wants, for that is to be kept for it
    if blocked is not None or round_.waited(run) > round_.settings.max_overtaken:
        return blocked
    for slot in shared:
        others = sum(holder != run.id for holder in slots.holders(session, slot.kind, slot.name))
        if others >= slot.limit:
            return busy(slot)
    return None


def busy(slot: Slot) -> Wait:
    said = f"slots of {slot.kind} {slot.name} are in use: {slot.count} wanted, {slot.limit} in all"
    return Wait(f"{slot.kind}_busy", said, slot=(slot.kind, slot.name), none_left=slot.count == 1)


def wanted_slots(
    round_: Round, job: BackupJob, service: VaultService, placed: Sequence[Placed], own: Mapping[str, int]
) -> list[Slot]:
    wanted = [Slot("vm", each.member.vm_id) for each in placed]
    for host, there in _by_host(placed).items():
        wanted.append(Slot("host", host, there[0].capacity, min(len(there), there[0].capacity)))
    return [*wanted, *_shared(round_, job, service, own)]


def _shared(round_: Round, job: BackupJob, service: VaultService, own: Mapping[str, int]) -> list[Slot]:
    """Of project and vault."""
    wanted = []
    limit = own.get("concurrent_runs", round_.settings.max_runs_per_project)
    if limit >= 0:
        wanted.append(Slot("project", job.project_id, limit))
    if service.max_runs is not None:
        wanted.append(Slot("vault", service.id, service.max_runs))
    return wanted


def _by_host(placed: Iterable[Placed]) -> dict[str, list[Placed]]:
    found: dict[str, list[Placed]] = {}
    for each in placed:
        if each.host is not None:
            found.setdefault(each.host, []).append(each)
    return found


def too_large(job: BackupJob, placed: Sequence[Placed]) -> Wait | None:
    """A group freezes together, so its members on a host are claimed together."""
    for host, there in _by_host(placed).items():
        if job.consistency_group and len(there) > there[0].capacity:
            least = f"{len(there)} VMs of the group are on host {host}, whose agent takes {there[0].capacity} at once"
            return Wait("group_too_large", least)
    return None


def no_room(session: Session, round_: Round, job: BackupJob, own: Mapping[str, int]) -> Wait | None:
    """It waits as for a vault that is away: once somebody, or retention, has made room it starts by itself."""
    settings, project = round_.settings, job.project_id
    may = room.most(own, room.Most(settings.max_runs, settings.max_stored_bytes))
    if may.stored_bytes >= 0 and project not in round_.stored:
        round_.stored[project] = usage.stored_bytes(session, project)
    short = room.shortage(session, job, may, round_.stored.get(project))
    if short is None:
        return None
    said = f"the limit of {short.what} of its project is {short.limit}; with this run it would be {short.wanted}"
    return Wait(f"{short.name}_reached", said)


def vm_in_use(session: Session, run: BackupJobRun, vm_ids: Collection[str]) -> Wait | None:
    """One run per VM over all jobs: the commonest reason to wait, and one that says who."""
    mine = Reservation.kind == "vm", Reservation.name.in_(vm_ids), Reservation.holder_id != run.id
    held = session.scalars(select(Reservation).where(*mine).order_by(Reservation.name)).first()
    if held is None:
        return None
    return Wait("vm_busy", f"VM {held.name} is in use by {held.holder_id}", slot=("vm", held.name), none_left=True)


def claimed_away(session: Session, run: BackupJobRun, wanted: Iterable[Slot]) -> Wait | None:
    """Its agent has so much of what any can do that a group could not be claimed as a whole."""
    for slot in wanted:
        if slot.kind != "host":
            continue
        others = sum(holder != run.id for holder in slots.holders(session, "host", slot.name))
        claimed = tasks.held_of_anybodys(session, slot.name)
        if claimed and others + claimed + slot.count > slot.limit:
            said = f"host {slot.name} has {claimed} tasks of any host at work: {slot.count} wanted, {slot.limit} in all"
            return Wait("host_busy", said, slot=("host", slot.name))
    return None


def kept(round_: Round, wanted: Iterable[Slot]) -> Wait | None:
    for slot in wanted:
        if (slot.kind, slot.name) in round_.kept:
            kept = f"slots of {slot.kind} {slot.name} are kept for a run that has waited longer"
            return Wait("overtaken", kept, slot=(slot.kind, slot.name))
    return None
