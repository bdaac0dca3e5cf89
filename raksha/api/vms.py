"""`vms`: what the caller may protect: VMs of the project that agents see, and its servers in the cloud.

Where there is a Nova, a VM is listed because the caller's own token shows it, and with `[scheduler] libvirt_vms` also
because an agent sees it with the project in its definition: one that libvirt alone manages. What both know of is one
entry. The list is whole, or there is none. What an agent saw that is silent now stays, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from marshmallow import Schema, fields
from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.api import servers
from raksha.api.answers import Instant, Said, page_of, said
from raksha.api.bodies import Text
from raksha.api.nouns import Noun
from raksha.api.pagination import Choice, collection, page_query, wanted
from raksha.api.policy import Allow
from raksha.api.services import services, settings
from raksha.db import services as agents
from raksha.db import tasks
from raksha.db.models import BackupJob, BackupJobVm, SeenVm, Service
from raksha.db.paging import Page, Wanted
from raksha.db.paging import page_of as page_in_memory
from raksha.errors import RowNotFound
from raksha.states import ServiceKind, ServiceState, Source

if TYPE_CHECKING:
    from raksha.openstack.compute import ListedServer

NOUN = Noun("vms", "/v1/<project:tenant_id>/vms", "VMs that can be protected, as agents and the cloud see them.")

_NOT_SEEN = {"code": "vm_not_seen", "message": "No agent sees it: is there one on its host?"}
#: as with a run that waits for it
_SILENT = {"code": "agent_gone", "message": "The agent of its host is silent: this is what it saw last."}
#: as Nova calls a server whose boot disk is an image and that has no host
_SHELVED = "SHELVED_OFFLOADED"
_RESERVED = {
    "code": "server_on_no_host",
    "message": "Nova has shelved it, and nobody can read its volumes until it is unshelved, or a job leaves them out.",
}
_NO_STORAGE = {
    "code": "no_storage_agent",
    "message": "Nova has shelved it, and there is no agent that takes servers from storage.",
}


class DiskShown(Schema):
    target = fields.String(required=True, metadata={"description": "As the hypervisor names it: vda"})
    size = fields.Integer(required=True, allow_none=True)
    reason = fields.String(required=True, allow_none=True, metadata={"description": "Why it cannot be protected"})


class VmShown(Schema):
    """A VM on a host with an agent, or a server of the cloud."""

    id = fields.String(required=True)
    name = fields.String(required=True)
    power = fields.String(required=True, metadata={"description": "`unknown` where nobody can tell"})
    status = fields.String(
        required=True, allow_none=True, metadata={"description": "As Nova says it; null: it is no server of a cloud"}
    )
    tags = fields.List(fields.String(), required=True)
    metadata = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    disks = fields.List(fields.Nested(DiskShown), required=True)
    refusal = fields.Nested(
        Said, required=True, allow_none=True, metadata={"description": "Why it cannot be protected; null: it can"}
    )
    volumes = fields.List(
        fields.String(), required=True, metadata={"description": "Ids of the volumes that Nova has attached to it"}
    )
    seen_at = Instant(required=True, allow_none=True, metadata={"description": "By an agent; null: by none"})


class VmDetail(VmShown):
    """And who protects it."""

    backupjobs = fields.List(
        fields.String(), required=True, metadata={"description": "Ids of the project's jobs that name it"}
    )


class Vm(Struct, frozen=True):
    """What is known of one: by an agent, by Nova, or by both."""

    id: str
    seen: SeenVm | None
    server: ListedServer | None = None
    #: the agent that saw it says nothing any more
    silent: bool = False
    #: there is an agent that takes servers from storage
    storage: bool = False

    @property
    def name(self) -> str:
        """As its owner calls it."""
        return self.server.name if self.server else self.seen.name if self.seen else ""

    @property
    def power(self) -> str:
        """The host knows best, while it says anything."""
        if self.server and (self.silent or not self.seen):
            return self.server.power
        return self.seen.power if self.seen else ""

    @property
    def refusal(self) -> Any:
        """As with a run: first whether anybody is there to take it."""
        if self.server and self.server.status == _SHELVED:  # whoever saw it: it is there no more
            return _RESERVED if self.server.volumes else None if self.storage else _NO_STORAGE
        if self.seen is None:
            return _NOT_SEEN
        return _SILENT if self.silent else self.seen.refusal


#: as `agents.VM_COLUMNS`; what nobody has seen comes before what anybody has
_KEYS: Mapping[str, Callable[[Vm], Any]] = {
    "id": lambda vm: vm.id,
    "name": lambda vm: vm.name,
    "power": lambda vm: vm.power,
    "created_at": lambda vm: vm.seen.seen_at if vm.seen else 0,
}


def shown(vm: Vm) -> dict[str, Any]:
    """For `VmShown`."""
    seen, server = vm.seen, vm.server
    return {
        "id": vm.id,
        "name": vm.name,
        "power": vm.power,
        "status": server.status if server else None,
        # of a server what Nova says: selectors of jobs go by that
        "tags": sorted(server.tags if server else seen.tags if seen else ()),
        "metadata": dict(server.metadata if server else seen.hints if seen else {}),
        "disks": [
            {"target": disk.get("target", ""), "size": disk.get("size"), "reason": disk.get("reason")}
            for disk in (seen.disks if seen else ())
        ],
        "volumes": list(server.volumes) if server else [],
        "refusal": said(vm.refusal),
        "seen_at": seen.seen_at if seen else None,
    }


@NOUN.operation(
    "GET", "", rule="list", allow=Allow.READER_OR_ADMIN, does="List the VMs that the project may protect.",
    query=page_query(
        agents.VM_COLUMNS, name=Text(least=1, most=255), power=Choice(["running", "paused", "shut off", "unknown"])
    ),
    returns=page_of("vms", VmShown), errors=(400, 503),
)  # fmt: skip
def list_vms(tenant_id: str, query: dict[str, Any]) -> Any:
    mine = servers.mine(tenant_id)
    page = _seen_page(tenant_id, query) if mine is None else _whole_page(tenant_id, query, mine)
    return collection("vms", [shown(vm) for vm in page.rows], page.rows[-1].id if page.more else None)


def _seen_page(tenant_id: str, query: Mapping[str, Any]) -> Page[Vm]:
    """Of what agents see: the database does it."""
    where = []
    if "name" in query:
        where.append(SeenVm.name == query["name"])
    if "power" in query:
        where.append(SeenVm.power.in_(query["power"]))
    with services().database.reading() as session:
        page = agents.vms(session, tenant_id, _wanted(query), where, unowned=_unowned(tenant_id))
        alive = {agent.id for agent in _there(session)}
    return Page([Vm(seen.vm_id, seen, silent=seen.service_id not in alive) for seen in page.rows], page.more)


def _whole_page(tenant_id: str, query: Mapping[str, Any], mine: Mapping[str, ListedServer]) -> Page[Vm]:
    """Of both: each time the whole list is put together, so that every page is of the same order."""
    with services().database.reading() as session:
        seen = {vm.vm_id: vm for vm in agents.all_vms(session, tenant_id, unowned=_unowned(tenant_id))}
        there = _there(session)
    alive, storage = {agent.id for agent in there}, _takes_storage(there)
    others = settings().libvirt_vms
    known = [id for id, vm in seen.items() if others or id in mine or vm.project_id is None]
    silent = {id for id, vm in seen.items() if vm.service_id not in alive}
    found = [Vm(id, seen.get(id), mine.get(id), id in silent, storage) for id in {**dict.fromkeys(known), **mine}]
    if "name" in query:
        found = [vm for vm in found if vm.name == query["name"]]
    if "power" in query:
        found = [vm for vm in found if vm.power in query["power"]]
    return page_in_memory(found, _KEYS, _wanted(query))


@NOUN.operation(
    "GET", "/<id:vm_id>", rule="show", allow=Allow.READER_OR_ADMIN, does="Show a VM, and the jobs that name it.",
    returns=VmDetail, errors=(503,),
)  # fmt: skip
def show(tenant_id: str, vm_id: str) -> Any:
    server = servers.one(tenant_id, vm_id)
    owned = server is not None or servers.agents_say()
    with services().database.reading() as session:
        seen = _seen(session, tenant_id, vm_id, needed=server is None, owned=owned)
        there = _there(session)
        silent = seen is not None and seen.service_id not in {agent.id for agent in there}
        vm = Vm(vm_id, seen, server, silent, _takes_storage(there))
        mine = BackupJob.project_id == tenant_id, BackupJobVm.vm_id == vm_id
        statement = select(BackupJob.id).join(BackupJobVm, BackupJobVm.backupjob_id == BackupJob.id).where(*mine)
        named_by = list(session.scalars(statement.order_by(BackupJob.id)))
    return {**shown(vm), "backupjobs": named_by}


def _seen(session: Session, tenant_id: str, vm_id: str, *, needed: bool, owned: bool) -> SeenVm | None:
    """Raises `RowNotFound` where it is needed."""
    try:
        return agents.vm(session, tenant_id, vm_id, unowned=_unowned(tenant_id), owned=owned)
    except RowNotFound:
        if needed:
            raise
        return None


def _there(session: Session) -> Sequence[Service]:
    """Agents that are not silent."""
    return agents.alive(session, ServiceKind.AGENT, settings().agent_timeout)


def _takes_storage(there: Sequence[Service]) -> bool:
    """Whether a run of a shelved server would find an agent. Which of them its job allows is the job's to say."""
    return any(agent.state == ServiceState.ENABLED and Source.STORAGE in tasks.capable_of(agent) for agent in there)


def _wanted(query: Mapping[str, Any]) -> Wanted:
    return wanted(query, settings().limits.max_page_size)


def _unowned(tenant_id: str) -> bool:
    return tenant_id == settings().unowned_vms_project
