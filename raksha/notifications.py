"""What the service tells others of jobs, runs and restores: names of events, and records. All of it is in
docs/notifications.md.

A record's `version` says what may be relied on: `1.x` adds fields, `2.0` may take some away or change their meaning.
Promises: what is here is all that is ever sent. No secret, token or trust, and nothing that a disk holds is in it;
errors are what the API shows to the members of the project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum

from msgspec import Struct

VERSION = "1.1"


class Event(StrEnum):
    """`event_type` of a notification."""

    JOB_CREATE = "raksha.backupjob.create"
    #: its owner changed it; or it is being deleted, and its runs with it
    JOB_UPDATE = "raksha.backupjob.update"
    JOB_PAUSE = "raksha.backupjob.pause"
    #: it cannot go on by itself: `reason` says why
    JOB_SUSPEND = "raksha.backupjob.suspend"
    JOB_RESUME = "raksha.backupjob.resume"
    JOB_TAKE_OVER = "raksha.backupjob.take_over"
    #: it is gone, with all of its runs
    JOB_DELETE = "raksha.backupjob.delete"
    #: the first of its VMs is at work
    RUN_START = "raksha.backupjobrun.start"
    #: it is a restore point
    RUN_END = "raksha.backupjobrun.end"
    #: something that it needs was found missing or damaged
    RUN_DEGRADE = "raksha.backupjobrun.degrade"
    #: that is whole again
    RUN_HEAL = "raksha.backupjobrun.heal"
    #: all of its VMs came up in a test
    RUN_PROVEN = "raksha.backupjobrun.proven"
    #: one of them did not
    RUN_UNPROVEN = "raksha.backupjobrun.unproven"
    RUN_ERROR = "raksha.backupjobrun.error"
    RUN_CANCEL = "raksha.backupjobrun.cancel"
    #: a person must look at a host before it can go on
    RUN_ATTENTION = "raksha.backupjobrun.needs_attention"
    #: it is gone, and what it had in the vault can be collected
    RUN_DELETE = "raksha.backupjobrun.delete"
    RESTORE_START = "raksha.restore.start"
    RESTORE_END = "raksha.restore.end"
    RESTORE_ERROR = "raksha.restore.error"
    RESTORE_CANCEL = "raksha.restore.cancel"
    #: a half-written target that a person must look at
    RESTORE_ATTENTION = "raksha.restore.needs_attention"

    @property
    def priority(self) -> str:
        """`info` or `error`: the end of the name of the queue."""
        return "error" if self in _ERRORS else "info"


_ERRORS = frozenset(
    {
        Event.JOB_SUSPEND,
        Event.RUN_DEGRADE,
        Event.RUN_UNPROVEN,
        Event.RUN_ERROR,
        Event.RUN_ATTENTION,
        Event.RESTORE_ERROR,
        Event.RESTORE_ATTENTION,
    }
)


class Reason(Struct, frozen=True):
    """`code` for programs, `message` for people."""

    code: str
    message: str


class Protected(Struct, frozen=True):
    """What a job names."""

    id: str
    #: `hypervisor` or `storage`: a VM, and where its disks are taken from; `volume`: a volume in the place of a VM
    source: str


class JobPayload(Struct, frozen=True, kw_only=True):
    """Of `raksha.backupjob.*`."""

    version: str = VERSION
    id: str
    project_id: str
    #: for whom it acts
    user_id: str | None
    name: str
    state: str
    #: why it is suspended
    reason: Reason | None
    #: what it names; one with a selector finds its VMs at each run
    vms: Sequence[Protected]
    selects: bool
    vault_service_id: str | None
    created_at: datetime
    updated_at: datetime


class RunVm(Struct, frozen=True):
    """A VM, or a volume in the place of one."""

    id: str
    state: str
    consistency: str | None
    #: why it did not come up in its last test; null: it did, or there was none
    unproven: Reason | None = None


class RunPayload(Struct, frozen=True, kw_only=True):
    """Of `raksha.backupjobrun.*`. Sizes are bytes."""

    version: str = VERSION
    id: str
    backupjob_id: str
    project_id: str
    user_id: str | None
    state: str
    #: `full` or `incremental`, as it was asked for
    kind: str
    #: `schedule`, `request`, `retry`
    trigger: str
    attempt: int
    #: the run that failed, in whose place it is
    retry_of: str | None
    request_id: str | None
    vms: Sequence[RunVm]
    #: the weakest of its VMs; null: not known yet
    consistency: str | None
    group_consistent: bool | None
    bytes_total: int
    bytes_sent: int
    bytes_stored: int
    error: Reason | None
    scheduled_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    taken_at: datetime | None
    finished_at: datetime | None
    #: since when each of its VMs is known to come up
    proven_restorable_at: datetime | None = None


class RestorePayload(Struct, frozen=True, kw_only=True):
    """Of `raksha.restore.*`. What it has made, the API tells."""

    version: str = VERSION
    id: str
    #: null: the restore point is gone since
    backupjobrun_id: str | None
    project_id: str
    user_id: str | None
    state: str
    #: kind of the target: `domain`, `image`, `server`, …
    target: str
    #: ids of the VMs that it reads
    vms: Sequence[str]
    request_id: str | None
    bytes_total: int
    bytes_done: int
    error: Reason | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


#: by the middle of the event's name
RECORDS: Mapping[str, type[Struct]] = {"backupjob": JobPayload, "backupjobrun": RunPayload, "restore": RestorePayload}
