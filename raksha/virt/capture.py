"""The seam between hypervisors and everything above: what a capture engine promises.

The life of a capture::

    prepared = [engine.prepare(request) ...]   # checks everything, makes overlays; changes no chain
    captures = freeze_together(prepared)       # raksha.virt.group: freeze, snapshot, thaw as one barrier
    for capture in captures: read capture.disks     # any number of threads
    capture.finish()     # durable: the change tracker counts from this run; older layers are merged back
    capture.abandon()    # not durable: the tracker still counts from the parent; the layers stay, for the next run

Promised by every engine: a guest that was frozen is thawed within the deadline, even if this process dies; reading
never blocks the guest; `close` of anything may be called twice; after an error every chain is either as before or
one that the next run (or `release`) can deal with.

Not promised: that two VMs are captured at one instant without the barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from msgspec import Struct, field

from raksha.states import Consistency, Quiesce, ReadMode, Reason
from raksha.types import Extent


class Parent(Struct, frozen=True):
    """The restore point that an increment of one disk would build on."""

    #: id of the run
    backupjobrun: str
    #: bytes, the size of the disk then
    size: int


#: what an engine knows of the change tracker that counts from a copy, in its own words
Tracker = Mapping[str, str | int | None]


class StoredCopy(Struct, frozen=True):
    """A disk copy in the vault, as far as it tells about the VM's change tracker."""

    #: ids of its run and of the job
    backupjobrun: str
    backupjob: str
    #: restore points are ordered by it
    number: int
    #: as the capture gave it; read from a vault, so not to be trusted
    tracker: Tracker | None


#: copies of one disk (a target) whose run's id begins like that. Asks the vault, so only who needs it does
History = Callable[[str, str], Sequence[StoredCopy]]


def no_history(_target: str, _beginning: str) -> Sequence[StoredCopy]:
    return ()


class VmIdentity(Struct, frozen=True):
    """A VM as the hypervisor knows it."""

    #: the same for as long as the VM exists; names its folder in the vault
    uuid: str
    name: str


class CaptureRequest(Struct, frozen=True):
    """One VM of a run."""

    #: libvirt UUID, name, or whatever the hypervisor takes
    vm: str
    #: id of this run, and of the job it belongs to
    backupjobrun: str
    backupjob: str
    #: parent per disk target; a disk that is absent or None gets a full copy, with `full_reason`
    since: Mapping[str, Parent | None] = field(default_factory=dict)
    full_reason: Reason = Reason.FIRST_RUN
    #: disk targets to leave out
    exclude: frozenset[str] = frozenset()
    quiesce: Quiesce = Quiesce.AUTO
    #: of this VM, whatever the job: what another host has left behind
    history: History = no_history


class BaseImage(Struct, frozen=True):
    """The bottom of a disk's backing chain: disks with an equal one probably share data."""

    path: str
    #: bytes
    size: int
    #: ns since the epoch
    modified: int


class DiskReader(Protocol):
    """One thread's connection to a frozen disk."""

    def pread(self, offset: int, length: int) -> bytes | bytearray:
        """Exactly `length` bytes; beyond the end of the disk there is nothing to ask for. Raises `DiskReadFailed`."""

    def close(self) -> None: ...


class CaptureReader(DiskReader, Protocol):
    """One that takes many questions at once."""

    def pread_into(self, buffer: bytearray, stretches: Sequence[tuple[int, int]]) -> None:
        """What lies at each offset and length, one behind the other from the buffer's start. Raises `DiskReadFailed`.

        The buffer is at least as long as all of them.
        """


class DiskCapture(Protocol):
    """One frozen disk."""

    @property
    def target(self) -> str:
        """Name of the disk inside the VM, such as `vda`."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def mode(self) -> ReadMode:
        """How the extents are meant."""

    @property
    def reason(self) -> Reason | None:
        """Why it is no plain increment; None for one."""

    @property
    def parent(self) -> str | None:
        """The run that a delta or compare builds on."""

    @property
    def base_image(self) -> BaseImage | None: ...

    @property
    def facts(self) -> Mapping[str, str | int | None]:
        """Format and source as the VM has them: facts for the metadata, such as {"format": "raw", "bus": "virtio"}."""

    @property
    def tracker(self) -> Tracker | None:
        """For the metadata: what another host must know to go on from this copy. None: it cannot."""

    def open(self) -> CaptureReader:
        """A reader for one thread."""

    def extents(self) -> Iterator[Extent]:
        """In ascending order, not overlapping. See `Extent` for what is not listed."""


class Machine(Struct, frozen=True):
    """Everything of a VM that is not on its disks."""

    uuid: str
    name: str
    #: persistent definition, with secrets; live definition if it ran
    domain_xml: str
    live_xml: str | None
    #: "running", "paused" or "shut off" at the capture
    power: str
    #: UEFI variables as the file held them
    nvram: bytes | None
    #: further files by a short name, such as TPM state (tar)
    files: Mapping[str, bytes] = field(default_factory=dict)


class Capture(Protocol):
    """All disks of one VM at one instant."""

    @property
    def machine(self) -> Machine: ...

    @property
    def disks(self) -> Sequence[DiskCapture]: ...

    @property
    def engine(self) -> str: ...

    @property
    def consistency(self) -> Consistency: ...

    @property
    def taken_at(self) -> float:
        """Seconds since the epoch, by this host's clock, when the snapshot was taken."""

    @property
    def frozen_seconds(self) -> float | None:
        """Seconds that the guest's file systems were frozen; None if they were not."""

    def check(self) -> None:
        """Raises `VmStarted` (and the like) if what was read may not be one instant. Called before commit."""

    def finish(self) -> list[str]:
        """The run is durable: advance the tracker and merge older layers. Returns warnings, raises nothing usual."""

    def abandon(self) -> None:
        """The run is not durable: close the readers, keep tracker and layers as they are."""

    def let_go(self) -> None:
        """Nobody here knows what becomes of the run: close the readers and change nothing, as a kill would."""


class Prepared(Protocol):
    """A VM that can be captured: checked, overlays made, nothing changed in its chain yet."""

    @property
    def vm_name(self) -> str: ...

    def freeze(self) -> None:
        """Freeze the guest's file systems if asked for. Raises `QuiesceFailed` only where it is required."""

    def snapshot(self) -> None:
        """Freeze the disks, atomically for all disks of this VM."""

    def holds(self) -> bool:
        """Whether the guest's file systems stand still since `freeze`, as far as can be told without asking it."""

    def thaw(self) -> None:
        """Undo `freeze`; does nothing if not frozen. Never raises."""

    def capture(self) -> Capture:
        """After `snapshot`: the readable view."""

    def cancel(self) -> None:
        """Before `snapshot` succeeded: remove what `prepare` made. Never raises."""


class CaptureEngine(Protocol):
    """Makes captures on one hypervisor."""

    @property
    def name(self) -> str: ...

    def identify(self, vm: str) -> VmIdentity:
        """A VM by name or UUID. Raises `VmNotFound`."""

    def prepare(self, request: CaptureRequest) -> Prepared:
        """Check everything that can be checked without changing anything. Raises `Refused` errors."""

    def release(self, vm: str) -> list[str]:
        """Give the VM back without any trace of us in its chains. Returns what was done, a line each."""
