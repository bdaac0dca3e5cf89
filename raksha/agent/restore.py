"""What to restore to where, as a person asks for it, turned into targets.

::

    to PATH            one disk, into a file or a block device
    into DIR           files, one a disk: <vm>-<disk>.qcow2
    into DIR as NAME   those files, and a new VM that uses them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from raksha.config import Settings
from raksha.errors import BadArgument, TargetExists, TargetUnusable
from raksha.restore.context import Context
from raksha.restore.device import BlockDevice
from raksha.restore.disk import DiskJob, DiskResult, restore_disks
from raksha.restore.image_base import ImageBase
from raksha.restore.source import DiskSource
from raksha.restore.targets import Qcow2File, RawFile, Target
from raksha.restore.thin import restore_thin
from raksha.vault.metadata import BackupMetadata, VMMetadata


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """What a person asked for."""

    #: name or UUID; None: the only VM of the restore point
    vm: str | None = None
    #: disk targets; empty: all
    disks: tuple[str, ...] = ()
    #: name of a VM to be defined
    new_name: str | None = None
    into: Path | None = None
    to: Path | None = None
    #: "raw" or "qcow2"; None: as the VM had it
    format: str | None = None
    #: base image at hand, per disk target
    thin: Mapping[str, Path] = field(default_factory=dict)
    start: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of it."""

    #: name of the new VM, if one was defined
    vm: str | None
    disks: tuple[DiskResult, ...]
    warnings: tuple[str, ...] = ()


def restore(
    order: RestoreOrder,
    machine: VMMetadata,
    sources: Sequence[DiskSource],
    metadata: Mapping[str, BackupMetadata],
    settings: Settings,
    context: Context,
) -> Restored:
    """Raises `BadArgument` for an order that cannot be, and what restores raise; then nothing was made."""
    _check(order, sources)
    places = {source.disk: _place(order, machine, source.disk, metadata[source.disk]) for source in sources}
    if order.dry_run:
        would = tuple(DiskResult(s.disk, places[s.disk].path, s.geometry.size, 0, 0) for s in sources)
        return Restored(order.new_name, would)
    return Restored(None, tuple(_disks(order, sources, places, context)))


@dataclass(frozen=True, slots=True)
class Place:
    """Where one disk goes."""

    path: Path
    #: raw or qcow2
    format: str
    device: bool

    def target(self) -> Target:
        if self.device:
            return BlockDevice(self.path)
        return RawFile(self.path) if self.format == "raw" else Qcow2File(self.path)


def _check(order: RestoreOrder, sources: Sequence[DiskSource]) -> None:
    if (order.to is None) == (order.into is None):
        raise BadArgument(argument="--to, --into", detail="one of them says where to restore to")
    if order.to is not None and (order.new_name or len(sources) != 1):
        raise BadArgument(argument="--to", detail="it takes one disk (--disk) and makes no VM")
    if order.start and not order.new_name:
        raise BadArgument(argument="--start", detail="there is no new VM to start without --as")
    for disk in order.thin:
        if disk not in {source.disk for source in sources}:
            raise BadArgument(argument=f"--thin {disk}=", detail="that disk is not among those to restore")


def _place(order: RestoreOrder, machine: VMMetadata, disk: str, metadata: BackupMetadata) -> Place:
    form = order.format or ("raw" if metadata.facts.get("format") == "raw" and disk not in order.thin else "qcow2")
    if order.to is not None:
        if order.to.is_block_device():
            return Place(order.to, "raw", device=True)
        suffix = order.to.suffix.removeprefix(".")
        return Place(order.to, order.format or (suffix if suffix in ("raw", "qcow2") else form), device=False)
    assert order.into is not None
    if not order.into.is_dir():
        raise TargetUnusable(target=order.into, detail="it is no directory")
    place = Place(order.into / f"{order.new_name or machine.name}-{disk}.{form}", form, device=False)
    if place.path.exists():
        raise TargetExists(target=place.path)
    return place


def _disks(
    order: RestoreOrder, sources: Sequence[DiskSource], places: Mapping[str, Place], context: Context
) -> list[DiskResult]:
    results = []
    for source in sources:
        image = order.thin.get(source.disk)
        if image is None:
            continue
        with ExitStack() as stack:
            base = stack.enter_context(ImageBase(image, image_format(image)))
            results.append(restore_thin(source, places[source.disk].path, base, context).restored)
    plain = [DiskJob(source, places[source.disk].target()) for source in sources if source.disk not in order.thin]
    return [*results, *restore_disks(plain, context)]


def image_format(image: Path) -> str:
    """By its name, never by its content. Raises `BadArgument`."""
    suffix = image.suffix.removeprefix(".")
    if suffix in ("qcow2", "raw"):
        return suffix
    if suffix == "img" or image.is_block_device():
        return "raw"
    raise BadArgument(argument=str(image), detail="a name that ends in .qcow2, .raw or .img tells its format")
