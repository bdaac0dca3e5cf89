"""A run as clients see it: in a list, and with its VMs and disks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import Schema, fields, validate

from raksha.api.answers import Instant, Said, said
from raksha.db.models import BackupJobRun, BackupJobRunVm, BackupJobRunVmResource, VmResourceBackup
from raksha.db.runs import Detail
from raksha.states import (
    BackupKind,
    BackupState,
    Consistency,
    ProvenBy,
    ReadMode,
    Reason,
    RunState,
    RunVmState,
    Source,
    Trigger,
)


def _word(words: Any, *, none: bool = True) -> fields.String:
    return fields.String(required=True, allow_none=none, validate=validate.OneOf([*words, *([None] if none else [])]))


def _seconds(description: str) -> fields.Float:
    return fields.Float(required=True, allow_none=True, metadata={"description": description})


def _bytes(description: str) -> fields.Integer:
    return fields.Integer(required=True, metadata={"description": description})


def _texts() -> fields.List[str]:
    return fields.List(fields.String(), required=True)


class Progress(Schema):
    """Bytes, as agents report them."""

    bytes_total = _bytes("To be read, as far as that is known")
    bytes_done = _bytes("Read and dealt with")
    bytes_sent = _bytes("Sent to the vault")
    percent = fields.Integer(required=True, allow_none=True, metadata={"description": "null: not known yet"})


class RunShown(Schema):
    """One execution of a job; a restore point if its state is available or degraded."""

    id = fields.String(required=True)
    backupjob_id = fields.String(required=True)
    project_id = fields.String(required=True)
    user_id = fields.String(required=True, allow_none=True)
    description = fields.String(required=True)
    protected = fields.Boolean(required=True, metadata={"description": "Retention leaves it alone"})
    state = _word(RunState, none=False)
    queued_reason = fields.Nested(
        Said, required=True, allow_none=True, metadata={"description": "What it waits for while it is queued"}
    )
    error = fields.Nested(Said, required=True, allow_none=True)
    warnings = _texts()
    kind = _word(BackupKind, none=False)
    trigger = _word(Trigger, none=False)
    scheduled_at = Instant(required=True, allow_none=True)
    retry_of = fields.String(required=True, allow_none=True, metadata={"description": "The run that failed"})
    attempt = fields.Integer(required=True)
    created_at = Instant(required=True)
    started_at = Instant(required=True, allow_none=True)
    taken_at = Instant(required=True, allow_none=True, metadata={"description": "The moment that it holds"})
    finished_at = Instant(required=True, allow_none=True)
    verified_at = Instant(
        required=True, allow_none=True, metadata={"description": "When all its data was last read, and found right"}
    )
    proven_restorable_at = Instant(
        required=True, allow_none=True, metadata={"description": "Since when each of its VMs is known to come up"}
    )
    cancel_requested_at = Instant(required=True, allow_none=True)
    consistency = _word(Consistency)
    group_consistent = fields.Boolean(
        required=True,
        allow_none=True,
        metadata={
            "description": "At one instant all VMs were frozen, or paused or shut off; null: no group. "
            "What was taken from storage is no part of it"
        },
    )
    skew_seconds = _seconds("Between the first and the last snapshot")
    skew_error_seconds = _seconds("By which that may be wrong: the clocks of the hosts")
    frozen_seconds = _seconds("The longest freeze of a VM")
    progress = fields.Nested(Progress, required=True)
    bytes_stored = _bytes("Compressed data that it refers to")
    request_id = fields.String(required=True, allow_none=True)


class BackupShown(Schema):
    """A stored disk copy."""

    id = fields.String(required=True)
    kind = _word(BackupKind, none=False)
    status = _word(BackupState, none=False)
    vm_resource_backup_backing_id = fields.String(
        required=True, allow_none=True, metadata={"description": "The copy that it builds on; null: a full one"}
    )
    top = fields.Boolean(required=True, metadata={"description": "Nothing builds on it"})
    vault_service_id = fields.String(required=True)
    bytes_stored = _bytes("Compressed data that it refers to")
    image_size = _bytes("Of the qcow2 image in the vault")
    taken_at = Instant(required=True, allow_none=True)
    verified_at = Instant(required=True, allow_none=True)


class ResourceShown(Schema):
    """A disk of a VM in a run."""

    id = fields.String(required=True)
    resource = fields.String(required=True, metadata={"description": "As the hypervisor names it: vda"})
    source = fields.String(required=True, allow_none=True, metadata={"description": "Image or volume it came from"})
    size = _bytes("Of the disk")
    kind = _word(BackupKind)
    mode = _word(ReadMode)
    reason = _word(Reason)
    progress = fields.Nested(Progress, required=True)
    backup = fields.Nested(BackupShown, required=True, allow_none=True)


class TemporaryShown(Schema):
    """What a backup from storage has in the cloud for the time being. null: not, or its id is not known yet."""

    volume_id = fields.String(required=True)
    previous_status = fields.String(
        required=True, allow_none=True, metadata={"description": "Of the volume, before anything was made of it"}
    )
    temp_snapshot_id = fields.String(required=True, allow_none=True)
    temp_volume_id = fields.String(required=True, allow_none=True)


class RunVmShown(Schema):
    """A VM in a run, or a volume in the place of one."""

    vm_id = fields.String(required=True)
    source = _word(Source, none=False)
    name = fields.String(required=True, allow_none=True)
    host = fields.String(required=True, allow_none=True)
    state = _word(RunVmState, none=False)
    excluded_disks = _texts()
    engine = fields.String(required=True, allow_none=True)
    power = fields.String(required=True, allow_none=True)
    consistency = _word(Consistency)
    taken_at = Instant(required=True, allow_none=True)
    frozen_seconds = _seconds("For how long its file systems stood still")
    error = fields.Nested(Said, required=True, allow_none=True)
    warnings = _texts()
    proven_restorable_at = Instant(
        required=True, allow_none=True, metadata={"description": "When it last came up in a test"}
    )
    proven_by = _word(ProvenBy)
    unproven_at = Instant(
        required=True, allow_none=True, metadata={"description": "When it last did not; null: it has since, or never"}
    )
    unproven_reason = fields.Nested(Said, required=True, allow_none=True)
    server = fields.Dict(
        required=True, allow_none=True,
        metadata={"description": "What its cloud said of it: flavor, ports, volumes, …; null: no cloud was asked"},
    )  # fmt: skip
    temporary = fields.List(fields.Nested(TemporaryShown), required=True)
    resources = fields.List(fields.Nested(ResourceShown), required=True)


class RunDetail(RunShown):
    """A run with its VMs and disks."""

    vms = fields.List(fields.Nested(RunVmShown), required=True)


_RUN = ("id", "backupjob_id", "project_id", "user_id", "description", "protected", "state", "kind", "trigger",
        "scheduled_at", "retry_of", "attempt", "created_at", "started_at", "taken_at", "finished_at",
        "verified_at", "proven_restorable_at", "cancel_requested_at", "consistency", "group_consistent",
        "skew_seconds", "skew_error_seconds", "frozen_seconds", "bytes_stored", "request_id")  # fmt: skip
_VM = ("vm_id", "source", "name", "host", "state", "excluded_disks", "engine", "power", "consistency", "taken_at",
       "frozen_seconds", "proven_restorable_at", "proven_by", "unproven_at", "server")  # fmt: skip
_RESOURCE = ("id", "resource", "source", "size", "kind", "mode", "reason")
_BACKUP = ("id", "kind", "vm_resource_backup_backing_id", "top", "vault_service_id", "bytes_stored", "image_size",
           "taken_at", "verified_at")  # fmt: skip


def shown(run: BackupJobRun) -> dict[str, Any]:
    """For `RunShown`."""
    return {
        **{name: getattr(run, name) for name in _RUN},
        "queued_reason": said(run.queued_reason) if run.state == RunState.QUEUED else None,
        "error": said(run.error),
        "warnings": [str(warning) for warning in run.warnings],
        "progress": progress(run),
    }


def detailed(detail: Detail) -> dict[str, Any]:
    """For `RunDetail`."""
    return {**shown(detail.run), "vms": [_vm(detail, vm) for vm in detail.vms]}


def progress(of: BackupJobRun | BackupJobRunVmResource) -> dict[str, Any]:
    total, done = of.bytes_total, of.bytes_done
    return {
        "bytes_total": total,
        "bytes_done": done,
        "bytes_sent": of.bytes_sent,
        "percent": min(100, done * 100 // total) if total else None,
    }


def _vm(detail: Detail, vm: BackupJobRunVm) -> dict[str, Any]:
    return {
        **{name: getattr(vm, name) for name in _VM},
        "error": said(vm.error),
        "unproven_reason": said(vm.unproven_reason),
        "warnings": [str(warning) for warning in vm.warnings],
        "temporary": [_temporary(each) for each in detail.temporary.get(vm.vm_id, ())],
        "resources": [_resource(disk, detail.backups.get(disk.id)) for disk in detail.resources[vm.id]],
    }


def _temporary(kept: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: kept.get(name) for name in ("previous_status", "temp_snapshot_id", "temp_volume_id")}
    return {"volume_id": kept["volume"], **named}


def _resource(disk: BackupJobRunVmResource, backup: VmResourceBackup | None) -> dict[str, Any]:
    return {
        **{name: getattr(disk, name) for name in _RESOURCE},
        "progress": progress(disk),
        "backup": None if backup is None else backup_shown(backup),
    }


def backup_shown(backup: VmResourceBackup) -> dict[str, Any]:
    """For `BackupShown`."""
    return {**{name: getattr(backup, name) for name in _BACKUP}, "status": backup.state}
