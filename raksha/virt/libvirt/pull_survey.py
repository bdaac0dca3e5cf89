"""Looks at one VM and says, per disk, whether the engine `pull` can capture it and whether it can hold a bitmap.

Wider than the other engine's look: QEMU itself reads the disks of a running VM, so network disks will do, and whoever
rebuilds the definition (Nova) does no harm. Changes nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from raksha.errors import DiskNotFound, DiskUnsupported, VmBusy, VmUnsupported, VmWithoutDisks
from raksha.journal import Journal
from raksha.virt.libvirt.chain import ChainBroken, follow, header, same_file
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Disk, Domain, Layer, parse_domain
from raksha.virt.libvirt.lineage import Lineage, tell_apart
from raksha.virt.libvirt.survey import Survey, SurveyedDisk, check_bottom, is_candidate

_FORMATS = ("raw", "qcow2")
#: what we can look at, and read while the VM is shut off
_OURS = ("file", "block")


def survey_for_pull(guest: Guest, journal: Journal, exclude: frozenset[str] = frozenset()) -> Survey:
    """Raises `Refused` errors; then nothing was changed."""
    _check_vm(guest)
    inactive = parse_domain(guest.inactive_xml())
    power = guest.power()
    live = parse_domain(guest.live_xml()) if power != "shut off" else None
    shown = live or inactive
    known = [disk.target for disk in shown.disks]
    if unknown := sorted(exclude.difference(known)):
        raise DiskNotFound(vm=guest.name, disk=unknown[0], known=", ".join(known))
    wanted = [disk for disk in shown.disks if disk.target not in exclude and is_candidate(disk)]
    if not wanted:
        raise VmWithoutDisks(vm=guest.name)
    disks = tuple(_look_at(guest, journal, disk, live, inactive) for disk in wanted)
    targets = {disk.target for disk in disks}
    left_out = tuple(target for target in known if target not in targets)
    return Survey(guest.uuid, guest.name, power, live, inactive, disks, left_out)


def _check_vm(guest: Guest) -> None:
    if not guest.is_persistent():
        raise VmUnsupported(vm=guest.name, detail="it is transient: there is no definition to restore it with")
    if guest.has_saved_state():
        detail = "it has a saved state (managedsave), which belongs to its disks as they are; start it"
        raise VmUnsupported(vm=guest.name, detail=detail)
    if guest.is_active() and guest.domain_job():
        raise VmBusy(vm=guest.name, detail="a migration, save or backup of it is under way")


def _look_at(guest: Guest, journal: Journal, disk: Disk, live: Domain | None, inactive: Domain) -> SurveyedDisk:
    if problem := obstacle(disk, active=live is not None):
        raise DiskUnsupported(vm=guest.name, disk=disk.target, detail=problem)
    if live is not None and (disk.mirrored or guest.block_job(disk.target) is not None):
        raise VmBusy(vm=guest.name, detail=f"a block job of disk {disk.target} is under way")
    if live is not None and inactive.disk(disk.target) is None:
        detail = "it is attached to the running VM only; its definition does not have it"
        raise DiskUnsupported(vm=guest.name, disk=disk.target, detail=detail)
    try:
        chain = disk.layers if live is not None else follow(disk.layers)
        lineage = tell_apart(guest.name, disk.target, chain, journal.layers(guest.uuid), same_file)
        _check_headers(guest, disk.target, chain)
        check_bottom(guest, disk.target, chain[-1])
    except ChainBroken as error:
        raise DiskUnsupported(vm=guest.name, disk=disk.target, detail=error) from error
    return SurveyedDisk(disk, chain, lineage)


def obstacle(disk: Disk, *, active: bool) -> str | None:
    """Why the definition of a disk forbids to protect it, or None."""
    checks = (
        (disk.device == "lun", "it passes a SCSI LUN through"),
        (disk.shareable, "it is shareable: QEMU does not see what another VM writes"),
        (disk.transient, "it is transient"),
        (disk.encrypted, "it is encrypted: QEMU would hand out its data in clear"),
        (disk.sliced, "its data is only a part of its file, or lies in another one"),
    )
    for hit, text in checks:
        if hit:
            return text
    for layer in disk.layers:
        if layer.format not in _FORMATS:
            return f"{layer.path} has the format {layer.format or 'unknown'}; only raw and qcow2 can be"
        if not active and layer.kind not in _OURS:
            return f"{layer.path} is of type {layer.kind}, which can be read only while the VM runs"
    return None


def _check_headers(guest: Guest, target: str, chain: tuple[Layer, ...]) -> None:
    for layer in chain:
        head = header(layer) if layer.kind in _OURS else None
        if head is None:
            continue
        checks = (
            (head.encrypted, "is encrypted"),
            (head.data_file, "has its data in another file"),
            (head.corrupt, "is marked as corrupt by QEMU"),
        )
        for hit, text in checks:
            if hit:
                raise DiskUnsupported(vm=guest.name, disk=target, detail=f"{layer.path} {text}")


def can_hold_bitmap(lineage: Lineage) -> bool:
    """Whether the VM's own file keeps a dirty bitmap.

    One on an overlay of ours is merged into that file. An image with internal snapshots gets none: QEMU refuses to go
    back to a snapshot while there is a bitmap, and that would be the user's loss.
    """
    if lineage.base.format != "qcow2" or lineage.base.kind not in _OURS:
        return False
    with suppress(ChainBroken):
        head = header(lineage.base)
        return head is not None and head.version >= 3 and head.snapshots == 0
    return False


def below(lineage: Lineage) -> str:
    """What lies below the VM's own file, told so that an exchange shows: a bitmap says nothing about that.

    Not the time of modification: Nova touches its base images.
    """
    return json.dumps([_mark(layer) for layer in lineage.below[1:]])


def _mark(layer: Layer) -> list[str | int]:
    if layer.kind not in _OURS:
        return [layer.path]
    status = Path(layer.path).stat()
    return [layer.path, status.st_ino, status.st_size]
