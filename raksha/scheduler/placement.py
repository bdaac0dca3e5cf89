"""Where work goes: which VMs a job means, which agent has each, which agent should do what any can."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import false, select
from sqlalchemy.orm import Session

from raksha.db import jobs, services, tasks
from raksha.db.models import BackupJob, SeenVm, Service
from raksha.states import ServiceState, Source
from raksha.tasks import SeenDisk

if TYPE_CHECKING:
    from raksha.openstack.compute import ListedServer
    from raksha.scheduler.whose import Cloud


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
    #: to wait longer would not help
    final: bool = False

    def document(self) -> dict[str, object]:
        slot = {} if self.slot is None else {"slot": list(self.slot)}
        final = {"retryable": False} if self.final else {}
        return {"code": self.code, "message": self.message, **slot, **final}


#: what agents must be capable of, to take disks from storage
STORAGE = "storage"

#: of a server that is on no host, and whose disk is an image
_SHELVED = "SHELVED_OFFLOADED"

#: of a server that Nova has started from a rescue disk, with its own beside that
_RESCUE = "RESCUE"


class Placed(Struct, frozen=True):
    """A VM of a run, and the agent that has it."""

    member: jobs.Member
    #: None: who captures it will tell
    name: str | None
    #: None: whoever claims it
    host: str | None = None
    #: tasks that the agent may hold at once
    capacity: int = 0
    #: as its agent sees them
    disks: tuple[SeenDisk, ...] = ()


def members(session: Session, job: BackupJob, unowned: bool, cloud: Cloud | None = None) -> list[jobs.Member]:
    """The VMs that a job means now: those it names, and those that its selector finds in its project, by what Nova
    says of its servers, and definitions of other VMs.

    `unowned`: VMs of no project are the project's as well. `cloud`: None: there is no Nova.
    """
    named = [
        jobs.Member(vm.vm_id, tuple(vm.excluded_disks), vm.source, vm.force)
        for vm in jobs.members(session, [job.id])[job.id]
    ]
    if not job.vm_selector:
        return named
    known = {member.vm_id for member in named}
    for id, tags, metadata in _selectable(session, job.project_id, unowned, cloud):
        if id not in known and selected(job.vm_selector, tags, metadata):
            known.add(id)
            named.append(jobs.Member(id))
    return named


def _selectable(
    session: Session, project_id: str, unowned: bool, cloud: Cloud | None
) -> Iterator[tuple[str, Sequence[str], Mapping[str, str]]]:
    """VMs of the project with tags and metadata."""
    servers = cloud.servers if cloud is not None else {}
    for id in sorted(servers):
        yield id, servers[id].tags, servers[id].metadata
    visible = SeenVm.project_id == project_id if _agents_say(cloud) else false()
    if unowned:
        visible |= SeenVm.project_id.is_(None)
    for vm in session.scalars(select(SeenVm).where(visible).order_by(SeenVm.vm_id)):
        if vm.vm_id not in servers:
            yield vm.vm_id, vm.tags, vm.hints


def _agents_say(cloud: Cloud | None) -> bool:
    """Whether a VM that Nova does not show is a project's because an agent says so."""
    return cloud is None or cloud.others


def selected(selector: Mapping[str, Any], tags: Sequence[str], metadata: Mapping[str, str]) -> bool:
    """`tags`: all of them; `metadata`: all of these keys with these values. A selector that says nothing finds none."""
    wanted_tags, wanted = selector.get("tags") or [], selector.get("metadata") or {}
    if not wanted_tags and not wanted:
        return False
    return set(wanted_tags) <= set(tags) and all(metadata.get(key) == value for key, value in wanted.items())


def place(
    session: Session,
    project_id: str,
    member: jobs.Member,
    alive: Mapping[str, Service],
    unowned: bool,
    cloud: Cloud | None = None,
) -> Placed | Wait:
    """Who has a VM: of a server, the host that Nova has it on. Of any other VM, the host where it was last seen
    running, else where it was last seen. No other will do: what that has of it may be old."""
    found = services.agents_of(session, member.vm_id)
    server = None if cloud is None else cloud.servers.get(member.vm_id)
    if server is not None and server.status == _SHELVED:
        return _from_its_image(server, member, alive.values())
    if server is not None:
        theirs = _with_server(project_id, server, found)
    else:
        owned = _agents_say(cloud)
        theirs = [
            pair
            for pair in found
            if (owned and pair[1].project_id == project_id) or (unowned and pair[1].project_id is None)
        ]
        if not theirs and not owned:
            gone = f"Nova has no server {member.vm_id} in this project"
            return Wait("server_gone", gone, vm_id=member.vm_id, final=True)
    if isinstance(theirs, Wait):
        return theirs
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


def place_anywhere(member: jobs.Member, alive: Iterable[Service], placement: Mapping[str, Any] | None) -> Placed | Wait:
    """What is taken from storage: any agent that can do that will do, once it has room."""
    if able(alive, placement, STORAGE):
        return Placed(member, None)
    kind = "volume" if member.source == Source.VOLUME else "VM"
    said = f"no agent that may can take {kind} {member.vm_id} from storage"
    return Wait("no_storage_agent", said, vm_id=member.vm_id)


def _from_its_image(server: ListedServer, member: jobs.Member, alive: Iterable[Service]) -> Placed | Wait:
    """Nova has made an image of its boot disk, which any agent can read. Its volumes nobody can: they are reserved for
    it, and Cinder makes no snapshots of such; whoever leaves them out has the rest."""
    if len(server.volumes) > len(member.excluded_disks):
        said = f"Nova has shelved server {server.name}, and Cinder lets nobody read its volumes until it is unshelved"
        return Wait("server_on_no_host", f"{said}, or its job leaves them out: {server.status}", vm_id=server.id)
    # whom the job allows is seen to at the claim
    return place_anywhere(replace(member, source=Source.STORAGE), alive, None)


def _with_server(
    project_id: str, server: ListedServer, found: Sequence[tuple[Service, SeenVm]]
) -> list[tuple[Service, SeenVm]] | Wait:
    """Agents that see it as the project's, on the host that Nova says."""
    # only who has a Nova needs what asks it
    from raksha.openstack.compute import host_id

    if not server.host_id:
        return Wait("server_on_no_host", f"Nova has server {server.name} on no host: {server.status}", vm_id=server.id)
    if server.status == _RESCUE:
        rescued = f"Nova has server {server.name} in rescue: it runs from another disk than its own"
        return Wait("server_in_rescue", rescued, vm_id=server.id)
    theirs = [pair for pair in found if pair[1].project_id == project_id]
    there = [pair for pair in theirs if host_id(project_id, str(pair[0].host)) == server.host_id]
    if theirs and not there:
        hosts = ", ".join(sorted(str(service.host) for service, _ in theirs))
        elsewhere = f"Nova has server {server.name} on another host than {hosts}, whose agent sees it"
        return Wait("server_elsewhere", elsewhere, vm_id=server.id)
    return there


def able(agents: Iterable[Service], placement: Mapping[str, Any] | None, needs: str | None = None) -> list[Service]:
    """Agents that may do work which any can, and are capable of what it needs, whether or not they have room now."""
    hosts, zones = (placement or {}).get("hosts"), (placement or {}).get("zones")
    return [
        agent
        for agent in agents
        if agent.state == ServiceState.ENABLED
        and (needs is None or needs in tasks.capable_of(agent))
        and (not hosts or agent.host in hosts)
        and (not zones or agent.zone in zones)
    ]


def willing(agents: Iterable[Service], placement: Mapping[str, Any] | None, needs: str | None = None) -> list[Service]:
    """Those with room for it, the least busy for its size first."""
    found = [agent for agent in able(agents, placement, needs) if agent.load < agent.capacity]
    return sorted(found, key=lambda agent: (agent.load / agent.capacity, agent.load, agent.id))


def _disks(vm: SeenVm) -> tuple[SeenDisk, ...]:
    """None, if another version of Raksha wrote them: they are hints."""
    try:
        return msgspec.convert(vm.disks, tuple[SeenDisk, ...])
    except msgspec.ValidationError:
        return ()


def _said(refusal: Any) -> str:
    return str(refusal.get("message", refusal)) if isinstance(refusal, dict) else str(refusal)
