"""What a restore would read and make: from the database alone.

The row (`Restore.target`) holds what was asked for with nothing left open: `kind`, `project` where it is another one,
`vms` with `vm`, `disks` and `name`, `directory`, `format`, `start`, `host`, and `cloud`: what a new server or volume is
to be like.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from marshmallow import Schema, fields, validate
from msgspec import Struct
from sqlalchemy.orm import Session

from raksha.api.answers import Instant, Said
from raksha.api.restore_body import KINDS
from raksha.api.run_shown import BackupShown, backup_shown
from raksha.db import backups, runs, services
from raksha.db.models import BackupJobRun, BackupJobRunVm, VmResourceBackup
from raksha.db.runs import Detail
from raksha.errors import RequestInvalid
from raksha.server import Needs, Server
from raksha.states import BackupState, Consistency, RunState, ServiceKind, Source
from raksha.tasks import CLOUD_KINDS

#: of targets that are something new with a name
_NAMED = ("domain", *CLOUD_KINDS)
#: of `server`, `volume` and `image`, as the body has them
CLOUD = ("flavor", "networks", "key_name", "security_groups", "availability_zone", "volume_type", "metadata")


#: of targets that are made of disks alone
_OF_DISKS = ("volume", "image", "files")


class DiskPlanned(Schema):
    """A disk, and the stored copies that it is read from: the newest first, each builds on the next."""

    resource = fields.String(required=True)
    size = fields.Integer(required=True)
    bytes_stored = fields.Integer(required=True, metadata={"description": "Compressed data to fetch at most"})
    copies = fields.List(fields.Nested(BackupShown), required=True)


class VmPlanned(Schema):
    id = fields.String(required=True)
    name = fields.String(required=True, allow_none=True)
    new_name = fields.String(required=True, allow_none=True)
    disks = fields.List(fields.Nested(DiskPlanned), required=True)


class RestorePlan(Schema):
    """What a restore would do; nothing was done."""

    backupjobrun_id = fields.String(required=True)
    kind = fields.String(required=True, validate=validate.OneOf(KINDS))
    taken_at = Instant(required=True, allow_none=True)
    consistency = fields.String(required=True, allow_none=True, validate=validate.OneOf([*Consistency, None]))
    bytes_total = fields.Integer(required=True, metadata={"description": "Of all disks"})
    bytes_stored = fields.Integer(required=True, metadata={"description": "Compressed data to fetch at most"})
    vms = fields.List(fields.Nested(VmPlanned), required=True)
    problems = fields.List(
        fields.Nested(Said), required=True, metadata={"description": "Why it might fail, as far as is known here"}
    )


class Disk(Struct, frozen=True):
    """A disk to be restored."""

    resource: str
    size: int
    #: what it is read from, itself first
    chain: tuple[VmResourceBackup, ...]


class Vm(Struct, frozen=True):
    """A VM to be restored."""

    vm_id: str
    name: str | None
    new_name: str | None
    disks: tuple[Disk, ...]
    #: as its cloud knew it (`raksha.server.Server`)
    server: dict[str, Any] | None = None
    #: by disk, volumes that are written over
    overwrite: Mapping[str, str] = {}


def chosen(session: Session, run: BackupJobRun, body: Mapping[str, Any], restore_id: str) -> list[Vm]:
    """The VMs and disks that a body asks for, with all that they are read from. Raises `RequestInvalid`."""
    detail = runs.detail(session, run)
    there = {vm.vm_id: vm for vm in detail.vms if _disks(detail, vm.id)}
    asked = body.get("vms") or [{"id": id, "disks": []} for id in there]
    if len({vm["id"] for vm in asked}) != len(asked):
        raise RequestInvalid(problems=[("vms", "A VM is named more than once.")])
    found = []
    for number, wanted in enumerate(asked):
        vm = there.get(wanted["id"])
        if vm is None:
            raise RequestInvalid(problems=[(f"vms.{number}.id", f"The restore point has no VM {wanted['id']}.")])
        disks = _disks(detail, vm.id)
        if said := _does_not_fit(vm, disks, body["target"]["kind"]):
            raise RequestInvalid(problems=[("target.kind", said)])
        missing = [name for name in wanted["disks"] if name not in disks]
        if missing:
            raise RequestInvalid(problems=[(f"vms.{number}.disks", f"It has no disk {missing[0]} there.")])
        new_name = None
        if body["target"]["kind"] in _NAMED:
            new_name = wanted.get("name") or f"{(vm.name or vm.vm_id)[:170]}-restored-{restore_id[:8]}"
        elif "name" in wanted:
            raise RequestInvalid(problems=[(f"vms.{number}.name", "Only what is new gets a name.")])
        names = [name for name in disks if not wanted["disks"] or name in wanted["disks"]]
        planned = tuple(Disk(name, disks[name].size, tuple(backups.chain(session, disks[name].id))) for name in names)
        over = wanted.get("overwrite", {})
        if unknown := sorted(over.keys() - set(names)):
            raise RequestInvalid(problems=[(f"vms.{number}.overwrite", f"Disk {unknown[0]} is not restored.")])
        found.append(Vm(vm.vm_id, vm.name, new_name, planned, vm.server, over))
    if not found:
        raise RequestInvalid(problems=[("vms", "Nothing is stored in this restore point.")])
    return found


def _does_not_fit(vm: BackupJobRunVm, disks: Iterable[str], kind: str) -> str | None:
    """What was taken from storage is disks: nobody looked at a definition."""
    if vm.source == Source.VOLUME and kind not in _OF_DISKS:
        return f"{vm.vm_id} is a volume: it comes back as {', '.join(_OF_DISKS)}. Or name the VMs that are meant."
    if vm.source == Source.STORAGE and kind == "domain":
        return f"VM {vm.vm_id} was taken from storage, without its definition: it comes back as a server of the cloud."
    if vm.source == Source.STORAGE and kind == "server":
        had = None if vm.server is None else msgspec.convert(vm.server, Server)
        if had is None or not had.boots_from(disks):
            return (
                f"VM {vm.vm_id} was taken from storage, without its boot disk: it comes back as {', '.join(_OF_DISKS)}."
            )
    return None


def _disks(detail: Detail, run_vm_id: str) -> dict[str, VmResourceBackup]:
    readable = (BackupState.AVAILABLE, BackupState.DEGRADED)
    stored = ((disk.resource, detail.backups.get(disk.id)) for disk in detail.resources[run_vm_id])
    return {name: backup for name, backup in stored if backup is not None and backup.state in readable}


def document(body: Mapping[str, Any], vms: list[Vm]) -> dict[str, Any]:
    """For `Restore.target`."""
    target = body["target"]
    return {
        "kind": target["kind"],
        "vms": [
            {
                "vm": vm.vm_id,
                "disks": [disk.resource for disk in vm.disks],
                "name": vm.new_name,
                "overwrite": dict(vm.overwrite),
            }
            for vm in vms
        ],
        "directory": target.get("directory"),
        "format": target.get("format"),
        # a cloud starts what it builds
        "start": target.get("start", target["kind"] == "server"),
        "host": target.get("host"),
        "project": target.get("project"),
        "cloud": {name: target[name] for name in CLOUD if name in target},
    }


def plan(session: Session, run: BackupJobRun, body: Mapping[str, Any], vms: list[Vm], within: float) -> dict[str, Any]:
    """For `RestorePlan`. `within`: seconds since its last heartbeat after which an agent counts as gone."""
    planned = [
        {
            "id": vm.vm_id,
            "name": vm.name,
            "new_name": vm.new_name,
            "disks": [
                {
                    "resource": disk.resource,
                    "size": disk.size,
                    "bytes_stored": sum(copy.bytes_stored for copy in disk.chain),
                    "copies": [backup_shown(copy) for copy in disk.chain],
                }
                for disk in vm.disks
            ],
        }
        for vm in vms
    ]
    disks = [disk for vm in vms for disk in vm.disks]
    return {
        "backupjobrun_id": run.id,
        "kind": body["target"]["kind"],
        "taken_at": run.taken_at,
        "consistency": run.consistency,
        "bytes_total": sum(disk.size for disk in disks),
        "bytes_stored": sum(copy.bytes_stored for disk in disks for copy in disk.chain),
        "vms": planned,
        "problems": list(_problems(session, run, body, vms, within)),
    }


def _problems(
    session: Session, run: BackupJobRun, body: Mapping[str, Any], vms: list[Vm], within: float
) -> Iterator[dict[str, str]]:
    target = body["target"]
    if run.state == RunState.DEGRADED:
        yield _said("degraded", "something that this restore point needs was found missing or damaged")
    for vm in vms:
        for disk in vm.disks:
            for copy in disk.chain:
                if copy.state != BackupState.AVAILABLE:
                    yield _said("copy_not_available", f"{vm.vm_id}:{disk.resource}: copy {copy.id} is {copy.state}")
    alive = services.alive(session, ServiceKind.AGENT, within)
    hosts = {agent.host for agent in alive}
    if "host" in target and target["host"] not in hosts:
        yield _said("agent_gone", f"no agent of host {target['host']} is there")
    elif not hosts:
        yield _said("agent_gone", "no agent is there")
    if target["kind"] == "in_place":
        for vm in vms:
            yield from _problems_in_place(session, vm.vm_id, hosts)


def _problems_in_place(session: Session, vm_id: str, hosts: set[str]) -> Iterator[dict[str, str]]:
    seen = services.agents_of(session, vm_id)
    if not seen:
        yield _said("vm_not_seen", f"no agent sees VM {vm_id}")
        return
    agent, vm = seen[0]
    if agent.host not in hosts:
        yield _said("agent_gone", f"the agent of the host of VM {vm_id} is silent")
    if vm.power != "shut off":
        yield _said("vm_not_shut_off", f"VM {vm_id} was {vm.power} when it was seen last")


def needs(body: Mapping[str, Any], vms: list[Vm]) -> list[Needs]:
    """What its targets need of a cloud."""
    target = body["target"]
    networks = target.get("networks")
    return [
        Needs(
            had=None if vm.server is None else msgspec.convert(vm.server, Server),
            server=target["kind"] == "server",
            flavor=target.get("flavor"),
            networks=None if networks is None else tuple(each["network_id"] for each in networks),
            addresses=tuple(_addresses(target, vm)),
            key_name=target.get("key_name"),
            volumes=tuple(_volumes(target, vm)),
        )
        for vm in vms
    ]


def _addresses(target: Mapping[str, Any], vm: Vm) -> Iterator[tuple[str, str]]:
    if target["kind"] != "server":
        return
    if "networks" in target:
        yield from ((each["network_id"], each["fixed_ip"]) for each in target["networks"] if "fixed_ip" in each)
    elif vm.server is not None:
        for port in vm.server["ports"]:
            yield from ((port["network_id"], each["ip_address"]) for each in port["fixed_ips"][:1])


def _volumes(target: Mapping[str, Any], vm: Vm) -> Iterator[tuple[int, str | None]]:
    if target["kind"] == "image":
        return
    # of a server that boots from an image, the first disk is none
    local = 1 if target["kind"] == "server" and vm.server is not None and vm.server["image_id"] else 0
    for disk in vm.disks[local:]:
        if disk.resource in vm.overwrite:
            continue
        yield -(-disk.size // 1024**3), target.get("volume_type")


def overwritten(vms: list[Vm]) -> list[tuple[str, str, int]]:
    """What the caller must own: field, volume, and the bytes that it must have."""
    return [
        (f"vms.{number}.overwrite", vm.overwrite[disk.resource], disk.size)
        for number, vm in enumerate(vms)
        for disk in vm.disks
        if disk.resource in vm.overwrite
    ]


def _said(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
