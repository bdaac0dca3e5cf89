"""What there is on a host, and what of it can be protected. Changes nothing, fails for no single VM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from msgspec import Struct

from raksha.errors import LibvirtFailed, RakshaError, Refused
from raksha.journal import Journal
from raksha.virt.capture import BaseImage
from raksha.virt.libvirt.boot_xml import is_test
from raksha.virt.libvirt.capture import base_image_of
from raksha.virt.libvirt.connection import Connection, Guest
from raksha.virt.libvirt.domain_xml import Disk, Domain, parse_domain
from raksha.virt.libvirt.survey import Demands, check_disk, check_vm, is_candidate, is_config_drive


class DiskEntry(Struct, frozen=True):
    target: str
    #: bytes; None: no medium, or it cannot be measured
    size: int | None
    format: str
    #: the active layer as libvirt spells it
    path: str | None
    #: it would be part of a backup
    protectable: bool
    #: why not, or None
    reason: str | None
    #: the runs that an increment can build on; empty: the next backup reads the whole disk
    counts_from: tuple[str, ...]
    #: number of layers of ours in its chain
    layers: int


class VmEntry(Struct, frozen=True):
    uuid: str
    name: str
    #: running, paused or shut off
    power: str
    #: which would capture it; None: it went while we looked
    engine: str | None
    #: why the VM as a whole cannot be protected now, or None
    reason: str | None
    disks: tuple[DiskEntry, ...]


def list_vms(
    connection: Connection, journal: Journal, demands: Callable[[Domain], tuple[str, Demands]]
) -> list[VmEntry]:
    """All VMs by name. `demands`: which engine would capture a VM, and what it asks. Raises `HypervisorUnavailable`."""
    return [look.vm for look in look_at_vms(connection, journal, demands)]


class Look(Struct, frozen=True):
    """A VM, and what a service wants to know besides."""

    vm: VmEntry
    #: what lies below everything else, by disk target
    bases: dict[str, BaseImage]
    #: its persistent definition
    definition: str


def look_at_vms(
    connection: Connection, journal: Journal, demands: Callable[[Domain], tuple[str, Demands]]
) -> Iterator[Look]:
    """As `list_vms`, without those that run for a test of a restore point."""
    for guest in connection.guests():
        if is_test(guest.name, guest.uuid):
            continue
        try:
            yield _vm(guest, journal, demands)
        except LibvirtFailed as error:
            # It may have gone while we looked.
            yield Look(VmEntry(guest.uuid, guest.name, "unknown", None, str(error.fields["detail"]), ()), {}, "")


def _vm(guest: Guest, journal: Journal, choose: Callable[[Domain], tuple[str, Demands]]) -> Look:
    definition = guest.inactive_xml()
    inactive = parse_domain(definition)
    engine, demands = choose(inactive)
    try:
        check_vm(guest, inactive, demands)
        reason = None
    except Refused as error:
        reason = _why(error)
    power = guest.power()
    live = parse_domain(guest.live_xml()) if power != "shut off" else None
    bases: dict[str, BaseImage] = {}
    disks = tuple(
        _disk(guest, journal, disk, live, inactive, engine, demands, bases) for disk in (live or inactive).disks
    )
    return Look(VmEntry(guest.uuid, guest.name, power, engine, reason, disks), bases, definition)


def _disk(
    guest: Guest,
    journal: Journal,
    disk: Disk,
    live: Domain | None,
    inactive: Domain,
    engine: str,
    demands: Demands,
    bases: dict[str, BaseImage],
) -> DiskEntry:
    counts: tuple[str, ...] = ()
    layers = 0
    reason: str | None = None
    if is_config_drive(disk, inactive):
        reason = "a config drive, which Nova makes anew"
    elif not is_candidate(disk):
        reason = "it has no medium" if not disk.layers else "read-only" if disk.device == "disk" else f"a {disk.device}"
    else:
        try:
            lineage = check_disk(guest, journal, disk, live, inactive, demands).lineage
            own = lineage.own
            with suppress(OSError):  # of a network disk there is nothing to see here
                if (base := base_image_of(lineage)) is not None:
                    bases[disk.target] = base
            layers = len(own)
            bitmaps = [each for each in journal.bitmaps(guest.uuid) if each.target == disk.target]
            trackers = bitmaps if engine == "pull" else own
            counts = tuple(sorted({run for each in trackers for run in each.counts_from}))
        except Refused as error:
            reason = _why(error)
    try:
        size = guest.capacity(disk.target) if disk.layers else None
    except LibvirtFailed:
        size = None
    top = disk.layers[0] if disk.layers else None
    return DiskEntry(
        target=disk.target,
        size=size,
        format=top.format if top else "",
        path=top.path if top else None,
        protectable=reason is None,
        reason=reason,
        counts_from=counts,
        layers=layers,
    )


def _why(error: RakshaError) -> str:
    return str(error.fields.get("detail", error))
