"""Giving a VM back without any bitmap or checkpoint of ours.

Running: libvirt removes them, disk by disk. Shut off: `qemu-img` does, under QEMU's locks, so never beside a VM that
was started meanwhile. Bitmaps of ours that the journal does not know (it was lost, or the image comes from elsewhere)
go as well, where they can be seen: QEMU writes those of a running VM into its image only when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator

from raksha.errors import ImageToolFailed
from raksha.journal import BitmapState, Journal, OwnBitmap
from raksha.virt.libvirt import image
from raksha.virt.libvirt.chain import ChainBroken, follow
from raksha.virt.libvirt.checkpoint import Checkpoints
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Disk, Layer, parse_domain
from raksha.virt.libvirt.pull_session import drop_bitmaps
from raksha.virt.libvirt.pull_xml import OUR_NAME


def release_bitmaps(guest: Guest, journal: Journal) -> list[str]:
    """What was done and what was left, a line each. The caller holds the VM's lock. Raises `LibvirtFailed`."""
    active = guest.is_active()
    disks = [disk for disk in parse_domain(guest.live_xml() if active else guest.inactive_xml()).disks if disk.layers]
    known = journal.bitmaps(guest.uuid)
    there = {disk.target for disk in disks}
    wanted = [each for each in known if each.target in there] + list(_strangers(guest, known, disks))
    Checkpoints(guest, journal).forget(each.name for each in wanted)
    left = drop_bitmaps(guest, journal, wanted) if active else _offline(journal, wanted, disks)
    gone = {each.target for each in known} - there
    for each in known:
        if each.target in gone:
            journal.forget_bitmap(each.vm, each.target, each.name)
    done = [f"{target}: no bitmap of ours any more" for target in sorted({each.target for each in wanted})]
    lost = [f"{target}: not attached any more; a bitmap of ours may be on it" for target in sorted(gone)]
    return (left or done) + lost


def _strangers(guest: Guest, known: list[OwnBitmap], disks: list[Disk]) -> Iterator[OwnBitmap]:
    """Bitmaps that bear our name in the active layers, but are not in the journal."""
    names = {(each.target, each.name) for each in known}
    for disk in disks:
        for name in _in_file(disk.top):
            if OUR_NAME.fullmatch(name) and (disk.target, name) not in names:
                yield OwnBitmap(guest.uuid, disk.target, name, "", "", "", BitmapState.UNWANTED, frozenset())


def _in_file(layer: Layer) -> list[str]:
    if layer.format != "qcow2" or layer.kind not in ("file", "block"):
        return []
    return list(image.bitmaps(layer.path))


def _offline(journal: Journal, wanted: list[OwnBitmap], disks: list[Disk]) -> list[str]:
    left = []
    for disk in disks:
        mine = [each for each in wanted if each.target == disk.target]
        try:
            for layer in follow(disk.layers) if mine else ():
                for name in {each.name for each in mine}.intersection(_in_file(layer)):
                    image.remove_bitmap(layer.path, name)
        except (ChainBroken, ImageToolFailed) as error:
            left.append(f"{disk.target}: bitmaps of ours stay: {error}")
            continue
        for each in mine:
            journal.forget_bitmap(each.vm, each.target, each.name)
    return left
