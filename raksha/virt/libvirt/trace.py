"""What another host must know of a change tracker to go on with it: written into the vault, and beside the data.

A trace is stored with the disk copy that the tracker counts from. Whoever reads one trusts nothing in it: it is
compared with what lies on the disk (see `adopt`).

A run merges older layers into the VM's own file only after its copies are stored, so the time at which we last wrote to
that file can not be stored with them. It is noted in an extended attribute of the overlay itself.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TypeVar

import msgspec
from msgspec import Struct

from raksha import crash
from raksha.journal import OwnBitmap, OwnLayer
from raksha.virt.capture import Tracker

XATTR = "user.raksha.base"

_Trace = TypeVar("_Trace", bound=Struct)


class OverlayTrace(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="overlay"):
    """A layer of ours, as the journal of the host that made it knows it."""

    path: str
    inode: int
    #: the run that made it, and its job
    run: str
    job: str
    #: the VM's own file below it
    base_path: str
    base_kind: str
    base_format: str
    base_inode: int


class BitmapTrace(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="bitmap"):
    """A dirty bitmap of ours."""

    name: str
    #: what lay below the VM's own file, see `pull_survey.below`
    below: str


class BaseNote(Struct, frozen=True):
    """The VM's own file as we last left it."""

    inode: int
    #: st_mtime_ns
    modified: int


def of_layer(layer: OwnLayer) -> Tracker:
    base = layer.base
    trace = OverlayTrace(
        path=layer.file.path,
        inode=layer.file.inode,
        run=layer.run,
        job=layer.job,
        base_path=base.file.path,
        base_kind=base.kind,
        base_format=base.format,
        base_inode=base.file.inode,
    )
    return _told(trace)


def of_bitmap(bitmap: OwnBitmap) -> Tracker:
    return _told(BitmapTrace(bitmap.name, bitmap.below))


def _told(trace: Struct) -> Tracker:
    told: Tracker = msgspec.to_builtins(trace)
    return told


def read(tracker: Tracker | None, kind: type[_Trace]) -> _Trace | None:
    """None: it is nothing of that kind."""
    if tracker is None or "kind" not in tracker:
        return None
    try:
        return msgspec.convert(tracker, kind)
    except msgspec.ValidationError:
        return None


def note_base(layer: OwnLayer) -> None:
    """Note on the overlay how we left the file below. Where that cannot be (block devices), another host compares."""
    if layer.base.modified is not None:
        with suppress(OSError), crash.around("overlay.note"):
            os.setxattr(layer.file.path, XATTR, f"{layer.base.file.inode}:{layer.base.modified}".encode())


def base_note(path: str) -> BaseNote | None:
    """What was noted on an overlay, or None."""
    try:
        inode, _, modified = os.getxattr(path, XATTR).decode("ascii", "replace").partition(":")
        return BaseNote(int(inode), int(modified))
    except (OSError, ValueError):
        return None
