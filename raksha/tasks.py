"""What schedulers and agents say to each other: tasks, what comes of them, consistency groups.

Any scheduler answers; the database behind it is the queue and the truth. An agent asks, and asks again until it is
answered: everything here may be said twice, and arrive twice or in another order.

::

    REGISTER                    at start                       which service it is
    HEARTBEAT                   every few seconds              what its operator wants of it
    CLAIM                       when it has room               tasks, each under an epoch and a lease
    RENEW, REPORT               while it works                 whether somebody wants the end of it
    ENTER, LOOK, THAWED         in a consistency group         how far the group is
    FINISH or HAND_BACK         at the end                     until acknowledged; nothing is forgotten before

An answer `EpochStale` casts doubt on a claim: the next CLAIM names those that the agent holds, and brings the task back
under a new epoch, or does not. Then somebody else has it, or has ended it, and what this one stored is inert.

A backup is two tasks of the host: BACKUP captures, stores and keeps the capture open; a scheduler makes the restore
point; FINISH says what became of it, so that layers may be merged, or must stay. Between them the agent may die: the
journal of its host knows the run.

Records are part of the protocol: fields may be added, with defaults. Times are µs since 1970 UTC of the database's
clock unless they say seconds. Paths and URLs never hold secrets.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from raksha.errors import BusUnavailable, CommitUnknown, DatabaseBusy, DatabaseUnavailable
from raksha.rpc import Nothing, Verb
from raksha.states import (
    BarrierState,
    BootOutcome,
    MemberState,
    ProvenBy,
    Quiesce,
    Reason,
    ServiceState,
    Source,
    TaskKind,
    TaskState,
)
from raksha.types import ResourceKey
from raksha.vault.metadata import BackupMetadata, VMMetadata, VmSummary
from raksha.vault.recorded import RecordedCopy
from raksha.virt.capture import BaseImage

#: of restores: targets that the cloud makes; the others are files and VMs of a host
CLOUD_KINDS = ("server", "volume", "image")

# -- the process ------------------------------------------------------------------------------------


class Register(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent has started."""

    #: its name: one agent a host
    host: str
    #: of this start of the process
    instance: str
    version: str
    zone: str | None = None
    #: tasks that it may hold at once
    capacity: int
    #: engines, kinds of restore targets, versions of libvirt and QEMU
    capabilities: dict[str, Any]


class Registered(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    service_id: str
    state: ServiceState
    heartbeat_seconds: float
    lease_seconds: float


class SeenDisk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A disk that can be protected, or not."""

    target: str
    #: bytes
    size: int | None
    #: why it is left out or refused
    reason: str | None = None
    #: whose clones share data with it
    base: BaseImage | None = None


class SeenVm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A VM on the agent's host."""

    vm: str
    name: str
    power: str
    #: None: of no project
    project_id: str | None = None
    tags: tuple[str, ...] = ()
    hints: dict[str, str] = {}
    disks: tuple[SeenDisk, ...] = ()
    #: why it cannot be protected: code and message
    refusal: dict[str, Any] | None = None


class Heartbeat(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    service_id: str
    instance: str
    #: tasks it holds
    load: int
    #: all that it sees; None: as it said last
    vms: tuple[SeenVm, ...] | None = None


class Wanted(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What its operator wants of it: to work, to end what it has, or nothing."""

    state: ServiceState


# -- what is to be done -----------------------------------------------------------------------------


class VaultAccess(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to store and read. It exists: a scheduler has made it."""

    url: str
    #: in its `vault.json`; another there is an error
    vault_uuid: str
    #: a token of the run's project, as variables of an environment; None: with what the agent's own says
    credentials: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"VaultAccess({self.url!r})"


class CloudAccess(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the task may do in its project of the cloud."""

    token: str
    #: by types of the catalog: `compute`, `block-storage`, `image`, `network`
    endpoints: dict[str, str]

    def __repr__(self) -> str:
        return f"CloudAccess({sorted(self.endpoints)})"


class Copy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stored disk copy that the order refers to; pinned as long as the task lives."""

    key: ResourceKey
    #: bytes of the disk
    size: int
    #: its commit: restore points are ordered by it
    number: int


class BackupOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="backup"):
    """Capture one VM and store its disks."""

    backupjob: str
    backupjobrun: str
    vm: str
    exclude: tuple[str, ...] = ()
    quiesce: Quiesce = Quiesce.AUTO
    engine: str = "auto"
    #: unless it is HYPERVISOR, any agent may have it, and `engine`, `quiesce` and `group` say nothing
    source: Source = Source.HYPERVISOR
    #: a volume may be in use by a server
    force: bool = False
    #: read and store everything, whatever is there
    full: bool = False
    #: per disk the newest copy of this job, on which an increment builds
    parents: dict[str, Copy] = {}
    #: why a disk that has older copies gets a full one
    reasons: dict[str, Reason] = {}
    #: other copies of this VM's disks, of any job, the newest first: trackers may count from them
    history: tuple[Copy, ...] = ()
    #: copies of disks on the same base images: a full copy may share their segments
    clones: tuple[Copy, ...] = ()
    #: of all these and what they build on: what the database knows counts before what the vault says
    recorded: tuple[RecordedCopy, ...] = ()
    #: the consistency group; None: it freezes by itself
    group: str | None = None
    #: where the group fails, capture it all the same, by itself (its job says `degrade`); else the task fails
    alone: bool = False
    max_parallel_disks: int | None = None
    #: bytes per second of this task, sent to the vault
    bandwidth_limit: int | None = None


class FinishOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="finish"):
    """A run has ended: let its capture go."""

    backupjob: str
    backupjobrun: str
    vm: str
    #: its commit; None: it became no restore point, the layers stay for the next run
    number: int | None


class RestoreOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="restore"):
    """Write disks of a restore point to somewhere."""

    restore: str
    backupjob: str
    backupjobrun: str
    vm: str
    #: disk targets; empty: all
    disks: tuple[str, ...] = ()
    #: kind (`domain`, `files`, `in_place`, or one of `CLOUD_KINDS`) and what that kind needs
    target: dict[str, Any]
    #: all copies that it reads, as the database knows them; no others are read. None: it is a scheduler's that does not
    #: tell yet
    recorded: tuple[RecordedCopy, ...] | None = None
    #: of the VMMetadata; None: the point is older than this was noted
    machine_digest: str | None = None


class VerifyOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="verify"):
    """Read stored copies and check them."""

    copies: tuple[Copy, ...]
    #: fetch and decode everything, not just maps
    data: bool = False
    #: of the data, and which: what is at hundredth `offset` and the following ones
    percent: int = 100
    offset: int = 0
    #: damaged data that is stored a second time, whole, is put in the place of what is damaged
    heal: bool = False
    #: all that is looked at, and what it builds on, as the database knows it; no other copies are
    recorded: tuple[RecordedCopy, ...] | None = None
    #: digests of VMMetadata, by run and VM
    machines: dict[str, dict[str, str | None]] = {}
    #: bytes per second that are read
    bandwidth_limit: int | None = None


class BootOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="boot"):
    """Boot a VM of a restore point where it reaches nobody, and see whether it comes up."""

    verification: str
    backupjob: str
    backupjobrun: str
    vm: str
    #: as `RestoreOrder` has them
    recorded: tuple[RecordedCopy, ...] | None = None
    machine_digest: str | None = None
    #: text on its serial console that shows that it is up; None: its guest agent answers
    marker: str | None = None
    #: seconds that it has for that
    timeout: int
    #: its guest agent answered when it was captured: silence is a failure
    expects_agent: bool = False


class ReleaseOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="release"):
    """Give a VM back without a trace of us in its chain."""

    vm: str


Order = BackupOrder | FinishOrder | RestoreOrder | VerifyOrder | BootOrder | ReleaseOrder


class Claim(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Room for so many tasks of these kinds."""

    service_id: str
    instance: str
    kinds: tuple[TaskKind, ...]
    limit: int
    #: all claims that this start of the agent knows of. Any other claim of the agent was answered to nobody (the answer
    #: was lost, or an earlier start had it): it gets the task again, beside the limit, under a new epoch. None: it does
    #: not say
    holding: tuple[Held, ...] | None = None


class Claimed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task that is the agent's until its lease is over."""

    task_id: str
    epoch: int
    lease_seconds: float
    order: Order
    #: None: nothing is stored or read
    vault: VaultAccess | None = None
    #: None: there is no cloud, or nothing to be done in it
    cloud: CloudAccess | None = None
    #: of the HTTP request that began it, for logs
    request_id: str | None = None

    @property
    def claim(self) -> str:
        """Names what this claim stores: no other writes under that name."""
        return f"{self.task_id}.{self.epoch}"


class Claims(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tasks: tuple[Claimed, ...]


class Held(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A claim, as its agent names it."""

    task_id: str
    epoch: int


class Renewed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    lease_seconds: float
    #: somebody wants the end of it
    cancel: bool = False
    #: newer ones, where the claim came with some
    credentials: dict[str, str] | None = None
    cloud: CloudAccess | None = None

    def __repr__(self) -> str:
        return f"Renewed({self.lease_seconds}, cancel={self.cancel})"


# -- what comes of it -------------------------------------------------------------------------------


class DiskProgress(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes of one disk."""

    resource: str
    size: int
    #: to be read, as far as that is known
    total: int
    done: int
    sent: int


class Report(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a task is."""

    task_id: str
    epoch: int
    #: 1, 2, … within the epoch; older ones change nothing
    number: int
    #: what it does now, in a word or two
    step: str
    disks: tuple[DiskProgress, ...] = ()
    #: of a restore: what it is about to make or write to; of a backup from storage, and of its end: what it has in the
    #: cloud for the time being (`raksha/scheduler/temporary.py`). Said before it is made
    made: tuple[dict[str, Any], ...] = ()


class Stored(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="stored"):
    """Of a backup: segments, image tables and maps are in the vault; the capture is open and was checked last."""

    vm: VmSummary
    disks: tuple[BackupMetadata, ...]
    machine: VMMetadata
    warnings: tuple[str, ...] = ()


class Finished(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="finished"):
    """Of a finish or a release: what a person should know."""

    warnings: tuple[str, ...] = ()


class Restored(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="restored"):
    """Of a restore: what there is now."""

    #: of a new VM
    vm: str | None = None
    name: str | None = None
    #: disk target, path and size of each
    disks: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


class Verified(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="verified"):
    """Of a verification: copies that are whole, and what is wrong with others."""

    sound: tuple[ResourceKey, ...]
    #: object, code, detail, and the copies that it hits
    findings: tuple[dict[str, Any], ...] = ()
    #: names of objects that were damaged, and are whole again
    healed: tuple[str, ...] = ()


class Booted(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="booted"):
    """Of a VM that was booted to see whether it comes up."""

    outcome: BootOutcome
    proven_by: ProvenBy | None = None
    #: why it is not proven: code and message
    reason: dict[str, str] | None = None
    #: from its start to the end of looking
    seconds: float | None = None


Result = Stored | Finished | Restored | Verified | Booted


class Finish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The end of a claim: DONE with a result, or ERROR, CANCELLED, NEEDS_ATTENTION with an error."""

    task_id: str
    epoch: int
    to: TaskState
    result: Result | None = None
    #: `RakshaError.document()`: code, message, hint, fields, retryable
    error: dict[str, Any] | None = None


class HandBack(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another may have it, not before so many seconds."""

    task_id: str
    epoch: int
    delay: float = 0.0


# -- consistency groups -----------------------------------------------------------------------------


class Enter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A member has come to a stage: JOINED, FROZEN, CAPTURED; or FAILED, with an error."""

    group: str
    vm: str
    epoch: int
    to: MemberState
    #: when, by its host's clock corrected by the measured offset; and how wrong that may be, seconds
    at: int | None = None
    clock_error_seconds: float | None = None
    error: dict[str, Any] | None = None


class Look(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far is the group?"""

    group: str


class Seen(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    state: BarrierState
    #: the database's clock, and when the stage must be over by it
    now: int
    deadline_at: int


class Thawed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A member's file systems go on."""

    group: str
    vm: str
    epoch: int
    at: int


#: a scheduler could not answer, or not say whether it had done what was asked: it is to be said again
NOT_NOW = (BusUnavailable, DatabaseUnavailable, DatabaseBusy, CommitUnknown)

REGISTER = Verb("register", Register, Registered)
HEARTBEAT = Verb("heartbeat", Heartbeat, Wanted)
CLAIM = Verb("claim", Claim, Claims)
RENEW = Verb("renew", Held, Renewed)
REPORT = Verb("report", Report, Nothing)
FINISH = Verb("finish", Finish, Nothing)
HAND_BACK = Verb("hand_back", HandBack, Nothing)
ENTER = Verb("enter", Enter, Seen)
LOOK = Verb("look", Look, Seen)
THAWED = Verb("thawed", Thawed, Nothing)
