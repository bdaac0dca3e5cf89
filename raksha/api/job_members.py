"""What a job protects, as a body names it: VMs, and volumes in the place of VMs.

    had = jobs.members(...)                          what the job names so far
    asked = job_members.ask(project, body, had)      the cloud, with the caller's own token; before a transaction begins
    job_members.problems(session, ...)               inside it: what is wrong, field by field
    job_members.given(body, had)                     what the job is to name; None: as before

What the job names already, in the same way, may be gone since, and nobody is asked about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy.orm import Session

from raksha.api import allowed, servers
from raksha.api.services import settings
from raksha.db import jobs
from raksha.db import services as agents
from raksha.db.models import BackupJobVm
from raksha.states import Source

if TYPE_CHECKING:
    from raksha.openstack.block_storage import ListedVolume
    from raksha.openstack.compute import ListedServer

_SHUT_OFF = "shut off"
_FORCE = "Say `force`: its backup holds then what a power cut would leave."


class Asked(Struct, frozen=True):
    """What the caller's token shows of what a body begins to name."""

    #: of those whose hypervisor reads their disks
    vms: servers.Named
    #: servers whose disks are to come from storage. None: there is no cloud
    servers: Mapping[str, ListedServer] | None
    volumes: Mapping[str, ListedVolume] | None


def given(body: Mapping[str, Any], had: Sequence[BackupJobVm] = ()) -> list[jobs.Member] | None:
    """None: the body says nothing of it. Of `vms` and `volumes`, the one that it does not name stays."""
    if "vms" not in body and "volumes" not in body:
        return None
    before = [jobs.Member(each.vm_id, tuple(each.excluded_disks), each.source, each.force) for each in had]
    vms = [each for each in before if each.source != Source.VOLUME]
    volumes = [each for each in before if each.source == Source.VOLUME]
    if "vms" in body:
        vms = [jobs.Member(vm["id"], tuple(vm["excluded_disks"]), vm["source"], vm["force"]) for vm in body["vms"]]
    if "volumes" in body:
        volumes = [jobs.Member(each["id"], (), Source.VOLUME, each["force"]) for each in body["volumes"]]
    return [*vms, *volumes]


def ask(project_id: str, body: Mapping[str, Any], had: Sequence[BackupJobVm] = ()) -> Asked:
    """Raises `LimitExceeded`: nobody is asked about so many. `CloudRefused`, `CloudUnavailable`, `NotAuthenticated`,
    `TooManyServers`."""
    allowed.vms_of_a_job(len(given(body, had) or ()))
    new = _new(body, had)
    hypervisor, storage, volumes = (
        frozenset(each.vm_id for each in new if each.source == source)
        for source in (Source.HYPERVISOR, Source.STORAGE, Source.VOLUME)
    )
    return Asked(
        vms=servers.among(project_id, hypervisor),
        servers=servers.of(project_id, storage),
        volumes=servers.volumes(project_id, volumes),
    )


def _new(body: Mapping[str, Any], had: Sequence[BackupJobVm]) -> list[jobs.Member]:
    """To name a VM that the hypervisor reads, it is enough that the job names it already, whatever way."""
    ids = {each.vm_id for each in had if each.source != Source.VOLUME}
    same = {(each.vm_id, each.source, each.force) for each in had}
    return [
        each
        for each in given(body, had) or ()
        if (each.vm_id not in ids if each.source == Source.HYPERVISOR else _key(each) not in same)
    ]


def _key(member: jobs.Member) -> tuple[str, Source, bool]:
    return member.vm_id, member.source, member.force


def problems(
    session: Session, project_id: str, body: Mapping[str, Any], asked: Asked, had: Sequence[BackupJobVm] = ()
) -> list[tuple[str, str]]:
    """Fields, and what is wrong there: what is not the project's is not there."""
    new = _new(body, had)
    unknown = {each.vm_id for each in new if each.source == Source.HYPERVISOR} - asked.vms.servers
    unowned = project_id == settings().unowned_vms_project
    visible = agents.visible(session, project_id, unknown, unowned=unowned, owned=asked.vms.agents_say)
    wrong = {id: f"There is no VM {id}." for id in unknown - visible}
    for each in new:
        if each.source != Source.HYPERVISOR:
            said = _of_server(asked, each) if each.source == Source.STORAGE else _of_volume(asked, each)
            wrong |= {} if said is None else {each.vm_id: said}
    return [(field, wrong[id]) for field, id in _fields(body) if id in wrong]


def _fields(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for noun in ("vms", "volumes"):
        for number, each in enumerate(body.get(noun, ())):
            yield f"{noun}.{number}.id", each["id"]


def _of_server(asked: Asked, member: jobs.Member) -> str | None:
    if asked.servers is None:
        return "This service has no cloud: disks are taken from hypervisors."
    server = asked.servers.get(member.vm_id)
    if server is None:
        return f"There is no server {member.vm_id}."
    if server.power != _SHUT_OFF and not member.force:
        return f"Server {server.name} is {server.power}. {_FORCE}"
    return None


def _of_volume(asked: Asked, member: jobs.Member) -> str | None:
    if asked.volumes is None:
        return "This service has no cloud whose volumes it could protect."
    volume = asked.volumes.get(member.vm_id)
    if volume is None:
        return f"There is no volume {member.vm_id}."
    if volume.in_use and not member.force:
        return f"Volume {volume.name or volume.id} is {volume.status}. {_FORCE}"
    return None
