"""Restore in place: the disks of a VM that is shut off become those of a restore point.

::

    lock the server                   of a VM that Nova manages, so that its project does not start it meanwhile
    release the VM                    no layer or bitmap of ours tells of changes any more; the next backup compares
    restore each disk beside it       block devices, volumes of the cloud and images of Ceph are overwritten instead
    still shut off?
    put each file in the other's place, the old one kept beside it until all are
    put the definition on them        without what it said of the files below: each stands alone now

Until the files change places an error leaves the VM as it was. The definition and UEFI variables stay as they are now.
A VM that is started in the very instant in which its files change places may run on the old ones: that is seen
afterwards, and the old ones are put back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from raksha import crash
from raksha.agent.host import Host
from raksha.agent.sources import disk_sources
from raksha.agent.work import Work
from raksha.errors import DeviceHalfWritten, DiskUnsupported, RunNotFound, TargetUnusable, VmBusy, VmStarted
from raksha.restore.device import BlockDevice
from raksha.restore.disk import DiskJob, DiskResult, restore_disks
from raksha.restore.files import sync
from raksha.restore.image import Image
from raksha.restore.leftovers import clear
from raksha.restore.source import DiskSource
from raksha.restore.targets import Qcow2File, RawFile, Target
from raksha.tasks import Restored, RestoreOrder
from raksha.vault.catalog import Catalog
from raksha.virt.libvirt.connection import Connection, Guest
from raksha.virt.libvirt.domain_xml import Disk, Layer, parse_domain
from raksha.virt.libvirt.image_node import image_node
from raksha.virt.libvirt.layer_header import NotQcow2, read_header
from raksha.virt.libvirt.own_source import own_sources
from raksha.virt.libvirt.processes import users_of

Announce = Callable[[Sequence[dict[str, Any]]], None]


class _Disk(Struct, frozen=True):
    """One disk, and what is to become of it."""

    source: DiskSource
    #: the VM's own, as its definition spells it
    own: Layer
    #: a file is restored beside it first; None: what is there is overwritten
    beside: Path | None
    #: QEMU writes to this; None: it is a file or block device of this host's
    node: Mapping[str, Any] | None = None

    @property
    def path(self) -> Path:
        return Path(self.own.path).resolve()

    @property
    def kept(self) -> Path:
        """Where the old file is while files change places."""
        return self.path.with_name(f"{self.path.name}.raksha-before")


class InPlace:
    """One use."""

    def __init__(self, host: Host, work: Work, order: RestoreOrder, announce: Announce) -> None:
        self._host = host
        self._work = work
        self._order = order
        self._announce = announce

    def __call__(self, catalog: Catalog) -> Restored:
        """Raises `VmBusy` for one that is not shut off, `VmStarted`, and what restores raise."""
        order, journal = self._order, self._host.journal
        run = catalog.run(order.backupjob, order.backupjobrun)
        if run is None:
            raise RunNotFound(run=order.backupjobrun)
        sources = disk_sources(catalog, run, catalog.vm(run, order.vm), order.disks)
        with closing(Connection(self._host.settings.libvirt_uri)) as connection:
            guest = connection.guest(order.vm)
            _require_off(guest)
            with self._kept_off(guest):
                with closing(self._host.engines()) as engines:
                    engines.release(guest.uuid)
                with journal.vm_lock(guest.uuid, guest.name), guest.start_events() as started:
                    disks = self._disks(guest, sources)
                    self._announce([{"kind": "disk", "vm": guest.uuid, "path": _place(disk)} for disk in disks])
                    results = self._restore(disks)
                    if started.is_set() or guest.is_active():
                        _remove(disks)
                        _started(guest, disks)
                    _swap(guest, disks)
        shown = tuple({"disk": each.disk, "path": _place(disk), "size": each.size} for each, disk in
                      zip(results, disks, strict=True))  # fmt: skip
        return Restored(vm=guest.uuid, name=guest.name, disks=shown)

    @contextmanager
    def _kept_off(self, guest: Guest) -> Iterator[None]:
        if not parse_domain(guest.inactive_xml()).nova:
            yield
            return
        if self._work.cloud is None:
            detail = "without access to Nova nobody keeps it from being started meanwhile"
            raise TargetUnusable(target=f"server {guest.name}", detail=detail)
        # only where there is a cloud: it takes a second to import
        from raksha.openstack.stopped import kept_off

        with kept_off(self._work.cloud, guest.uuid, self._order.restore):
            yield

    def _disks(self, guest: Guest, sources: Sequence[DiskSource]) -> list[_Disk]:
        _require_off(guest)
        if self._host.journal.layers(guest.uuid):
            raise VmBusy(vm=guest.name, detail="an overlay of a backup came to be meanwhile")
        xml = guest.inactive_xml()
        domain = parse_domain(xml)
        found = []
        for source in sources:
            disk = domain.disk(source.disk)
            if disk is None or not disk.layers or disk.readonly:
                raise TargetUnusable(target=f"{guest.name}:{source.disk}", detail="the VM has no such disk now")
            # a file of a share that Cinder has is not replaced: Cinder knows it, and it may be larger than the disk was
            if disk.top.kind == "network" or (domain.nova and disk.serial):
                found.append(_Disk(source, disk.top, None, _node(guest, xml, disk)))
                continue
            if disk.top.kind not in ("file", "block") or disk.top.format not in ("raw", "qcow2") or disk.sliced:
                raise DiskUnsupported(vm=guest.name, disk=source.disk, detail="it is no raw or qcow2 file or device")
            found.append(_Disk(source, disk.top, _beside(disk.top)))
        return found

    def _restore(self, disks: Sequence[_Disk]) -> list[DiskResult]:
        self._work.progress.step("restoring")
        for disk in disks:
            if disk.beside is not None:
                clear(disk.beside, lambda _vm: False)
                disk.beside.unlink(missing_ok=True)
        context = self._host.context(self._work)
        return restore_disks([DiskJob(disk.source, _target(disk, context.workers)) for disk in disks], context)


def _require_off(guest: Guest) -> None:
    if guest.is_active():
        raise VmBusy(vm=guest.name, detail="it runs; its disks are restored in place only while it is shut off")
    if guest.has_saved_state():
        raise VmBusy(vm=guest.name, detail="its memory was saved, and would go on with disks that have changed")


def _beside(own: Layer) -> Path | None:
    path = Path(own.path).resolve()
    return path.with_name(f"{path.name}.raksha-restored") if own.kind == "file" else None


def _node(guest: Guest, xml: str, disk: Disk) -> Mapping[str, Any]:
    """Only what stands alone is written over: what is below a file could belong to a snapshot, or show through."""
    node = image_node(xml, disk.target)
    if node is None or disk.sliced or disk.encrypted or disk.shareable:
        detail = "it is neither a raw nor a qcow2 file, device or image of Ceph of this VM alone"
        raise DiskUnsupported(vm=guest.name, disk=disk.target, detail=detail)
    if disk.top.format == "qcow2":
        try:
            header = read_header(disk.top.path)
        except (OSError, NotQcow2) as error:
            raise TargetUnusable(target=disk.top.path, detail="it is no qcow2 file of this host") from error
        if header.backing is not None or header.data_file:
            detail = "its file stands on another one, as of a volume that has snapshots"
            raise DiskUnsupported(vm=guest.name, disk=disk.target, detail=detail)
    return node


def _place(disk: _Disk) -> str:
    return disk.own.path if disk.node is not None else str(disk.path)


def _started(guest: Guest, disks: Sequence[_Disk]) -> None:
    overwritten = [_place(disk) for disk in disks if disk.beside is None]
    if overwritten:
        raise DeviceHalfWritten(target=", ".join(overwritten), detail="the VM was started before all was in its place")
    raise VmStarted(vm=guest.name)


def _target(disk: _Disk, workers: int) -> Target:
    if disk.node is not None:
        return Image(disk.own.path, disk.node, workers, fresh=False)
    if disk.beside is None:
        return BlockDevice(disk.path)
    return RawFile(disk.beside) if disk.own.format == "raw" else Qcow2File(disk.beside)


def _remove(disks: Sequence[_Disk]) -> None:
    for disk in disks:
        if disk.beside is not None:
            disk.beside.unlink(missing_ok=True)


def _swap(guest: Guest, disks: Sequence[_Disk]) -> None:
    """All files, or none."""
    files = [disk for disk in disks if disk.beside is not None]
    old = {disk.path: disk.path.stat() for disk in files}
    with ExitStack() as undo:
        for disk in files:
            undo.callback(_put_back, disk)
            _exchange(disk)
        guest.redefine(own_sources(guest.inactive_xml(secrets=True), {disk.source.disk: disk.own for disk in files}))
        if guest.is_active() and any(users_of(status.st_dev, status.st_ino) for status in old.values()):
            raise VmStarted(vm=guest.name)
        undo.pop_all()
    for disk in files:
        with crash.around("restore.settle_in_place"):
            disk.kept.unlink()


def _exchange(disk: _Disk) -> None:
    """The name never means nothing."""
    assert disk.beside is not None
    status = disk.path.stat()
    os.chown(disk.beside, status.st_uid, status.st_gid)
    disk.beside.chmod(status.st_mode & 0o7777)
    with crash.around("restore.exchange"):
        disk.kept.unlink(missing_ok=True)
        os.link(disk.path, disk.kept)
        disk.beside.replace(disk.path)
        sync(disk.path.parent)


def _put_back(disk: _Disk) -> None:
    with crash.around("restore.put_back"):
        if disk.kept.exists():
            disk.kept.replace(disk.path)
            sync(disk.path.parent)
