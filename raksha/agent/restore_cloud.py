"""RESTORE into the project's cloud: a new server (`server`), new volumes (`volume`), images (`image`).

::

    each disk            its image is streamed into Glance; nothing is written on this host but the image's tables
    a volume             Cinder fills it from that image, which goes then
    a server             boots from an image, if it did, or from a volume; its other disks are volumes

What is made bears the mark of the restore. A restore that is claimed again removes what the last attempt has made,
which is found by that mark, and makes it anew: nobody goes on with what may be half written. After an error, or when
nobody wants it any more, nothing of it is left, or the log names it.

Not promised: that a fixed address, a key pair or a server group is there again; what is not is told.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from raksha.agent.host import Host
from raksha.agent.sources import disk_sources
from raksha.agent.work import Work
from raksha.errors import BadArgument, CloudRefused, RakshaError, RunNotFound
from raksha.openstack.images import Images
from raksha.openstack.lent import DISK, MARK, LentLogin
from raksha.openstack.new_server import NewServer, NewServers, Nic
from raksha.openstack.volumes import Volumes
from raksha.restore.source import DiskSource
from raksha.restore.stream import flattened
from raksha.server import AttachedVolume, Server, building
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
            self._clear()
            with ExitStack() as undo:
                made = self._make(wanted, machine.server, order, undo)
                undo.pop_all()
        return made

    # -- before anything is made --------------------------------------------------------------------

    def _look(self, catalog: Catalog, run: RunDocument) -> tuple[list[_Wanted], VMMetadata]:
        summary = catalog.vm(run, self._order.vm)
        machine = catalog.machine(run, summary)
        server = machine.server
        serials = {disk.target: disk.serial for disk in parse_domain(machine.domain_xml).disks}
        sources = disk_sources(catalog, run, summary, self._order.disks)
        every = {
            each.resource: None if server is None else server.volume_of(serials.get(each.resource))
            for each in summary.resources
        }
        boots = _boots_from(every)
        if self._target.kind == "server" and boots not in {source.disk for source in sources}:
            raise BadArgument(argument="disks", detail=f"the server boots from {boots}; restore the others as volumes")
        wanted = [_Wanted(source, every[source.disk], source.disk == boots) for source in sources]
        # the disk that a server boots from is its first
        return sorted(wanted, key=lambda each: not each.boots), machine

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
            flavor_id=self._servers.flavor(target.flavor, had.flavor if had else None),
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
        image = self._image(wanted, had, undo)
        was = wanted.volume
        self._tell({"kind": "volume", "restore": self._mark, "disk": wanted.disk})
        self._work.progress.step(f"filling the volume of {wanted.disk}")
        volume = self._volumes.create(
            name=f"{self._target.name} {wanted.disk}",
            size=max(wanted.gib, was.size if was else 0),
            image_id=image,
            volume_type=self._target.volume_type or (was.volume_type if was else None),
            availability_zone=self._target.availability_zone or (was.availability_zone if was else None),
            metadata={**(was.metadata if was else {}), MARK: self._mark, DISK: wanted.disk},
        )
        undo.callback(self._removing, self._volumes.delete, volume)
        self._tell({"kind": "volume", "id": volume, "disk": wanted.disk})
        self._volumes.wait_until_filled(volume, self._work.check)
        if was is not None and was.bootable:
            self._volumes.set_bootable(volume, building(was.image_metadata))
        self._images.delete(image)
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
            self._volumes.wait_until_filled(volume, self._work.check)
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


def _boots_from(disks: Mapping[str, AttachedVolume | None]) -> str:
    """The volume that the server was booted from, else the first disk of its own, else the first of all."""
    booted = (disk for disk, volume in disks.items() if volume is not None and volume.boot_index == 0)
    own = (disk for disk, volume in disks.items() if volume is None)
    return next(chain(booted, own, disks))
