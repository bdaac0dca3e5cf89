"""The capture of what was taken from storage: snapshots of volumes that Cinder made, each read as this host gets to it,
and the image of a server that is shelved.

Nothing of the server or the volume was touched, so nothing is frozen or merged. What was made for the reading goes when
all is stored; what may stay is a snapshot of each volume, from which its storage tells the next run what has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import Struct

from raksha.states import Consistency, ReadMode, Reason
from raksha.types import Extent
from raksha.virt.capture import CaptureReader, Machine, Parent, Tracker
from raksha.virt.libvirt import nbd
from raksha.virt.libvirt.extents import extents

ENGINE = "storage"


class Decision(Struct, frozen=True):
    """How a volume is read."""

    mode: ReadMode
    reason: Reason | None
    #: of a delta: all that has changed
    changed: tuple[Extent, ...] = ()


def decide(
    parent: Parent | None,
    size: int,
    full_reason: Reason,
    changed: Sequence[Extent] | None,
    untold: Reason = Reason.NO_TRACKER,
) -> Decision:
    """`changed`: since the parent, as its storage tells; None: it cannot, or was not asked to be able to (`untold`)."""
    if parent is None:
        return Decision(ReadMode.FULL, full_reason)
    if parent.size != size:
        return Decision(ReadMode.FULL, Reason.DISK_RESIZED)
    if changed is None:
        return Decision(ReadMode.COMPARE, untold)
    return Decision(ReadMode.DELTA, None, tuple(changed))


class StorageDisk:
    """One volume, as it was."""

    base_image = None

    def __init__(
        self,
        target: str,
        source: nbd.Source,
        decision: Decision,
        parent: Parent | None,
        facts: Mapping[str, str | int | None],
        tracker: Tracker | None,
    ) -> None:
        self.target = target
        self.size = source.size
        self.mode = decision.mode
        self.reason = decision.reason
        self.parent = parent.backupjobrun if parent is not None and decision.mode is not ReadMode.FULL else None
        self.facts = facts
        self.tracker = tracker
        self._source = source
        self._changed = decision.changed

    def open(self) -> CaptureReader:
        return nbd.Reader(self._source)

    def extents(self) -> Iterator[Extent]:
        if self.mode is ReadMode.DELTA:
            return iter(self._changed)
        return extents(self._source, None)


class StorageCapture:
    """All volumes of one server, or one volume by itself."""

    engine = ENGINE
    frozen_seconds = None

    def __init__(
        self,
        machine: Machine,
        disks: Sequence[StorageDisk],
        *,
        consistency: Consistency,
        taken_at: float,
        close: Callable[[], None],
        settle: Callable[[bool], list[str]],
    ) -> None:
        """`close` lets go of what is read from. `settle` is told what became of the run."""
        self.machine = machine
        self.disks = disks
        self.consistency = consistency
        self.taken_at = taken_at
        self._close = close
        self._settle = settle

    def check(self) -> None:
        """A snapshot is one instant, and nobody writes to it."""

    def finish(self) -> list[str]:
        self._close()
        return self._settle(True)

    def abandon(self) -> None:
        self._close()
        self._settle(False)

    def let_go(self) -> None:
        self._close()
