"""Backup jobs, their runs, and the VMs and disks of each run."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Double, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from raksha.db.columns import Word
from raksha.db.models.base import Base, Count, CreatedAt, Document, Id, Micros, Name, Text36, Url, options, refers
from raksha.states import (
    BackupKind,
    Consistency,
    JobState,
    ProvenBy,
    Quiesce,
    ReadMode,
    Reason,
    RunState,
    RunVmState,
    Source,
    Trigger,
)


class BackupJob(Base):
    """What a tenant defines: VMs, schedule, retention, consistency."""

    __tablename__ = "backupjobs"

    id: Mapped[Id]
    project_id: Mapped[Name]
    user_id: Mapped[Name | None]
    name: Mapped[Name]
    description: Mapped[str] = mapped_column(Text, default="")
    state: Mapped[JobState] = mapped_column(Word(JobState), default=JobState.ACTIVE)
    #: why it is suspended: code and message
    state_reason: Mapped[Document | None]
    #: grows with every change by its owner: the ETag
    version: Mapped[int] = mapped_column(Integer, default=1)
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]

    #: cron or interval with anchor, zone, start, end, jitter, window; None: by hand only
    schedule: Mapped[Document | None]
    #: when it fires next, or is to be looked at; None: never
    next_run_at: Mapped[Micros | None]
    #: fire times up to here are dealt with; None: all before `next_run_at` are
    fired_upto: Mapped[Micros | None]
    #: fire times that were let pass after a downtime
    missed_runs: Mapped[Count]
    last_missed_at: Mapped[Micros | None]
    #: why the last one was let pass: code and message
    last_missed_reason: Mapped[Document | None]
    #: `latest`: fire once for what was missed; `skip`
    catch_up: Mapped[str] = mapped_column(String(16), default="latest")

    #: every N-th run is full; None: as `full_schedule` says, or only the first
    full_every: Mapped[int | None]
    full_schedule: Mapped[Document | None]
    #: a full run has been owed since then: its time was let pass, or it failed
    next_full_at: Mapped[Micros | None]
    #: incremental runs asked for since the last full one
    runs_since_full: Mapped[Count]

    quiesce: Mapped[Quiesce] = mapped_column(Word(Quiesce), default=Quiesce.AUTO)
    engine: Mapped[str] = mapped_column(String(16), default="auto")
    #: the members of a run freeze together
    consistency_group: Mapped[bool] = mapped_column(Boolean, default=True)
    #: `abort` the run or `degrade` it, when one of its VMs cannot
    on_vm_failure: Mapped[str] = mapped_column(String(16), default="abort")
    retention: Mapped[Document | None]
    retry_policy: Mapped[Document | None]
    max_parallel_disks: Mapped[int | None]
    #: bytes per second
    bandwidth_limit: Mapped[int | None] = mapped_column(BigInteger)
    #: hosts and zones that work which any agent can do may go to
    placement: Mapped[Document | None]
    #: keys and values that are carried to the objects in the vault
    hints: Mapped[Document | None]
    #: tags and metadata by which VMs are found at each run
    vm_selector: Mapped[Document | None]
    #: None: the default one
    vault_service_id: Mapped[str | None] = refers("vault_services.id", "RESTRICT")
    #: Keystone trust under which it runs
    trust_id: Mapped[Name | None]
    #: by which it acted before others took it over; they are to be ended
    former_trusts: Mapped[Document] = mapped_column(default=list)
    #: seconds between two test restores; None: as the operator says, 0: none
    test_every: Mapped[int | None]
    #: text on the console that shows that a VM is up, and seconds that it has; None: its agent answers, the default
    test_marker: Mapped[str | None] = mapped_column(String(255))
    test_timeout: Mapped[int | None]
    #: when all VMs of a restore point of it last came up in a test, and which one that was; it may be gone
    proven_restorable_at: Mapped[Micros | None]
    proven_run_id: Mapped[Text36 | None]
    #: when it is looked at what stayed in the cloud of volumes that it names no more; None: there is nothing
    clear_at: Mapped[Micros | None]

    __table_args__ = options(
        Index(None, "clear_at"),
        Index(None, "project_id", "created_at", "id"),
        Index(None, "project_id", "name", "id"),
        Index(None, "state", "next_run_at"),
    )


class BackupJobVm(Base):
    """A VM that a job names, or a volume in the place of one."""

    __tablename__ = "backupjob_vms"

    id: Mapped[Id]
    backupjob_id: Mapped[str] = refers("backupjobs.id")
    vm_id: Mapped[Text36]
    #: of a VOLUME, `vm_id` is the volume's
    source: Mapped[Source] = mapped_column(Word(Source), default=Source.HYPERVISOR)
    #: volumes may be in use by a server
    force: Mapped[bool] = mapped_column(Boolean, default=False)
    #: names of disks that are left out
    excluded_disks: Mapped[Document] = mapped_column(default=list)
    position: Mapped[int] = mapped_column(Integer, default=0)

    __table_args__ = options(UniqueConstraint("backupjob_id", "vm_id"), Index(None, "vm_id"))


class BackupJobRun(Base):
    """One execution of a job, and the restore point that it leaves."""

    __tablename__ = "backupjobruns"

    id: Mapped[Id]
    backupjob_id: Mapped[str] = refers("backupjobs.id", "RESTRICT")
    project_id: Mapped[Name]
    user_id: Mapped[Name | None]
    description: Mapped[str] = mapped_column(Text, default="")
    #: retention leaves it alone
    protected: Mapped[bool] = mapped_column(Boolean, default=False)
    state: Mapped[RunState] = mapped_column(Word(RunState), default=RunState.QUEUED)
    #: fences who commits: taken over with a higher one
    epoch: Mapped[Count]
    #: the scheduler that commits or deletes it, and until when
    owner_id: Mapped[Text36 | None]
    lease_until: Mapped[Micros | None]
    version: Mapped[int] = mapped_column(Integer, default=1)

    trigger: Mapped[Trigger] = mapped_column("triggered_by", Word(Trigger))
    #: what was asked for; each disk says what it became
    kind: Mapped[BackupKind] = mapped_column(Word(BackupKind))
    #: fire time; None if by hand. One run per job and fire time, whoever fires
    scheduled_at: Mapped[Micros | None]
    #: not dispatched before: the delay of a retry
    not_before: Mapped[Micros] = mapped_column(default=0)
    #: what it waits for while it is queued: code and message; None: its turn
    queued_reason: Mapped[Document | None]
    #: the run that failed; it is retried once, its retry may be again
    retry_of: Mapped[str | None] = refers("backupjobruns.id", "SET NULL")
    attempt: Mapped[int] = mapped_column(Integer, default=1)
    request_id: Mapped[Name | None]

    created_at: Mapped[CreatedAt]
    started_at: Mapped[Micros | None]
    taken_at: Mapped[Micros | None]
    finished_at: Mapped[Micros | None]
    #: since when it is known that all its bytes are there and right
    verified_at: Mapped[Micros | None]
    #: since when each of its VMs is known to come up
    proven_restorable_at: Mapped[Micros | None]
    cancel_requested_at: Mapped[Micros | None]
    error: Mapped[Document | None]
    warnings: Mapped[Document] = mapped_column(default=list)

    #: the weakest of its VMs; None: not known yet
    consistency: Mapped[Consistency | None] = mapped_column(Word(Consistency))
    #: all VMs were frozen at one instant
    group_consistent: Mapped[bool | None]
    #: seconds between first and last snapshot, and the error of the clocks it was measured with
    skew_seconds: Mapped[float | None] = mapped_column(Double)
    skew_error_seconds: Mapped[float | None] = mapped_column(Double)
    #: longest freeze of a VM
    frozen_seconds: Mapped[float | None] = mapped_column(Double)

    #: bytes: to do, done, sent; as the agents report them
    bytes_total: Mapped[Count]
    bytes_done: Mapped[Count]
    bytes_sent: Mapped[Count]
    #: compressed data that it refers to
    bytes_stored: Mapped[Count]

    vault_id: Mapped[str | None] = refers("vaults.id", "RESTRICT")
    #: of its commit in the vault: `epochs/<n>`
    commit_number: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = options(
        UniqueConstraint("backupjob_id", "scheduled_at"),
        UniqueConstraint("retry_of"),
        UniqueConstraint("vault_id", "commit_number"),
        Index(None, "backupjob_id", "created_at", "id"),
        Index(None, "project_id", "created_at", "id"),
        Index(None, "project_id", "state"),
        Index(None, "state", "not_before"),
        Index(None, "state", "lease_until"),
    )


class BackupJobRunVm(Base):
    """A VM in a run, or a volume in the place of one."""

    __tablename__ = "backupjobrun_vms"

    id: Mapped[Id]
    backupjobrun_id: Mapped[str] = refers("backupjobruns.id")
    vm_id: Mapped[Text36]
    source: Mapped[Source] = mapped_column(Word(Source), default=Source.HYPERVISOR)
    name: Mapped[Name | None]
    #: of what is taken from storage: of the agent that has it, or had it last
    host: Mapped[Name | None]
    state: Mapped[RunVmState] = mapped_column(Word(RunVmState), default=RunVmState.PENDING)
    excluded_disks: Mapped[Document] = mapped_column(default=list)
    engine: Mapped[str | None] = mapped_column(String(16))
    power: Mapped[str | None] = mapped_column(String(32))
    consistency: Mapped[Consistency | None] = mapped_column(Word(Consistency))
    taken_at: Mapped[Micros | None]
    frozen_seconds: Mapped[float | None] = mapped_column(Double)
    error: Mapped[Document | None]
    warnings: Mapped[Document] = mapped_column(default=list)
    #: when it last came up in a test, and how it said so
    proven_restorable_at: Mapped[Micros | None]
    proven_by: Mapped[ProvenBy | None] = mapped_column(Word(ProvenBy))
    #: when it last did not, and why: code and message. None: it has since
    unproven_at: Mapped[Micros | None]
    unproven_reason: Mapped[Document | None]
    #: as its cloud knew it (`raksha.server.Server`)
    server: Mapped[Document | None]

    __table_args__ = options(UniqueConstraint("backupjobrun_id", "vm_id"), Index(None, "vm_id", "taken_at"))


class BackupJobRunVmResource(Base):
    """A disk of a VM in a run."""

    __tablename__ = "backupjobrun_vm_resources"

    id: Mapped[Id]
    backupjobrun_vm_id: Mapped[str] = refers("backupjobrun_vms.id")
    #: as the guest's hypervisor names it: `vda`
    resource: Mapped[Name]
    #: image or volume that it was made from, where a cloud knows that
    source: Mapped[Url | None]
    size: Mapped[Count]
    kind: Mapped[BackupKind | None] = mapped_column(Word(BackupKind))
    mode: Mapped[ReadMode | None] = mapped_column(Word(ReadMode))
    #: why it is no plain increment
    reason: Mapped[Reason | None] = mapped_column(Word(Reason))
    bytes_total: Mapped[Count]
    bytes_done: Mapped[Count]
    bytes_sent: Mapped[Count]
    facts: Mapped[Document] = mapped_column(default=dict)

    __table_args__ = options(UniqueConstraint("backupjobrun_vm_id", "resource"))
