"""Words that are stored or shown, each with its one meaning."""

from __future__ import annotations

from enum import StrEnum


class BackupKind(StrEnum):
    """What a stored disk copy is."""

    #: stands alone
    FULL = "full"
    #: needs its parent
    INCREMENTAL = "incremental"


class ReadMode(StrEnum):
    """How a disk has to be read to get the wanted copy."""

    #: everything that is not known to be zero; the result is a full copy
    FULL = "full"
    #: the extents listed are everything written since the parent: store them
    DELTA = "delta"
    #: the tracker does not count from the parent: read everything, store what differs from the parent's map
    COMPARE = "compare"


class Reason(StrEnum):
    """Why a disk was not read as a plain increment. Stored with the disk, shown by `raksha local show`."""

    FIRST_RUN = "first_run"
    ASKED = "asked_for_full"
    NO_TRACKER = "no_tracker"
    TRACKER_OTHER_RUN = "tracker_counts_from_another_run"
    RESTARTED_BELOW = "restarted_below_the_overlay"
    BASE_WRITTEN = "written_below_the_overlay"
    DISK_REPLACED = "disk_replaced"
    DISK_RESIZED = "disk_resized"
    PARENT_DAMAGED = "parent_damaged"
    SHUT_OFF = "vm_shut_off"
    #: a failed run lies between: all layers since the parent are sent (a superset, still exact)
    UNION_OF_LAYERS = "union_of_layers"
    #: raw, qcow2 before version 3, a network disk, or internal snapshots that a bitmap would lock
    NO_BITMAP = "no_bitmap_possible"
    #: the bitmap that counts from the parent is gone from the disk
    BITMAP_LOST = "bitmap_lost"
    #: QEMU was killed while the bitmap recorded, so it may not hold everything
    BITMAP_INCONSISTENT = "bitmap_inconsistent"
    #: other images lie below the one that holds the bitmap
    BACKING_CHANGED = "backing_chain_changed"
    #: taken from the image that Nova made of it, which says nothing of what has changed
    SERVER_SHELVED = "server_shelved"


class Source(StrEnum):
    """Where the disks of a member of a job are taken from."""

    #: from the hypervisor that runs the VM
    HYPERVISOR = "hypervisor"
    #: from the storage, by any agent: of a server its volumes
    STORAGE = "storage"
    #: the same, of one volume that the job names itself: it stands in the place of a VM, with one disk
    VOLUME = "volume"


class Quiesce(StrEnum):
    """Whether the guest agent freezes the file systems around the snapshot."""

    #: freeze if the agent answers, else go on crash-consistent
    AUTO = "auto"
    #: freeze or fail
    REQUIRE = "require"
    NEVER = "never"


class Consistency(StrEnum):
    """What a restored VM will find."""

    #: file systems were frozen by the guest agent
    QUIESCED = "quiesced"
    #: as after a power cut
    CRASH = "crash"
    #: the VM was shut off
    OFFLINE = "offline"
    #: the VM was paused
    PAUSED = "paused"


class Format(StrEnum):
    """Of a restored disk."""

    RAW = "raw"
    QCOW2 = "qcow2"


# -- the service: which moves between these are legal stands in raksha/db/moves.py ----------------------


class JobState(StrEnum):
    """Of a backup job."""

    #: its schedule fires
    ACTIVE = "active"
    #: its owner said so; it can still be run by hand
    PAUSED = "paused"
    #: it cannot run until somebody acts (a broken trust); the job says why
    SUSPENDED = "suspended"
    #: nothing new starts, its runs are being removed
    DELETING = "deleting"


class RunState(StrEnum):
    """Of a backup job run."""

    QUEUED = "queued"
    #: all VM and host slots are reserved, its tasks can be claimed
    READY = "ready"
    #: at least one agent works on it
    RUNNING = "running"
    #: everything is stored, the last objects are being written
    COMMITTING = "committing"
    #: a restore point
    AVAILABLE = "available"
    #: a restore point of which something stored was found missing or damaged
    DEGRADED = "degraded"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    ERROR = "error"
    #: neither going on nor undoing is proven safe on some host
    NEEDS_ATTENTION = "needs_attention"
    #: no restore point any more, its objects are being removed
    DELETING = "deleting"


class RunVmState(StrEnum):
    """Of one VM in a run."""

    PENDING = "pending"
    RUNNING = "running"
    #: its part is stored; whether it counts, the run tells
    STORED = "stored"
    #: left out, with a reason
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    ERROR = "error"
    NEEDS_ATTENTION = "needs_attention"


class BackupState(StrEnum):
    """Of one stored disk copy (column `status`)."""

    CREATING = "creating"
    AVAILABLE = "available"
    #: something of it was found missing or damaged: no parent, no source of dedupe
    DEGRADED = "degraded"
    #: nobody sees it any more, its segments still count as alive
    TRASHED = "trashed"
    DELETING = "deleting"
    ERROR = "error"


class TaskState(StrEnum):
    """Of a piece of work that an agent claims."""

    #: its run has not got all its slots
    PENDING = "pending"
    #: claimable
    READY = "ready"
    #: an agent holds a lease on it
    CLAIMED = "claimed"
    DONE = "done"
    ERROR = "error"
    CANCELLED = "cancelled"
    #: not terminal: what it stored counts as alive
    NEEDS_ATTENTION = "needs_attention"


class TaskKind(StrEnum):
    """What an agent is to do."""

    BACKUP = "backup"
    RESTORE = "restore"
    #: after the run is durable: chain maintenance on the host
    FINISH = "finish"
    VERIFY = "verify"
    #: of a verification: boot a VM of a restore point where nobody sees it
    BOOT = "boot"
    #: give a VM back
    RELEASE = "release"
    #: a scheduler's own: one map in the place of a chain of them
    CONSOLIDATE = "consolidate"


class RestoreState(StrEnum):
    """Of a restore."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    ERROR = "error"
    #: a half-written target that a person must look at
    NEEDS_ATTENTION = "needs_attention"


class VerificationState(StrEnum):
    """Of a look at whether restore points still hold what was stored."""

    QUEUED = "queued"
    RUNNING = "running"
    #: whatever was found
    DONE = "done"
    CANCELLED = "cancelled"
    ERROR = "error"


class BootOutcome(StrEnum):
    """What came of booting a VM of a restore point."""

    #: it said itself that it is up
    PROVEN = "proven"
    #: it ran for as long as it was given, and has nothing by which it could have said so
    UNKNOWN = "unknown"
    #: it did not start, ended, or did not say what it should have
    FAILED = "failed"


class ProvenBy(StrEnum):
    """How a VM said that it is up."""

    GUEST_AGENT = "guest_agent"
    #: a text on its serial console
    MARKER = "marker"


class ServiceKind(StrEnum):
    """Which process it is."""

    API = "api"
    SCHEDULER = "scheduler"
    AGENT = "agent"


class ServiceState(StrEnum):
    """What its operator wants of a process. Whether it is alive, its heartbeat tells."""

    ENABLED = "enabled"
    #: finishes what it has and takes nothing new
    DRAINING = "draining"
    DRAINED = "drained"
    #: takes nothing new
    DISABLED = "disabled"


class BarrierState(StrEnum):
    """Where a consistency group is; every member does what the state says, and reports."""

    #: waits for all members
    GATHERING = "gathering"
    FREEZING = "freezing"
    SNAPSHOTTING = "snapshotting"
    #: all members thaw, all have their snapshot under one unbroken freeze
    DONE = "done"
    #: all members thaw, the group is not consistent
    FAILED = "failed"


class MemberState(StrEnum):
    """Of one VM in a consistency group."""

    WAITING = "waiting"
    #: prepared, ready to freeze
    JOINED = "joined"
    FROZEN = "frozen"
    #: has its snapshot
    CAPTURED = "captured"
    THAWED = "thawed"
    FAILED = "failed"


class Trigger(StrEnum):
    """What made a run."""

    SCHEDULE = "schedule"
    #: a person, over the API
    REQUEST = "request"
    #: a run that failed
    RETRY = "retry"


class PinHolder(StrEnum):
    """What reads a stored disk copy, so that it must stay."""

    RUN = "run"
    RESTORE = "restore"
    EXPORT = "export"
    VERIFY = "verify"
    CONSOLIDATE = "consolidate"
