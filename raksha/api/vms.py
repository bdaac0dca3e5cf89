"""`vms`: what the caller may protect, as agents see it."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields
from sqlalchemy import select

from raksha.api.answers import Instant, Said, page_of, said
from raksha.api.bodies import Text
from raksha.api.nouns import Noun
from raksha.api.pagination import Choice, collection, page_query, wanted
from raksha.api.policy import Allow
from raksha.api.services import services, settings
from raksha.db import services as agents
from raksha.db.models import BackupJob, BackupJobVm, SeenVm

NOUN = Noun("vms", "/v1/<project:tenant_id>/vms", "VMs that can be protected, as agents see them.")


class DiskShown(Schema):
    target = fields.String(required=True, metadata={"description": "As the hypervisor names it: vda"})
    size = fields.Integer(required=True, allow_none=True)
    reason = fields.String(required=True, allow_none=True, metadata={"description": "Why it cannot be protected"})


class VmShown(Schema):
    """A VM on a host with an agent."""

    id = fields.String(required=True)
    name = fields.String(required=True)
    power = fields.String(required=True)
    tags = fields.List(fields.String(), required=True)
    metadata = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    disks = fields.List(fields.Nested(DiskShown), required=True)
    refusal = fields.Nested(
        Said, required=True, allow_none=True, metadata={"description": "Why it cannot be protected; null: it can"}
    )
    seen_at = Instant(required=True)


class VmDetail(VmShown):
    """And who protects it."""

    backupjobs = fields.List(
        fields.String(), required=True, metadata={"description": "Ids of the project's jobs that name it"}
    )


def shown(vm: SeenVm) -> dict[str, Any]:
    """For `VmShown`."""
    return {
        "id": vm.vm_id,
        "name": vm.name,
        "power": vm.power,
        "tags": vm.tags,
        "metadata": vm.hints,
        "disks": [
            {"target": disk.get("target", ""), "size": disk.get("size"), "reason": disk.get("reason")}
            for disk in vm.disks
        ],
        "refusal": said(vm.refusal),
        "seen_at": vm.seen_at,
    }


@NOUN.operation(
    "GET", "", rule="list", allow=Allow.READER_OR_ADMIN, does="List the VMs that the project may protect.",
    query=page_query(
        agents.VM_COLUMNS, name=Text(least=1, most=255), power=Choice(["running", "paused", "shut off"])
    ),
    returns=page_of("vms", VmShown), errors=(400,),
)  # fmt: skip
def list_vms(tenant_id: str, query: dict[str, Any]) -> Any:
    where = []
    if "name" in query:
        where.append(SeenVm.name == query["name"])
    if "power" in query:
        where.append(SeenVm.power.in_(query["power"]))
    most = settings().limits.max_page_size
    with services().database.reading() as session:
        page = agents.vms(session, tenant_id, wanted(query, most), where, unowned=_unowned(tenant_id))
    return collection("vms", [shown(vm) for vm in page.rows], page.rows[-1].vm_id if page.more else None)


@NOUN.operation(
    "GET", "/<id:vm_id>", rule="show", allow=Allow.READER_OR_ADMIN, does="Show a VM, and the jobs that name it.",
    returns=VmDetail,
)  # fmt: skip
def show(tenant_id: str, vm_id: str) -> Any:
    with services().database.reading() as session:
        vm = agents.vm(session, tenant_id, vm_id, unowned=_unowned(tenant_id))
        mine = BackupJob.project_id == tenant_id, BackupJobVm.vm_id == vm_id
        statement = select(BackupJob.id).join(BackupJobVm, BackupJobVm.backupjob_id == BackupJob.id).where(*mine)
        named_by = list(session.scalars(statement.order_by(BackupJob.id)))
    return {**shown(vm), "backupjobs": named_by}


def _unowned(tenant_id: str) -> bool:
    return tenant_id == settings().unowned_vms_project
