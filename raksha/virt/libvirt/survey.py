"""Looks at one VM and says, per disk, what can be captured and on what chain; refuses what cannot. Changes nothing.

What both engines refuse is here; what only one does, its `Demands` tell.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from raksha.errors import DiskNotFound, DiskUnsupported, LayerUnknown, VmBusy, VmUnsupported, VmWithoutDisks
from raksha.journal import Journal
from raksha.server import Own, own_disk
from raksha.virt.libvirt.chain import ChainBroken, follow, header, same_file
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Disk, Domain, Layer, parse_domain
from raksha.virt.libvirt.layer_header import LayerHeader
from raksha.virt.libvirt.lineage import Lineage, tell_apart
from raksha.virt.libvirt.overlay_file import is_our_name

FORMATS = ("raw", "qcow2")
LIVE_ONLY = "it is attached to the running VM only; its definition does not have it"
_RESCUE_DISK = "disk.rescue"
#: types of sources that we can look at ourselves
OURS = ("file", "block")


class SurveyedDisk(Struct, frozen=True):
    disk: Disk
    #: active layer first, down to the bottom
    chain: tuple[Layer, ...]
    lineage: Lineage

    @property
    def target(self) -> str:
        return self.disk.target


class Survey(Struct, frozen=True):
    """A VM as it stands."""

    uuid: str
    name: str
    #: running, paused or shut off
    power: str
    live: Domain | None
    inactive: Domain
    #: those to capture
    disks: tuple[SurveyedDisk, ...]
    #: targets of all others, which a snapshot must leave alone
    left_out: tuple[str, ...]

    @property
    def active(self) -> bool:
        return self.live is not None

    def disk(self, target: str) -> SurveyedDisk:
        return next(disk for disk in self.disks if disk.target == target)


class Demands(Protocol):
    """What one engine asks of a VM beyond what both do: each answers why not, or None."""

    def vm(self, inactive: Domain) -> str | None:
        """Of the VM as a whole."""

    def disk(self, disk: Disk, *, active: bool) -> str | None:
        """Of what the definition says of a disk."""

    def running(self, disk: Disk, inactive: Disk | None, *, nova: bool) -> str | None:
        """Of a disk as the running VM has it, beside its definition (None: that does not have it)."""

    def layer(self, layer: Layer, head: LayerHeader | None, *, own: bool) -> str | None:
        """Of one layer and its header; `own`: it is ours."""


def survey(guest: Guest, journal: Journal, demands: Demands, exclude: frozenset[str] = frozenset()) -> Survey:
    """Raises `Refused` errors; then nothing was changed."""
    inactive = parse_domain(guest.inactive_xml())
    check_vm(guest, inactive, demands)
    power = guest.power()
    live = parse_domain(guest.live_xml()) if power != "shut off" else None
    if live is not None:
        _check_rescue(guest, live)
    shown = live or inactive
    known = [disk.target for disk in shown.disks]
    if unknown := sorted(exclude.difference(known)):
        raise DiskNotFound(vm=guest.name, disk=unknown[0], known=", ".join(known))
    candidates = [disk for disk in shown.disks if is_candidate(disk) and not is_config_drive(disk, inactive)]
    wanted = [disk for disk in candidates if disk.target not in exclude]
    if not wanted:
        raise VmWithoutDisks(vm=guest.name)
    disks = tuple(check_disk(guest, journal, disk, live, inactive, demands) for disk in wanted)
    targets = {disk.target for disk in disks}
    left_out = tuple(target for target in known if target not in targets)
    return Survey(guest.uuid, guest.name, power, live, inactive, disks, left_out)


def is_candidate(disk: Disk) -> bool:
    """Whether it is a disk that a guest can write to, with a medium."""
    return disk.device in ("disk", "lun") and not disk.readonly and bool(disk.layers)


def is_config_drive(disk: Disk, inactive: Domain) -> bool:
    """Whether Nova makes it anew with each server: nothing of its owner's is on it."""
    return inactive.nova and bool(disk.layers) and own_disk(disk.top.path) is Own.CONFIG_DRIVE


def check_vm(guest: Guest, inactive: Domain, demands: Demands) -> None:
    """Raises `VmUnsupported`, `VmBusy`."""
    if problem := demands.vm(inactive):
        raise VmUnsupported(vm=guest.name, detail=problem)
    _check_rescue(guest, inactive)
    if not guest.is_persistent():
        raise VmUnsupported(vm=guest.name, detail="it is transient: libvirt forgets it, and what is ours, when it ends")
    if guest.has_saved_state():
        detail = "it has a saved state (managedsave), which belongs to its disks as they are; start it"
        raise VmUnsupported(vm=guest.name, detail=detail)
    if guest.is_active() and guest.domain_job():
        raise VmBusy(vm=guest.name, detail="a migration, save or backup of it is under way")


def in_rescue(domain: Domain) -> bool:
    """Whether Nova has started it from a disk that is none of its own, whatever its own are called meanwhile.

    Nova calls that disk so in each of its stores: `…/disk.rescue`, and `ID_disk.rescue` in Ceph and LVM.
    """
    names = (layer.path.rpartition("/")[2].rpartition("_")[2] for disk in domain.disks for layer in disk.layers)
    return domain.nova and _RESCUE_DISK in names


def _check_rescue(guest: Guest, domain: Domain) -> None:
    if in_rescue(domain):
        raise VmBusy(vm=guest.name, detail="Nova has it in rescue: it runs from another disk than its own")


def obstacle(disk: Disk, demands: Demands, *, active: bool = True) -> str | None:
    """Why the definition of a disk forbids to protect it, or None."""
    checks = (
        (disk.device == "lun", "it passes a SCSI LUN through"),
        (disk.shareable, "it is shareable: another VM may write to it unseen"),
        (disk.transient, "it is transient"),
        (disk.encrypted, "it is encrypted: its data would be stored in clear"),
        (disk.sliced, "its data is only a part of its file, or lies in another one"),
    )
    for hit, text in checks:
        if hit:
            return text
    if problem := demands.disk(disk, active=active):
        return problem
    for layer in disk.layers:
        if layer.format not in FORMATS:
            return f"{layer.path} has the format {layer.format or 'unknown'}; only raw and qcow2 can be"
    return None


def check_disk(
    guest: Guest, journal: Journal, disk: Disk, live: Domain | None, inactive: Domain, demands: Demands
) -> SurveyedDisk:
    """Raises `Refused` errors."""
    if problem := obstacle(disk, demands, active=live is not None):
        raise DiskUnsupported(vm=guest.name, disk=disk.target, detail=problem)
    try:
        if live is None:
            chain = follow(disk.layers)
        else:
            chain = disk.layers
            _check_live(guest, disk, inactive, demands)
        lineage = tell_apart(guest.name, disk.target, chain, journal.layers(guest.uuid), same_file)
        for number, layer in enumerate(chain):
            if problem := _problem_of(layer, demands, own=number < len(lineage.own)):
                raise DiskUnsupported(vm=guest.name, disk=disk.target, detail=problem)
        _check_bottom(guest, disk.target, chain[-1])
    except ChainBroken as error:
        raise DiskUnsupported(vm=guest.name, disk=disk.target, detail=error) from error
    return SurveyedDisk(disk, chain, lineage)


def _check_live(guest: Guest, disk: Disk, inactive: Domain, demands: Demands) -> None:
    if disk.mirrored or guest.block_job(disk.target) is not None:
        raise VmBusy(vm=guest.name, detail=f"a block job of disk {disk.target} is under way")
    defined = inactive.disk(disk.target)
    if defined is not None and not defined.layers:
        defined = None
    if problem := demands.running(disk, defined, nova=inactive.nova):
        raise DiskUnsupported(vm=guest.name, disk=disk.target, detail=problem)


def _problem_of(layer: Layer, demands: Demands, *, own: bool) -> str | None:
    """Raises `ChainBroken`."""
    head = header(layer) if layer.kind in OURS and layer.format in FORMATS else None
    if problem := demands.layer(layer, head, own=own):
        return problem
    if head is None:
        return None
    checks = (
        (head.encrypted, "is encrypted"),
        (head.data_file, "has its data in another file"),
        (head.corrupt, "is marked as corrupt by QEMU"),
    )
    return next((f"{layer.path} {text}" for hit, text in checks if hit), None)


def _check_bottom(guest: Guest, target: str, layer: Layer) -> None:
    """A file with a name of ours is the VM's own only if it needs nothing below it. Raises `LayerUnknown`."""
    head = header(layer) if is_our_name(layer.path) else None
    if head is not None and head.backing is not None:
        raise LayerUnknown(vm=guest.name, disk=target, path=layer.path)
