"""Work under way: tasks, slots, consistency groups, restores, verifications."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Double, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from raksha.db.columns import Word
from raksha.db.models.base import Base, Count, CreatedAt, Document, Id, Micros, Name, Text36, options, refers
from raksha.states import BarrierState, MemberState, RestoreState, TaskKind, TaskState, Trigger, VerificationState


class Restore(Base):
    """One restore of a run, or of a part of it."""

    __tablename__ = "restores"

    id: Mapped[Id]
    project_id: Mapped[Name]
    user_id: Mapped[Name | None]
    #: None: the restore point is gone since
    backupjobrun_id: Mapped[str | None] = refers("backupjobruns.id", "SET NULL")
    state: Mapped[RestoreState] = mapped_column(Word(RestoreState), default=RestoreState.QUEUED)
    epoch: Mapped[Count]
    #: what was asked for: VMs, disks, kind and name of the target
    target: Mapped[Document]
    #: Keystone trust by which it acts in another project, the one that `target.project` names; None: in its own, by
    #: those of jobs, or it has ended
    trust_id: Mapped[Name | None]
    #: everything that it has made or is about to write to, recorded before: a leftover can be found
    made: Mapped[Document] = mapped_column(default=list)
    result: Mapped[Document | None]
    error: Mapped[Document | None]
    bytes_total: Mapped[Count]
    bytes_done: Mapped[Count]
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Micros | None]
    finished_at: Mapped[Micros | None]
    cancel_requested_at: Mapped[Micros | None]
    request_id: Mapped[Name | None]

    __table_args__ = options(
        Index(None, "project_id", "created_at", "id"),
        Index(None, "backupjobrun_id"),
        Index(None, "state"),
        Index(None, "trust_id"),
    )


class Verification(Base):
    """A look at whether restore points still hold what was stored: one, or all of a job; or whether one boots."""

    __tablename__ = "verifications"

    id: Mapped[Id]
    project_id: Mapped[Name]
    #: None: nobody asked, it was time
    user_id: Mapped[Name | None]
    backupjob_id: Mapped[str] = refers("backupjobs.id")
    #: None: all that the job has
    backupjobrun_id: Mapped[str | None] = refers("backupjobruns.id")
    state: Mapped[VerificationState] = mapped_column(Word(VerificationState), default=VerificationState.QUEUED)
    #: whether stored bytes are read, or only looked for
    data: Mapped[bool] = mapped_column(Boolean, default=True)
    #: of them, in hundredths
    percent: Mapped[int] = mapped_column(Integer, default=100)
    #: it is a test restore: VMs of one restore point are booted, and nothing else is looked at
    boot: Mapped[bool] = mapped_column(Boolean, default=False)
    #: text on the console that shows that a VM is up; None: its guest agent answers
    marker: Mapped[str | None] = mapped_column(String(255))
    #: seconds that each VM has for that
    timeout: Mapped[int | None]
    #: which were wanted, and what came of each: id, outcome, by what it was proven, reason, seconds
    vms: Mapped[Document] = mapped_column(default=list)
    trigger: Mapped[Trigger] = mapped_column("triggered_by", Word(Trigger))
    #: fences who makes its tasks
    epoch: Mapped[Count]
    #: stored disk copies that were looked at
    copies: Mapped[Count]
    #: object, code, detail and the copies that cannot be restored because of it
    findings: Mapped[Document] = mapped_column(default=list)
    #: names of objects that were damaged, and are whole again
    healed: Mapped[Document] = mapped_column(default=list)
    error: Mapped[Document | None]
    bytes_total: Mapped[Count]
    bytes_done: Mapped[Count]
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Micros | None]
    finished_at: Mapped[Micros | None]
    cancel_requested_at: Mapped[Micros | None]
    request_id: Mapped[Name | None]

    __table_args__ = options(
        Index(None, "project_id", "created_at", "id"),
        Index(None, "backupjob_id"),
        Index(None, "backupjobrun_id"),
        Index(None, "state"),
    )


class Task(Base):
    """A piece of work that an agent claims. Terminal rows stay while any segment of theirs is listed."""

    __tablename__ = "tasks"

    id: Mapped[Id]
    kind: Mapped[TaskKind] = mapped_column(Word(TaskKind))
    state: Mapped[TaskState] = mapped_column(Word(TaskState), default=TaskState.PENDING)
    #: grows with every claim; reports of an older one are refused
    epoch: Mapped[Count]
    project_id: Mapped[Name]
    backupjobrun_id: Mapped[str | None] = refers("backupjobruns.id", "RESTRICT")
    restore_id: Mapped[str | None] = refers("restores.id", "RESTRICT")
    verification_id: Mapped[str | None] = refers("verifications.id", "RESTRICT")
    vault_id: Mapped[str | None] = refers("vaults.id", "RESTRICT")
    vm_id: Mapped[Text36 | None]
    #: only the agent of this host may claim it; None: any agent that the placement allows
    host: Mapped[Name | None]
    #: what an agent must be capable of (`storage`). Such a task is bound to a host only while its agent has it
    needs: Mapped[str | None] = mapped_column(String(32))
    placement: Mapped[Document | None]
    priority: Mapped[int] = mapped_column(Integer, default=0)
    not_before: Mapped[Micros] = mapped_column(default=0)

    service_id: Mapped[str | None] = refers("services.id", "SET NULL")
    lease_until: Mapped[Micros] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    cancel_requested_at: Mapped[Micros | None]

    #: what to do; what came of it
    order: Mapped[Document] = mapped_column("work_order", default=dict)
    result: Mapped[Document | None]
    error: Mapped[Document | None]
    #: number of the last report of this epoch that was taken: older and repeated ones change nothing
    report_number: Mapped[Count]
    progress: Mapped[Document | None]
    #: of a backup from storage, what it has in the cloud for the time being, by volume: `temp_snapshot_id`,
    #: `temp_volume_id`, `attachments`, `previous_status`. None: nothing
    temporary: Mapped[Document | None]
    #: when it is looked at whether that is left over; None: there is nothing
    clear_at: Mapped[Micros | None]
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Micros | None]
    finished_at: Mapped[Micros | None]

    __table_args__ = options(
        Index(None, "clear_at"),
        Index(None, "state", "host", "priority", "created_at"),
        Index(None, "state", "lease_until"),
        Index(None, "backupjobrun_id"),
        Index(None, "restore_id"),
        Index(None, "verification_id"),
        Index(None, "vault_id", "state"),
        Index(None, "service_id", "state"),
    )


class Reservation(Base):
    """A slot of something that only so many may use at once: a VM, a host, a project, a vault. Taken by inserting."""

    __tablename__ = "reservations"

    #: `vm`, `host`, `project`, `vault`
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    #: 0 … limit-1
    slot: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    #: id of the run or restore
    holder_id: Mapped[Text36]
    created_at: Mapped[CreatedAt]

    __table_args__ = options(Index(None, "holder_id"))


class Barrier(Base):
    """The consistency group of one attempt of a run: freeze, snapshot and thaw together, or not at all."""

    __tablename__ = "barriers"

    id: Mapped[Id]
    backupjobrun_id: Mapped[str] = refers("backupjobruns.id")
    state: Mapped[BarrierState] = mapped_column(Word(BarrierState), default=BarrierState.GATHERING)
    #: all must be over by then; set anew when freezing begins
    deadline_at: Mapped[Micros]
    #: grows with each report: two that come at once stand in line, on every kind of cluster
    reports: Mapped[Count]
    #: why it failed
    error: Mapped[Document | None]
    created_at: Mapped[CreatedAt]

    __table_args__ = options(UniqueConstraint("backupjobrun_id"), Index(None, "state", "deadline_at"))


class BarrierMember(Base):
    """A VM in a consistency group."""

    __tablename__ = "barrier_members"

    id: Mapped[Id]
    barrier_id: Mapped[str] = refers("barriers.id")
    task_id: Mapped[str] = refers("tasks.id")
    vm_id: Mapped[Text36]
    state: Mapped[MemberState] = mapped_column(Word(MemberState), default=MemberState.WAITING)
    #: epoch of the claim under which it takes part: another claim cannot go on with its freeze
    epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    #: by the clock of its host, corrected by the offset measured to the database's; seconds of error of that
    frozen_at: Mapped[Micros | None]
    captured_at: Mapped[Micros | None]
    thawed_at: Mapped[Micros | None]
    clock_error_seconds: Mapped[float | None] = mapped_column(Double)
    error: Mapped[Document | None]

    __table_args__ = options(UniqueConstraint("barrier_id", "vm_id"), Index(None, "task_id"))
