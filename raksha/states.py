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
