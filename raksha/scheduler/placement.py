"""Where work goes: which VMs a job means, which agent has each, which agent should do what any can."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.db import jobs, services
from raksha.db.models import BackupJob, SeenVm, Service
from raksha.states import ServiceState
from raksha.tasks import SeenDisk


class Wait(Struct, frozen=True):
    """Why a run cannot start now. Shown with the run while it is queued."""

    code: str
    message: str
    #: it is a slot that others hold, of this kind and name; None: something is not there
    slot: tuple[str, str] | None = None
    #: of which VM; None: of the run
    vm_id: str | None = None
    #: nobody gets that slot now, not even one of it
    none_left: bool = False

    def document(self) -> dict[str, object]:
        slot = {} if self.slot is None else {"slot": list(self.slot)}
        return {"code": self.code, "message": self.message, **slot}


class Placed(Struct, frozen=True):
    """A VM of a run, and the agent that has it."""

    member: jobs.Member
    name: str
    host: str
    #: tasks that the agent may hold at once
    capacity: int
    #: as its agent sees them
    disks: tuple[SeenDisk, ...] = ()


def members(session: Session, job: BackupJob, unowned: bool) -> list[jobs.Member]:
    """The VMs that a job means now: those it names, and those that its selector finds in its project.

    `unowned`: VMs of no project are the project's as well.
    """
    named = [jobs.Member(vm.vm_id, tuple(vm.excluded_disks)) for vm in jobs.members(session, [job.id])[job.id]]
    if not job.vm_selector:
        return named
    known = {member.vm_id for member in named}
    mine = SeenVm.project_id == job.project_id
    visible = mine | SeenVm.project_id.is_(None) if unowned else mine
    for vm in session.scalars(select(SeenVm).where(visible).order_by(SeenVm.vm_id)):
        if vm.vm_id not in known and selected(job.vm_selector, vm.tags, vm.hints):
            known.add(vm.vm_id)
            named.append(jobs.Member(vm.vm_id))
    return named


def selected(selector: Mapping[str, Any], tags: Sequence[str], metadata: Mapping[str, str]) -> bool:
    """`tags`: all of them; `metadata`: all of these keys with these values. A selector that says nothing finds none."""
    wanted_tags, wanted = selector.get("tags") or [], selector.get("metadata") or {}
    if not wanted_tags and not wanted:
        return False
    return set(wanted_tags) <= set(tags) and all(metadata.get(key) == value for key, value in wanted.items())


def place(
    session: Session, project_id: str, member: jobs.Member, alive: Mapping[str, Service], unowned: bool
) -> Placed | Wait:
    """Who has a VM: the host where it was last seen running, else where it was last seen. No other will do: what that
    has of it may be old."""
    theirs = [
        (service, vm)
        for service, vm in services.agents_of(session, member.vm_id)
        if vm.project_id == project_id or (unowned and vm.project_id is None)
    ]
    if not theirs:
        return Wait("vm_not_seen", f"no agent sees VM {member.vm_id}", vm_id=member.vm_id)
    service, vm = theirs[0]
    if service.id not in alive:
        return Wait("agent_gone", f"the agent of host {service.host} is silent", vm_id=member.vm_id)
    if service.state != ServiceState.ENABLED:
        return Wait("agent_disabled", f"the agent of host {service.host} is {service.state}", vm_id=member.vm_id)
    if vm.refusal is not None:
        return Wait("vm_refused", f"{vm.name} cannot be protected: {_said(vm.refusal)}", vm_id=member.vm_id)
    return Placed(member, vm.name, service.host, service.capacity, _disks(vm))


def willing(agents: Iterable[Service], placement: Mapping[str, Any] | None) -> list[Service]:
    """Agents that may do work which any can, with room for it, the least busy for its size first."""
    hosts, zones = (placement or {}).get("hosts"), (placement or {}).get("zones")
    able = [
        agent
        for agent in agents
        if agent.state == ServiceState.ENABLED
        and agent.load < agent.capacity
        and (not hosts or agent.host in hosts)
        and (not zones or agent.zone in zones)
    ]
    return sorted(able, key=lambda agent: (agent.load / agent.capacity, agent.load, agent.id))


def _disks(vm: SeenVm) -> tuple[SeenDisk, ...]:
    """None, if another version of Raksha wrote them: they are hints."""
    try:
        return msgspec.convert(vm.disks, tuple[SeenDisk, ...])
    except msgspec.ValidationError:
        return ()


def _said(refusal: Any) -> str:
    return str(refusal.get("message", refusal)) if isinstance(refusal, dict) else str(refusal)
