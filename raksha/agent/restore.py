"""What to restore to where, as a person asks for it, turned into targets.

::

    to PATH            one disk, into a file or a block device
    into DIR           files, one a disk: <vm>-<disk>.qcow2
    into DIR as NAME   those files, and a new VM that uses them
    device DISK=PATH   that disk goes into a block device instead
    thin DISK=IMAGE    that disk becomes a qcow2 image on top of one that is at hand
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct, field

from raksha.agent.sources import disk_key, disk_sources
from raksha.errors import BadArgument, TargetExists, TargetUnusable, VmNotFound
from raksha.restore.base import Base
from raksha.restore.context import Context
from raksha.restore.disk import DiskResult, restore_disks
from raksha.restore.image_base import ImageBase
from raksha.restore.leftovers import clear
from raksha.restore.machine import MachineOrder, Placement, disk_jobs, restore_machine
from raksha.restore.source import DiskSource
from raksha.states import Format
from raksha.vault.catalog import Catalog
from raksha.vault.metadata import BackupMetadata, RunDocument, VMMetadata
from raksha.virt.libvirt.connection import Connection


class RestoreOrder(Struct, frozen=True):
    """What a person asked for."""

    #: name or UUID; None: the only VM of the restore point
    vm: str | None = None
    #: disk targets; empty: all
    disks: tuple[str, ...] = ()
    #: name of a VM to be defined
    new_name: str | None = None
    into: Path | None = None
    to: Path | None = None
    #: of files; None: as the VM had it
    format: Format | None = None
    #: block device, per disk target
    devices: Mapping[str, Path] = field(default_factory=dict)
    #: base image at hand, per disk target
    thin: Mapping[str, Path] = field(default_factory=dict)
    start: bool = False
    dry_run: bool = False
    #: UUID of the new VM; None: any
    identity: str | None = None
    #: called with the paths that will be written, before anything is made
    before: Callable[[Sequence[Path]], None] | None = None


class Restored(Struct, frozen=True):
    """What came of it."""

    #: name and UUID of the new VM, if one was defined
    vm: str | None
    uuid: str | None
    disks: tuple[DiskResult, ...]
    warnings: tuple[str, ...] = ()


def restore(order: RestoreOrder, catalog: Catalog, run: RunDocument, libvirt_uri: str, context: Context) -> Restored:
    """Raises `BadArgument` for an order that cannot be, and what restores raise; then nothing was made."""
    summary = catalog.vm(run, order.vm)
    sources = disk_sources(catalog, run, summary, order.disks)
    metadata = {source.disk: catalog.metadata(disk_key(run, summary, source.disk)) for source in sources}
    machine = catalog.machine(run, summary) if order.new_name is not None else None
    if machine is not None and not machine.domain_xml:
        raise BadArgument(argument="target", detail="no definition of a VM is part of what was taken from storage")
    vm = summary.name
    _check(order, [source.disk for source in sources])
    with ExitStack() as stack:
        placements = [
            _place(order, vm, source, metadata[source.disk], _base(order, source.disk, stack), libvirt_uri)
            for source in sources
        ]
        if order.dry_run:
            would = tuple(DiskResult(p.source.disk, p.path, p.source.geometry.size, 0, 0) for p in placements)
            return Restored(order.new_name, None, would)
        if order.before is not None:
            order.before([placement.path for placement in placements])
        if machine is None:
            jobs, _ = disk_jobs(placements, context, stack)
            return Restored(None, None, tuple(restore_disks(jobs, context)))
        return _machine(order, machine, placements, libvirt_uri, context)


def _machine(
    order: RestoreOrder, machine: VMMetadata, placements: Sequence[Placement], libvirt_uri: str, context: Context
) -> Restored:
    assert order.new_name is not None and order.into is not None
    wanted = MachineOrder(
        name=order.new_name,
        domain_xml=machine.domain_xml,
        disks=placements,
        nvram=machine.nvram,
        nvram_path=order.into.absolute() / f"{order.new_name}_VARS.fd",
        files=machine.files,
        start=order.start,
        identity=order.identity,
    )
    if wanted.nvram is not None and wanted.nvram_path is not None:
        clear(wanted.nvram_path, lambda uuid: _is_defined(libvirt_uri, uuid))
    connection = Connection(libvirt_uri)
    try:
        made = restore_machine(connection, wanted, context)
    finally:
        connection.close()
    warnings = [*made.warnings]
    warnings += [f"{disk}: {thin.base} has little of it; is it the right image?"
                 for disk, thin in made.thin.items() if thin.shares_little]  # fmt: skip
    if made.start_error is not None:
        warnings.append(f"VM {made.name} is there, but does not start: {made.start_error}")
    return Restored(made.name, made.uuid, tuple(made.disks), tuple(warnings))


def _check(order: RestoreOrder, disks: Sequence[str]) -> None:
    if (order.to is None) == (order.into is None):
        raise BadArgument(argument="--to, --into", detail="one of them says where to restore to")
    if order.to is not None and (order.new_name or order.devices or len(disks) != 1):
        raise BadArgument(argument="--to", detail="it takes one disk (--disk) and makes no VM")
    if order.start and not order.new_name:
        raise BadArgument(argument="--start", detail="there is no new VM to start without --as")
    for option, named in (("--thin", order.thin), ("--device", order.devices)):
        for disk in named:
            if disk not in disks:
                raise BadArgument(argument=f"{option} {disk}=", detail="that disk is not among those to restore")
    if both := sorted(order.thin.keys() & order.devices.keys()):
        raise BadArgument(argument=f"--thin {both[0]}=", detail="a block device holds no image on top of another")


def _base(order: RestoreOrder, disk: str, stack: ExitStack) -> Base | None:
    image = order.thin.get(disk)
    if image is None or order.dry_run:
        return None
    if not image.exists():
        raise TargetUnusable(target=image, detail="there is no such base image")
    return stack.enter_context(ImageBase(image, image_format(image)))


def _place(
    order: RestoreOrder, vm: str, source: DiskSource, metadata: BackupMetadata, base: Base | None, libvirt_uri: str
) -> Placement:
    had = Format.RAW if metadata.facts.get("format") == "raw" else Format.QCOW2
    form = order.format or (Format.QCOW2 if source.disk in order.thin else had)
    if source.disk in order.thin and form is not Format.QCOW2:
        raise BadArgument(argument="--format raw", detail="an image on top of another (--thin) is qcow2")
    device = order.devices.get(source.disk)
    if device is None and order.to is not None and order.to.is_block_device():
        device = order.to
    if device is not None:
        return Placement(source, device.absolute(), Format.RAW, device=True)
    if order.to is not None:
        suffix = order.to.suffix.removeprefix(".")
        path = order.to.absolute()
        form = order.format or (Format(suffix) if suffix in list(Format) and base is None else form)
    else:
        assert order.into is not None
        if not order.into.is_dir():
            raise TargetUnusable(target=order.into, detail="it is no directory")
        path = order.into.absolute() / f"{order.new_name or _stem(vm)}-{source.disk}.{form}"
    if not order.dry_run:
        clear(path, lambda uuid: _is_defined(libvirt_uri, uuid))
    if path.exists():
        raise TargetExists(target=path)
    return Placement(source, path, form, base=base)


def _is_defined(libvirt_uri: str, uuid: str) -> bool:
    with Connection(libvirt_uri) as connection:
        try:
            connection.guest(uuid)
        except VmNotFound:
            return False
    return True


def _stem(name: str) -> str:
    """The name that a vault gives a VM, as the beginning of a file's name that leaves no directory."""
    return re.sub(r"[^\w.+@-]", "_", name)[:200].lstrip(".") or "vm"


def image_format(image: Path) -> str:
    """By its name, never by its content. Raises `BadArgument`."""
    suffix = image.suffix.removeprefix(".")
    if suffix in list(Format):
        return suffix
    if suffix == "img" or image.is_block_device():
        return "raw"
    raise BadArgument(argument=str(image), detail="a name that ends in .qcow2, .raw or .img tells its format")
