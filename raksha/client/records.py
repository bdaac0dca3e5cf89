"""What the API answers, as frozen records. What each field means stands in docs/api.md and docs/openapi.json.

Fields that a record does not know are passed over, so that an older client reads a newer API. Times have their zone
(UTC). `etag` of a record is what its change must know it by; it is there in what `get`, `create` and `update` give, and
None in lists.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")


class Record(Struct, frozen=True, kw_only=True):
    """Base: keyword arguments only."""


class Said(Record, frozen=True):
    """Why something is as it is: `code` for programs, `message` for people."""

    code: str
    message: str = ""


class Page(Struct, Generic[T], frozen=True):
    """`marker`: for the page behind this one; None: there is none."""

    entries: tuple[T, ...]
    marker: str | None = None


class VmOfJob(Record, frozen=True):
    id: str
    excluded_disks: tuple[str, ...] = ()
    source: str = "hypervisor"
    force: bool = False


class VolumeOfJob(Record, frozen=True):
    id: str
    force: bool = False


class Selector(Record, frozen=True):
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = {}


class Schedule(Record, frozen=True, omit_defaults=True):
    """None: the schedule does not have it."""

    cron: str | None = None
    every: int | None = None
    anchor: datetime | None = None
    zone: str = "UTC"
    start: datetime | None = None
    end: datetime | None = None
    jitter: int = 0
    window: str | None = None
    full_cron: str | None = None
    full_every: int | None = None
    catch_up: str = "latest"


class Retention(Record, frozen=True):
    keep_last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    zone: str = "UTC"


class Retry(Record, frozen=True):
    retries: int | None = None
    delay: int | None = None


class Placement(Record, frozen=True):
    hosts: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()


class RestoreTest(Record, frozen=True):
    """None: as the operator says. `every`: 0: never."""

    every: int | None = None
    marker: str | None = None
    timeout: int | None = None


class Job(Record, frozen=True):
    id: str
    name: str
    state: str
    project_id: str = ""
    user_id: str | None = None
    description: str = ""
    state_reason: Said | None = None
    enabled: bool = True
    created_at: datetime | None = None
    updated_at: datetime | None = None
    vms: tuple[VmOfJob, ...] = ()
    volumes: tuple[VolumeOfJob, ...] = ()
    vm_selector: Selector | None = None
    schedule: Schedule | None = None
    next_run_at: datetime | None = None
    missed_runs: int = 0
    last_missed_at: datetime | None = None
    last_missed_reason: Said | None = None
    full_owed_since: datetime | None = None
    quiesce: str = "auto"
    engine: str = "auto"
    consistency_group: bool = True
    on_vm_failure: str = "abort"
    retention: Retention | None = None
    retry: Retry | None = None
    max_parallel_disks: int | None = None
    bandwidth_limit: int | None = None
    placement: Placement | None = None
    test_restore: RestoreTest | None = None
    proven_restorable_at: datetime | None = None
    proven_run_id: str | None = None
    metadata: dict[str, str] = {}
    vault_service_id: str | None = None
    etag: str | None = None


class Progress(Record, frozen=True):
    """`percent`: None: not known yet. `bytes_sent`: of a run."""

    bytes_total: int = 0
    bytes_done: int = 0
    bytes_sent: int = 0
    percent: int | None = None


class Backup(Record, frozen=True):
    """A stored disk copy."""

    id: str
    kind: str
    status: str
    vm_resource_backup_backing_id: str | None = None
    top: bool = False
    vault_service_id: str = ""
    bytes_stored: int = 0
    image_size: int = 0
    taken_at: datetime | None = None
    verified_at: datetime | None = None


class DiskOfRun(Record, frozen=True):
    id: str
    resource: str
    source: str | None = None
    size: int = 0
    kind: str | None = None
    mode: str | None = None
    reason: str | None = None
    progress: Progress = Progress()
    backup: Backup | None = None


class VmOfRun(Record, frozen=True):
    vm_id: str
    source: str = "hypervisor"
    name: str | None = None
    host: str | None = None
    state: str = ""
    excluded_disks: tuple[str, ...] = ()
    engine: str | None = None
    power: str | None = None
    consistency: str | None = None
    taken_at: datetime | None = None
    frozen_seconds: float | None = None
    error: Said | None = None
    warnings: tuple[str, ...] = ()
    proven_restorable_at: datetime | None = None
    proven_by: str | None = None
    unproven_at: datetime | None = None
    unproven_reason: Said | None = None
    server: dict[str, Any] | None = None
    temporary: tuple[dict[str, Any], ...] = ()
    resources: tuple[DiskOfRun, ...] = ()


class Run(Record, frozen=True):
    """`vms`: None in lists."""

    id: str
    backupjob_id: str
    state: str
    kind: str = ""
    trigger: str = ""
    project_id: str = ""
    user_id: str | None = None
    description: str = ""
    protected: bool = False
    queued_reason: Said | None = None
    error: Said | None = None
    warnings: tuple[str, ...] = ()
    scheduled_at: datetime | None = None
    retry_of: str | None = None
    attempt: int = 1
    created_at: datetime | None = None
    started_at: datetime | None = None
    taken_at: datetime | None = None
    finished_at: datetime | None = None
    verified_at: datetime | None = None
    proven_restorable_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    consistency: str | None = None
    group_consistent: bool | None = None
    skew_seconds: float | None = None
    skew_error_seconds: float | None = None
    frozen_seconds: float | None = None
    progress: Progress = Progress()
    bytes_stored: int = 0
    request_id: str | None = None
    vms: tuple[VmOfRun, ...] | None = None
    etag: str | None = None

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "ready", "running", "committing", "cancelling", "deleting")

    @property
    def restorable(self) -> bool:
        """It is a restore point."""
        return self.state in ("available", "degraded")


class VmOfRestore(Record, frozen=True):
    id: str
    disks: tuple[str, ...] = ()
    name: str | None = None
    overwrite: dict[str, Any] = {}


class Target(Record, frozen=True):
    """`project`: of the cloud, where that is another one."""

    kind: str
    project: Any = None
    directory: str | None = None
    host: str | None = None
    format: str | None = None
    start: bool = False
    cloud: dict[str, Any] = {}


class Restore(Record, frozen=True):
    id: str
    state: str
    target: Target
    project_id: str = ""
    user_id: str | None = None
    backupjobrun_id: str | None = None
    vms: tuple[VmOfRestore, ...] = ()
    progress: Progress = Progress()
    made: tuple[dict[str, Any], ...] = ()
    result: dict[str, Any] | None = None
    error: Said | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    request_id: str | None = None

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running", "cancelling")


class CopyHit(Record, frozen=True):
    """A stored disk copy."""

    backupjob: str
    backupjobrun: str
    vm: str
    resource: str


class Finding(Record, frozen=True):
    """Something that is wrong with an object of the vault, and what cannot be restored because of it."""

    object: str
    code: str = ""
    detail: str = ""
    hits: tuple[CopyHit, ...] = ()

    def lines(self) -> list[str]:
        return [self.detail, *(f"  run {hit.backupjobrun}: VM {hit.vm}, disk {hit.resource}" for hit in self.hits)]


class BootReason(Record, frozen=True):
    code: str = ""
    message: str = ""


class VmBooted(Record, frozen=True):
    """A VM of a test restore. `outcome`: `proven`, `failed`, `unknown`; None: not known yet."""

    id: str
    name: str | None = None
    outcome: str | None = None
    proven_by: str | None = None
    reason: BootReason | None = None
    seconds: float | None = None

    def line(self) -> str:
        by = f" by {self.proven_by}" if self.proven_by else ""
        why = f": {self.reason.message}" if self.reason else ""
        after = f" after {self.seconds:.0f} s" if self.seconds is not None else ""
        return f"{self.name or self.id}: {self.outcome or 'not known yet'}{by}{after}{why}"


class Verification(Record, frozen=True):
    """`backupjobrun_id`: None: of all restore points of the job. `boot`: a test restore."""

    id: str
    state: str
    backupjob_id: str
    backupjobrun_id: str | None = None
    project_id: str = ""
    user_id: str | None = None
    boot: bool = False
    vms: tuple[VmBooted, ...] = ()
    marker: str | None = None
    timeout: int | None = None
    data: bool = True
    percent: int = 100
    trigger: str = ""
    progress: Progress = Progress()
    copies: int = 0
    findings: tuple[Finding, ...] = ()
    healed: tuple[str, ...] = ()
    error: Said | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    request_id: str | None = None

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running")

    @property
    def unproven(self) -> tuple[VmBooted, ...]:
        """VMs of a test restore of which it is known that they are not proven."""
        return tuple(vm for vm in self.vms if vm.outcome not in (None, "proven"))


class DiskPlanned(Record, frozen=True):
    resource: str
    size: int = 0
    bytes_stored: int = 0
    copies: tuple[Backup, ...] = ()


class VmPlanned(Record, frozen=True):
    id: str
    name: str | None = None
    new_name: str | None = None
    disks: tuple[DiskPlanned, ...] = ()


class RestorePlan(Record, frozen=True):
    """What a restore would do."""

    backupjobrun_id: str
    kind: str
    taken_at: datetime | None = None
    consistency: str | None = None
    bytes_total: int = 0
    bytes_stored: int = 0
    vms: tuple[VmPlanned, ...] = ()
    problems: tuple[Said, ...] = ()


class Disk(Record, frozen=True):
    target: str
    size: int | None = None
    reason: str | None = None


class Vm(Record, frozen=True):
    """`refusal`: why it cannot be protected. `backupjobs`: ids of jobs that name it; None in lists."""

    id: str
    name: str
    power: str = "unknown"
    status: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    disks: tuple[Disk, ...] = ()
    volumes: tuple[str, ...] = ()
    refusal: Said | None = None
    seen_at: datetime | None = None
    backupjobs: tuple[str, ...] | None = None


class Vault(Record, frozen=True):
    id: str
    name: str
    kind: str = ""
    is_default: bool = False


class Service(Record, frozen=True):
    """A process of Raksha."""

    id: str
    kind: str
    name: str
    host: str = ""
    zone: str | None = None
    state: str = ""
    state_reason: str | None = None
    alive: bool = False
    version: str = ""
    capabilities: dict[str, Any] = {}
    capacity: int = 0
    running: int = 0
    started_at: datetime | None = None
    heartbeat_at: datetime | None = None
    etag: str | None = None


class Usage(Record, frozen=True):
    jobs: int = 0
    runs: int = 0
    runs_under_way: int = 0
    restores_under_way: int = 0
    stored_bytes: int = 0


class Limits(Record, frozen=True):
    """-1: any number. None: this service does not tell."""

    max_jobs: int | None = None
    max_runs: int | None = None
    max_stored_bytes: int | None = None
    max_concurrent_runs: int | None = None
    max_runs_under_way: int | None = None
    max_restores_under_way: int | None = None
    max_vms_per_job: int | None = None
    min_schedule_interval: int | None = None
    max_preview_times: int | None = None
    max_page_size: int | None = None
    max_body_bytes: int | None = None
    etag: str | None = None


class FireTime(Record, frozen=True):
    scheduled_at: datetime
    full: bool = False


class SchedulePreview(Record, frozen=True):
    in_words: str
    fire_times: tuple[FireTime, ...] = ()


class Decision(Record, frozen=True):
    backupjobrun_id: str
    taken_at: datetime
    kept: bool
    protected: bool = False
    restorable: bool = True
    reasons: tuple[str, ...] = ()


class RetentionPreview(Record, frozen=True):
    """Runs that have ended, oldest first."""

    kept: int
    deleted: int
    decisions: tuple[Decision, ...] = ()
