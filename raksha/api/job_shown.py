"""A job as clients see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from marshmallow import Schema, fields, validate

from raksha.api.answers import Instant, Said, moment, said
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobVm
from raksha.schedule import CatchUp
from raksha.states import JobState, Quiesce, Source


class VmOfJob(Schema):
    id = fields.String(required=True)
    excluded_disks = fields.List(fields.String(), required=True)
    source = fields.String(required=True, validate=validate.OneOf([Source.HYPERVISOR, Source.STORAGE]))
    force = fields.Boolean(required=True)


class VolumeOfJob(Schema):
    id = fields.String(required=True)
    force = fields.Boolean(required=True)


class Selector(Schema):
    tags = fields.List(fields.String())
    metadata = fields.Dict(keys=fields.String(), values=fields.String())


class ScheduleShown(Schema):
    """Fields that the schedule does not have are not there."""

    cron = fields.String()
    every = fields.Integer()
    anchor = Instant()
    zone = fields.String(required=True)
    start = Instant()
    end = Instant()
    jitter = fields.Integer(required=True)
    window = fields.String()
    full_cron = fields.String()
    full_every = fields.Integer()
    catch_up = fields.String(required=True, validate=validate.OneOf(list(CatchUp)))


class RetentionShown(Schema):
    keep_last = fields.Integer(required=True)
    hourly = fields.Integer(required=True)
    daily = fields.Integer(required=True)
    weekly = fields.Integer(required=True)
    monthly = fields.Integer(required=True)
    yearly = fields.Integer(required=True)
    zone = fields.String(required=True)


class RetryShown(Schema):
    retries = fields.Integer()
    delay = fields.Integer()


class RestoreTestShown(Schema):
    """null: as the operator says."""

    every = fields.Integer(required=True, allow_none=True)
    marker = fields.String(required=True, allow_none=True)
    timeout = fields.Integer(required=True, allow_none=True)


class PlacementShown(Schema):
    hosts = fields.List(fields.String())
    zones = fields.List(fields.String())


class JobShown(Schema):
    """What is protected, when, and how."""

    id = fields.String(required=True)
    project_id = fields.String(required=True)
    user_id = fields.String(required=True, allow_none=True)
    name = fields.String(required=True)
    description = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(list(JobState)))
    state_reason = fields.Nested(Said, required=True, allow_none=True)
    enabled = fields.Boolean(required=True)
    created_at = Instant(required=True)
    updated_at = Instant(required=True)
    vms = fields.List(fields.Nested(VmOfJob), required=True)
    volumes = fields.List(fields.Nested(VolumeOfJob), required=True)
    vm_selector = fields.Nested(Selector, required=True, allow_none=True)
    schedule = fields.Nested(ScheduleShown, required=True, allow_none=True)
    next_run_at = Instant(required=True, allow_none=True, metadata={"description": "null: never, or not enabled"})
    missed_runs = fields.Integer(required=True)
    last_missed_at = Instant(required=True, allow_none=True)
    last_missed_reason = fields.Nested(Said, required=True, allow_none=True)
    full_owed_since = Instant(
        required=True, allow_none=True, metadata={"description": "A full run was let pass or failed: the next is full"}
    )
    quiesce = fields.String(required=True, validate=validate.OneOf(list(Quiesce)))
    engine = fields.String(required=True)
    consistency_group = fields.Boolean(required=True)
    on_vm_failure = fields.String(required=True)
    retention = fields.Nested(RetentionShown, required=True, allow_none=True)
    retry = fields.Nested(RetryShown, required=True, allow_none=True)
    max_parallel_disks = fields.Integer(required=True, allow_none=True)
    bandwidth_limit = fields.Integer(required=True, allow_none=True)
    placement = fields.Nested(PlacementShown, required=True, allow_none=True)
    test_restore = fields.Nested(RestoreTestShown, required=True, allow_none=True)
    proven_restorable_at = Instant(
        required=True, allow_none=True,
        metadata={"description": "When all VMs of a restore point last came up in a test"},
    )  # fmt: skip
    proven_run_id = fields.String(
        required=True, allow_none=True, metadata={"description": "Which restore point that was; it may be gone"}
    )
    metadata = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    vault_service_id = fields.String(required=True, allow_none=True)


_SAME = ("id", "project_id", "user_id", "name", "description", "state", "created_at", "updated_at", "missed_runs",
         "last_missed_at", "quiesce", "engine", "consistency_group", "on_vm_failure", "retention",
         "max_parallel_disks", "bandwidth_limit", "placement", "vm_selector", "vault_service_id",
         "proven_restorable_at", "proven_run_id")  # fmt: skip


def shown(job: BackupJob, members: Sequence[BackupJobVm]) -> dict[str, Any]:
    """For `JobShown`."""
    enabled = job.state == JobState.ACTIVE
    return {
        **{name: getattr(job, name) for name in _SAME},
        "enabled": enabled,
        "state_reason": said(job.state_reason) if job.state == JobState.SUSPENDED else None,
        "vms": [_vm(vm) for vm in members if vm.source != Source.VOLUME],
        "volumes": [{"id": vm.vm_id, "force": vm.force} for vm in members if vm.source == Source.VOLUME],
        "schedule": _schedule(job),
        "next_run_at": job.next_run_at if enabled else None,
        "last_missed_reason": said(job.last_missed_reason),
        "full_owed_since": job.next_full_at,
        "retry": job.retry_policy,
        "test_restore": _test_restore(job),
        "metadata": job.hints or {},
    }


def _test_restore(job: BackupJob) -> dict[str, Any] | None:
    found = {"every": job.test_every, "marker": job.test_marker, "timeout": job.test_timeout}
    return None if all(value is None for value in found.values()) else found


def _vm(vm: BackupJobVm) -> dict[str, Any]:
    return {"id": vm.vm_id, "excluded_disks": vm.excluded_disks, "source": vm.source, "force": vm.force}


def _schedule(job: BackupJob) -> dict[str, Any] | None:
    """As the row has it, without a look at whether it makes sense: a list does not fail for one of its jobs."""
    if job.schedule is None:
        return None
    document = {key: value for key, value in job.schedule.items() if value is not None}
    for name in ("anchor", "start", "end"):
        if name in document:
            document[name] = moment(document[name] * SECOND)
    if "every" not in document:
        document.pop("anchor", None)
    if job.full_schedule:
        document["full_cron"] = job.full_schedule["cron"]
    if job.full_every is not None:
        document["full_every"] = job.full_every
    return {"zone": "UTC", "jitter": 0, **document, "catch_up": job.catch_up}
