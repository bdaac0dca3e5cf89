"""Which state may follow which, for every noun. docs/database.md shows it; a test holds both together."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from raksha.db.models import (
    BackupJob,
    BackupJobRun,
    BackupJobRunVm,
    Barrier,
    BarrierMember,
    Base,
    Restore,
    Service,
    Task,
    Verification,
    VmResourceBackup,
)
from raksha.states import (
    BackupState,
    BarrierState,
    JobState,
    MemberState,
    RestoreState,
    RunState,
    RunVmState,
    ServiceState,
    TaskState,
    VerificationState,
)

_J, _R, _V, _B, _T = JobState, RunState, RunVmState, BackupState, TaskState
_S, _P, _G, _M, _C = RestoreState, ServiceState, BarrierState, MemberState, VerificationState

_ENDED: frozenset[TaskState] = frozenset({_T.DONE, _T.ERROR, _T.CANCELLED})

#: noun: state: the states that may follow it. What has no entry is an end
MOVES: Mapping[type[Base], Mapping[StrEnum, frozenset[StrEnum]]] = {
    BackupJob: {
        _J.ACTIVE: frozenset({_J.PAUSED, _J.SUSPENDED, _J.DELETING}),
        _J.PAUSED: frozenset({_J.ACTIVE, _J.SUSPENDED, _J.DELETING}),
        _J.SUSPENDED: frozenset({_J.ACTIVE, _J.PAUSED, _J.DELETING}),
    },
    BackupJobRun: {
        _R.QUEUED: frozenset({_R.READY, _R.CANCELLED, _R.ERROR}),
        # back to the queue: nobody claimed any of it, and others wait for its slots
        _R.READY: frozenset({_R.RUNNING, _R.QUEUED, _R.CANCELLING, _R.ERROR}),
        _R.RUNNING: frozenset({_R.COMMITTING, _R.CANCELLING, _R.ERROR, _R.NEEDS_ATTENTION}),
        # from here on it is not cancelled: it may be durable already
        _R.COMMITTING: frozenset({_R.AVAILABLE, _R.ERROR, _R.NEEDS_ATTENTION}),
        _R.CANCELLING: frozenset({_R.CANCELLED, _R.ERROR, _R.NEEDS_ATTENTION}),
        _R.NEEDS_ATTENTION: frozenset({_R.RUNNING, _R.COMMITTING, _R.ERROR}),
        _R.AVAILABLE: frozenset({_R.DEGRADED, _R.DELETING}),
        _R.DEGRADED: frozenset({_R.AVAILABLE, _R.DELETING}),
        _R.CANCELLED: frozenset({_R.DELETING}),
        _R.ERROR: frozenset({_R.DELETING}),
    },
    BackupJobRunVm: {
        _V.PENDING: frozenset({_V.RUNNING, _V.SKIPPED, _V.CANCELLED, _V.ERROR}),
        # handed back, or begun again by a new claim
        _V.RUNNING: frozenset({_V.STORED, _V.PENDING, _V.SKIPPED, _V.CANCELLED, _V.ERROR, _V.NEEDS_ATTENTION}),
        _V.NEEDS_ATTENTION: frozenset({_V.RUNNING, _V.STORED, _V.ERROR}),
    },
    VmResourceBackup: {
        _B.CREATING: frozenset({_B.AVAILABLE, _B.ERROR}),
        _B.AVAILABLE: frozenset({_B.DEGRADED, _B.TRASHED}),
        _B.DEGRADED: frozenset({_B.AVAILABLE, _B.TRASHED}),
        _B.TRASHED: frozenset({_B.DELETING}),
        _B.ERROR: frozenset({_B.DELETING}),
    },
    Task: {
        _T.PENDING: frozenset({_T.READY, _T.CANCELLED, _T.ERROR}),
        _T.READY: frozenset({_T.CLAIMED, _T.PENDING, _T.CANCELLED, _T.ERROR}),
        # claimed again after its lease ended; handed back
        _T.CLAIMED: frozenset({_T.CLAIMED, _T.READY, _T.NEEDS_ATTENTION, *_ENDED}),
        _T.NEEDS_ATTENTION: frozenset({_T.READY, _T.ERROR}),
    },
    Restore: {
        _S.QUEUED: frozenset({_S.RUNNING, _S.CANCELLED, _S.ERROR}),
        # back to the queue: its agent is gone, another attempt makes new targets
        _S.RUNNING: frozenset({_S.DONE, _S.QUEUED, _S.CANCELLING, _S.ERROR, _S.NEEDS_ATTENTION}),
        _S.CANCELLING: frozenset({_S.CANCELLED, _S.DONE, _S.ERROR, _S.NEEDS_ATTENTION}),
        _S.NEEDS_ATTENTION: frozenset({_S.RUNNING, _S.ERROR}),
    },
    Verification: {
        _C.QUEUED: frozenset({_C.RUNNING, _C.CANCELLED, _C.ERROR}),
        _C.RUNNING: frozenset({_C.DONE, _C.CANCELLED, _C.ERROR}),
    },
    Service: {
        _P.ENABLED: frozenset({_P.DRAINING, _P.DISABLED}),
        _P.DRAINING: frozenset({_P.DRAINED, _P.ENABLED, _P.DISABLED}),
        _P.DRAINED: frozenset({_P.ENABLED, _P.DISABLED}),
        _P.DISABLED: frozenset({_P.ENABLED, _P.DRAINING}),
    },
    Barrier: {
        _G.GATHERING: frozenset({_G.FREEZING, _G.FAILED}),
        _G.FREEZING: frozenset({_G.SNAPSHOTTING, _G.FAILED}),
        _G.SNAPSHOTTING: frozenset({_G.DONE, _G.FAILED}),
    },
    BarrierMember: {
        _M.WAITING: frozenset({_M.JOINED, _M.FAILED}),
        _M.JOINED: frozenset({_M.FROZEN, _M.FAILED}),
        _M.FROZEN: frozenset({_M.CAPTURED, _M.FAILED}),
        _M.CAPTURED: frozenset({_M.THAWED, _M.FAILED}),
        _M.THAWED: frozenset({_M.FAILED}),
    },
}

#: what a person calls it
NOUNS: Mapping[type[Base], str] = {
    BackupJob: "backup job",
    BackupJobRun: "backup job run",
    BackupJobRunVm: "VM of a run",
    VmResourceBackup: "resource backup",
    Task: "task",
    Restore: "restore",
    Verification: "verification",
    Service: "service",
    Barrier: "consistency group",
    BarrierMember: "member of a group",
}


def sources(noun: type[Base], to: StrEnum) -> frozenset[StrEnum]:
    """The states from which a row may come to `to`."""
    return frozenset(state for state, following in MOVES[noun].items() if to in following)
