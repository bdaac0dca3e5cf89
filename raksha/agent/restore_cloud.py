"""RESTORE into the project's cloud: a new server (`server`), new volumes (`volume`), images (`image`).

::

    a volume             this host writes it, attached here for that (see `restore_volume`); where it cannot, Cinder
                         fills it from an image, which goes then
    an image             is streamed into Glance; nothing is written on this host but the image's tables
    a server             boots from an image, if it did, or from a volume; its other disks are volumes

What is made bears the mark of the restore. A restore that is claimed again removes what the last attempt has made,
which is found by that mark, and makes it anew: nobody goes on with what may be half written. After an error, or when
nobody wants it any more, nothing of it is left, or the log names it.

Not promised: that a fixed address, a key pair or a server group is there again; what is not is told.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from raksha.agent.host import Host
from raksha.agent.restore_volume import HALF_WRITTEN, VolumeWriter
from raksha.agent.sources import disk_sources
from raksha.agent.work import Work
from raksha.errors import (
    BadArgument,
    CloudRefused,
    RakshaError,
    RunNotFound,
    TargetUnusable,
    VolumeNotAttachable,
)
from raksha.openstack.images import Images
from raksha.openstack.lent import DISK, MARK, LentLogin
from raksha.openstack.new_server import NewServer, NewServers, Nic
from raksha.openstack.volumes import Volumes
from raksha.restore.source import DiskSource
from raksha.restore.stream import flattened
from raksha.server import AttachedVolume, Own, Server, building, own_disk
from raksha.tasks import Restored, RestoreOrder
from raksha.vault.catalog import Catalog
from raksha.vault.metadata import RunDocument, VMMetadata
from raksha.virt.libvirt.domain_xml import parse_domain

_log = logging.getLogger(__name__)

GIB = 1024**3


class CloudTarget(Struct, frozen=True, kw_only=True):
    """`RestoreOrder.target` of these kinds. None: as the server had it."""

    kind: str
    name: str
    flavor: str | None = None
    #: empty: none
    networks: tuple[dict[str, Any], ...] | None = None
    #: empty: none
    key_name: str | None = None
    security_groups: tuple[str, ...] | None = None
    availability_zone: str | None = None
    volume_type: str | None = None
    metadata: dict[str, str] | None = None
    #: by disk, volumes of the project that are written over
    overwrite: dict[str, str] = {}
    #: leave the new server running
    start: bool = False


class _Wanted(Struct, frozen=True):
    """A disk to be made."""

    source: DiskSource
    #: the volume that it was; None: a disk of the server's own
    volume: AttachedVolume | None
    boots: bool

    @property
    def disk(self) -> str:
        return self.source.disk

    @property
    def gib(self) -> int:
        return -(-self.source.geometry.size // GIB)


class CloudRestore:
    """One use."""

    def __init__(
        self,
        host: Host,
        work: Work,
        order: RestoreOrder,
        target: CloudTarget,
        announce: Callable[[Sequence[dict[str, Any]]], None],
    ) -> None:
        if work.cloud is None:
            raise BadArgument(argument="target", detail="there is no cloud, or nobody lends access to it")
        self._host = host
        self._work = work
        self._order = order
        self._target = target
        self._announce = announce
        self._cloud: LentLogin = work.cloud
        self._images = Images(work.cloud)
        self._volumes = Volumes(work.cloud)
        self._servers = NewServers(work.cloud)
        self._writer = VolumeWriter(host, work, work.cloud, self._mark, self._tell)
        self._made: list[dict[str, Any]] = []
        self._warnings: list[str] = []

    def __call__(self) -> Restored:
        """Raises `CloudRefused`, `CloudUnavailable`, `Interrupted`, and what reading a vault raises."""
        self._work.progress.step("looking")
        with self._host.catalog(self._work) as catalog:
            run = catalog.run(self._order.backupjob, self._order.backupjobrun)
            if run is None:
                raise RunNotFound(run=self._order.backupjobrun)
            wanted, machine = self._look(catalog, run)
            order = self._server_order(machine.server) if self._target.kind == "server" else None
            for each in wanted:
                if each.disk in self._target.overwrite:
                    self._writer.require(self._target.overwrite[each.disk], each.source)
            self._clear()
            with ExitStack() as undo:
                made = self._make(wanted, machine.server, order, undo)
                undo.pop_all()
        return made

    # -- before anything is made --------------------------------------------------------------------

    def _look(self, catalog: Catalog, run: RunDocument) -> tuple[list[_Wanted], VMMetadata]:
        summary = catalog.vm(run, self._order.vm)
        machine = catalog.machine(run, summary)
        serials = _serials(machine)
        sources = disk_sources(catalog, run, summary, self._order.disks)
        every = {
            each.resource: machine.volume_of(each.resource, serials.get(each.resource)) for each in summary.resources
        }
        boots = _boots_from(every)
        if self._target.kind == "server" and _lacks_boot_disk(machine, every):
            detail = "the disk that the server boots from was not taken from storage; restore the others as volumes"
            raise BadArgument(argument="target", detail=detail)
        if self._target.kind == "server" and boots not in {source.disk for source in sources}:
            raise BadArgument(argument="disks", detail=f"the server boots from {boots}; restore the others as volumes")
        sources = self._needed(sources, machine)
        wanted = [_Wanted(source, every[source.disk], source.disk == boots) for source in sources]
        # the disk that a server boots from is its first; what cannot be undone comes last
        return sorted(wanted, key=lambda each: (each.disk in self._target.overwrite, not each.boots)), machine

    def _needed(self, sources: Sequence[DiskSource], machine: VMMetadata) -> list[DiskSource]:
        """Without what Nova makes anew with a server."""
        if self._target.kind != "server":
            return list(sources)
        own = _own_disks(machine)
        left_out = {disk for disk, kind in own.items() if kind is not Own.EPHEMERAL}
        for source in sources:
            if own.get(source.disk) is Own.EPHEMERAL:
                told = f"{source.disk} was an ephemeral disk: what it held is in a volume now"
                self._warnings.append(f"{told}, and the one that the flavor gives is empty")
        return [source for source in sources if source.disk not in left_out]

    def _server_order(self, had: Server | None) -> NewServer:
        """Without disks. Raises `CloudRefused` where something is missing that cannot be done without."""
        target = self._target
        key = target.key_name if target.key_name is not None else (had.key_name if had else None)
        if key and target.key_name is None and not self._servers.has_key(key):
            self._warnings.append(f"there is no key pair {key}, so the new server has none")
            key = None
        group = had.server_groups[0] if had and had.server_groups else None
        if group and not self._servers.has_group(group):
            self._warnings.append(f"server group {group} is gone, so the new server is in none")
            group = None
        groups = target.security_groups
        if groups is None:
            groups = had.security_groups if had else ()
        return NewServer(
            name=target.name,
            flavor_id=str(self._servers.flavor(target.flavor, had.flavor if had else None)["id"]),
            image_id=None,
            nics=self._nics(had),
            key_name=key or None,
            security_groups=groups,
            metadata=target.metadata if target.metadata is not None else (had.metadata if had else {}),
            tags=had.tags if had else (),
            availability_zone=target.availability_zone,
            server_group=group,
            config_drive=had.config_drive if had else False,
            description=had.description if had else None,
        )

    def _nics(self, had: Server | None) -> tuple[Nic, ...]:
        if self._target.networks is not None:
            return tuple(Nic(each["network_id"], each.get("fixed_ip")) for each in self._target.networks)
        ports = had.ports if had else ()
        there = self._servers.networks(sorted({port.network_id for port in ports}))
        for port in ports:
            if port.network_id not in there:
                named = port.network_name or port.network_id
                raise CloudRefused(service="network", detail=f"network {named} is not there; say which to use instead")
        return tuple(
            Nic(port.network_id, next((each.ip_address for each in port.fixed_ips if ":" not in each.ip_address), None))
            for port in ports
        )

    def _clear(self) -> None:
        """What an earlier attempt has made."""
        mark = self._mark
        if self._target.kind == "server":
            for server in self._servers.of_restore(mark, self._target.name):
                self._servers.delete(server)
        if self._target.kind != "image":
            for volume in self._volumes.of_restore(mark):
                self._volumes.delete(volume)
        for image in self._images.of_restore(mark):
            self._images.delete(image)

    # -- making -------------------------------------------------------------------------------------

    @property
    def _mark(self) -> str:
        """Of this VM's part of the restore."""
        return str(uuid.uuid5(uuid.UUID(self._order.restore), self._order.vm))

    def _image_id(self, wanted: _Wanted) -> str:
        # of this attempt: whoever is overtaken removes nothing of the next one
        return str(uuid.uuid5(uuid.UUID(self._mark), f"{wanted.disk} {self._work.claimed.claim}"))

    def _make(
        self, wanted: Sequence[_Wanted], had: Server | None, order: NewServer | None, undo: ExitStack
    ) -> Restored:
        disks: list[dict[str, Any]] = []
        image: str | None = None
        volumes: list[str] = []
        for each in wanted:
            if self._target.kind == "image" or (order is not None and each.boots and each.volume is None):
                image = self._image(each, had, undo)
                disks.append({"disk": each.disk, "image": image, "size": each.source.geometry.size})
            else:
                volumes.append(self._volume(each, had, undo))
                disks.append({"disk": each.disk, "volume": volumes[-1], "size": each.source.geometry.size})
        if order is None:
            return Restored(name=self._target.name, disks=tuple(disks), warnings=tuple(self._warnings))
        full = replace(order, image_id=image, volumes=tuple(volumes))
        server = self._server(full, undo)
        if not self._target.start:
            self._servers.stop(server)
        return Restored(vm=server, name=full.name, disks=tuple(disks), warnings=tuple(self._warnings))

    def _image(self, wanted: _Wanted, had: Server | None, undo: ExitStack) -> str:
        id = self._image_id(wanted)
        self._tell({"kind": "image", "id": id, "disk": wanted.disk})
        undo.callback(self._removing, self._images.delete, id)
        properties = had.image_properties if had is not None and wanted.boots else {}
        told = {MARK: self._mark, DISK: wanted.disk}
        if had is not None and had.image_id is not None and wanted.boots:
            told["raksha_original_image"] = had.image_id
        self._work.progress.step(f"uploading {wanted.disk}")
        self._images.create(id, f"{self._target.name} {wanted.disk}", {**building(properties), **told})
        with flattened(wanted.source, self._host.context(self._work)) as stream:
            self._images.upload(id, stream.size, stream.content, self._work.check)
        return id

    def _volume(self, wanted: _Wanted, had: Server | None, undo: ExitStack) -> str:
        if (over := self._target.overwrite.get(wanted.disk)) is not None:
            self._writer.overwrite(over, wanted.source)
            volume = over
        else:
            volume = self._written_here(wanted, undo) or self._from_image(wanted, had, undo)
        was = wanted.volume
        if was.bootable if was else wanted.boots:
            properties = was.image_metadata if was else (had.image_properties if had else {})
            self._volumes.set_bootable(volume, building(properties))
        return volume

    def _written_here(self, wanted: _Wanted, undo: ExitStack) -> str | None:
        """A new volume; None where this host cannot write it."""
        if not self._writer.able:
            return None
        try:
            with ExitStack() as mine:
                volume = self._new_volume(wanted, None, mine)
                self._volumes.wait_until_available(volume, self._work.check)
                self._writer.fill(volume, wanted.source)
                undo.callback(mine.pop_all().close)
        except (VolumeNotAttachable, TargetUnusable) as error:
            _log.warning("disk %s goes by way of an image: %s", wanted.disk, error)
            return None
        return volume

    def _from_image(self, wanted: _Wanted, had: Server | None, undo: ExitStack) -> str:
        image = self._image(wanted, had, undo)
        volume = self._new_volume(wanted, image, undo)
        self._work.progress.step(f"filling the volume of {wanted.disk}")
        self._volumes.wait_until_available(volume, self._work.check)
        self._images.delete(image)
        return volume

    def _new_volume(self, wanted: _Wanted, image: str | None, undo: ExitStack) -> str:
        was = wanted.volume
        self._tell({"kind": "volume", "restore": self._mark, "disk": wanted.disk})
        metadata = {key: value for key, value in (was.metadata if was else {}).items() if key != HALF_WRITTEN}
        volume = self._volumes.create(
            name=f"{self._target.name} {wanted.disk}",
            size=max(wanted.gib, was.size if was else 0),
            image_id=image,
            volume_type=self._target.volume_type or (was.volume_type if was else None),
            availability_zone=self._target.availability_zone or (was.availability_zone if was else None),
            metadata={**metadata, MARK: self._mark, DISK: wanted.disk},
        )
        undo.callback(self._removing, self._volumes.delete, volume)
        self._tell({"kind": "volume", "id": volume, "disk": wanted.disk})
        return volume

    def _server(self, order: NewServer, undo: ExitStack) -> str:
        self._tell({"kind": "server", "name": order.name, "restore": self._mark})
        self._work.progress.step("building the server")
        try:
            return self._built(order, undo)
        except CloudRefused as error:
            if not any(nic.fixed_ip for nic in order.nics) or self._target.networks is not None:
                raise
            self._warnings.append(f"its fixed addresses were not to be had, others were given: {error}")
        for volume in order.volumes:  # the first one had them
            self._volumes.wait_until_available(volume, self._work.check)
        without = tuple(Nic(nic.network_id) for nic in order.nics)
        return self._built(replace(order, nics=without), undo)

    def _built(self, order: NewServer, undo: ExitStack) -> str:
        server = self._servers.create(order, self._mark)
        try:
            self._tell({"kind": "server", "id": server, "name": order.name})
            self._servers.wait_until_built(server, self._work.check)
        except BaseException:
            # before the volumes that it has
            self._removing(self._servers.delete, server)
            raise
        undo.callback(self._removing, self._servers.delete, server)
        return server

    def _tell(self, made: dict[str, Any]) -> None:
        self._made.append(made)
        self._announce(self._made)

    def _removing(self, remove: Callable[[str], None], id: str) -> None:
        """After an error, which is to be told whatever becomes of this."""
        try:
            remove(id)
        except RakshaError as error:
            _log.error("%s may be left over: %s", id, error)


def _serials(machine: VMMetadata) -> dict[str, str | None]:
    """By disk; nothing of what was taken from storage: that has no definition."""
    # the running VM may have a volume that its definition has no more
    definitions = [parse_domain(xml) for xml in (machine.domain_xml, machine.live_xml) if xml]
    return {disk.target: disk.serial for definition in definitions for disk in definition.disks}


def _own_disks(machine: VMMetadata) -> dict[str, Own]:
    """Disks that Nova had made, besides the one that the server boots from."""
    domain = parse_domain(machine.domain_xml) if machine.domain_xml else None
    if domain is None or not domain.nova:
        return {}
    found = {disk.target: own_disk(disk.top.path) for disk in domain.disks if disk.layers}
    return {target: own for target, own in found.items() if own is not None}


def _lacks_boot_disk(machine: VMMetadata, stored: Iterable[str]) -> bool:
    """Only volumes were taken, and the server boots from none of them."""
    return not machine.domain_xml and machine.server is not None and not machine.server.boots_from(stored)


def _boots_from(disks: Mapping[str, AttachedVolume | None]) -> str:
    """The volume that the server was booted from, else the first disk of its own, else the first of all."""
    booted = (disk for disk, volume in disks.items() if volume is not None and volume.boot_index == 0)
    own = (disk for disk, volume in disks.items() if volume is None)
    return next(chain(booted, own, disks))
