"""Checkpoints and dirty bitmaps of a running VM, by means of libvirt alone.

Between runs libvirt knows no checkpoint of ours: with one left, Nova could not delete its server. The bitmaps stay and
record on. A checkpoint is told to libvirt again (`usable`) just before it is needed, for those disks whose bitmap is
whole, and forgotten right after the backup has begun.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from raksha.errors import LibvirtFailed
from raksha.journal import Journal, OwnBitmap
from raksha.virt.libvirt import image
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.pull_tracker import Found
from raksha.virt.libvirt.pull_xml import redefinition

#: the operation of removing a bitmap, as the journal calls it
REMOVE = "remove bitmap"


class Checkpoints:
    """Of one VM. Errors: `LibvirtFailed`."""

    def __init__(self, guest: Guest, journal: Journal) -> None:
        self._guest = guest
        self._journal = journal

    def usable(self, name: str, targets: Collection[str]) -> set[str]:
        """Those of the disks whose bitmap `name` is whole; libvirt then knows the checkpoint, with just these."""
        if not targets or self._define(name, targets, validate=True):
            return set(targets)
        whole = {target for target in targets if self._define(name, [target], validate=True)}
        if whole and not self._define(name, whole, validate=True):
            raise LibvirtFailed(action="use a checkpoint", vm=self._guest.name, detail=f"{name} changes by itself")
        return whole

    def _define(self, name: str, targets: Iterable[str], *, validate: bool) -> bool:
        xml = redefinition(name, targets, self._guest.live_xml(), int(time.time()))
        return self._guest.checkpoint_redefine(xml, validate=validate)

    def forget(self, names: Iterable[str]) -> None:
        """Make libvirt forget the checkpoints of these names that it knows. The bitmaps stay."""
        for name in set(names).intersection(self._guest.checkpoint_names()):
            self._guest.checkpoint_delete(name, metadata_only=True)

    def remove(self, bitmap: OwnBitmap) -> None:
        """Remove a bitmap from all layers of its disk, whole or not, and from the journal. None there is just as well.

        The disk must be one of the running VM.
        """
        detail = {"checkpoints": [bitmap.name]}
        intent = self._journal.begin(REMOVE, vm=bitmap.vm, target=bitmap.target, detail=detail)
        self._define(bitmap.name, [bitmap.target], validate=False)
        try:
            self._guest.checkpoint_delete(bitmap.name, metadata_only=False)
        except LibvirtFailed:
            # libvirt deletes no checkpoint whose bitmap is not there, and then keeps telling of it.
            self.forget([bitmap.name])
            if self._define(bitmap.name, [bitmap.target], validate=True):
                self.forget([bitmap.name])
                raise
        self._journal.forget_bitmap(bitmap.vm, bitmap.target, bitmap.name)
        self._journal.done(intent, "removed")


def what_became(name: str, top: Layer) -> Found:
    """Why a bitmap of a running VM is not whole: QEMU has what it cannot use still in the file."""
    return Found.INCONSISTENT if name in image.bitmaps(top.path) else Found.LOST
