"""A server as the cloud knows it: what its disks and its definition do not say.

It is stored with each backup of the server (`VMMetadata.server`), and a restore makes a new one by it. No secrets:
neither passwords nor user data are part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

#: what descriptions and restores have to do with, by the types of the catalog
CLOUD_SERVICES = ("compute", "block-storage", "image", "network")


#: of images' properties: how Nova builds a server of it; what bears such a name and is Glance's own
_BUILDS = ("hw_", "os_", "img_config_drive")
_GLANCE_OWN = ("os_hash_", "os_hidden", "os_glance_")


def building(properties: Mapping[str, Any]) -> dict[str, str]:
    """Of an image's properties those that say what a server of it is like."""
    return {
        str(key): str(value)
        for key, value in properties.items()
        if key.startswith(_BUILDS) and not key.startswith(_GLANCE_OWN)
    }


class Own(StrEnum):
    """Disks that Nova makes anew with each server, besides the one that it boots from."""

    #: what a guest had on it is its owner's data all the same
    EPHEMERAL = "ephemeral"
    SWAP = "swap"
    CONFIG_DRIVE = "config drive"


def own_disk(source: str) -> Own | None:
    """What Nova made a disk as. `source`: path or name of its image (`…/disk.swap`, in Ceph `POOL/ID_disk.swap`)."""
    name = source.rpartition("/")[2].rpartition("_")[2]
    if name == "disk.swap":
        return Own.SWAP
    if name == "disk.config":
        return Own.CONFIG_DRIVE
    return Own.EPHEMERAL if name == "disk.local" or name.startswith("disk.eph") else None


class Flavor(Struct, frozen=True, kw_only=True):
    """As it was when the server was built: the cloud may have changed or removed it since."""

    name: str
    vcpus: int
    #: MiB
    ram: int
    #: GiB
    disk: int
    ephemeral: int = 0
    #: MiB
    swap: int = 0
    extra_specs: dict[str, str] = {}


class FixedIp(Struct, frozen=True, kw_only=True):
    subnet_id: str
    ip_address: str


class Port(Struct, frozen=True, kw_only=True):
    """A network card."""

    id: str
    network_id: str
    network_name: str | None = None
    mac_address: str
    fixed_ips: tuple[FixedIp, ...] = ()
    #: ids
    security_groups: tuple[str, ...] = ()
    vnic_type: str = "normal"


class AttachedVolume(Struct, frozen=True, kw_only=True):
    """A volume of the block storage service."""

    id: str
    name: str | None = None
    #: GiB
    size: int
    volume_type: str | None = None
    availability_zone: str | None = None
    #: as the cloud names it; the guest may see another name
    device: str | None = None
    #: 0: the server boots from it; None: it does not
    boot_index: int | None = None
    bootable: bool = False
    delete_on_termination: bool = False
    multiattach: bool = False
    encrypted: bool = False
    metadata: dict[str, str] = {}
    #: of the image that it was made from
    image_metadata: dict[str, str] = {}

    @property
    def target(self) -> str | None:
        """As the hypervisor calls the disk; None: it is attached to nothing."""
        return self.device.rpartition("/")[2] if self.device else None


class Server(Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str | None = None
    #: ACTIVE, SHUTOFF, …
    status: str
    #: of its boot disk; None: it boots from a volume
    image_id: str | None = None
    image_name: str | None = None
    #: properties that say what a server of it is like (`hw_…`, `os_…`)
    image_properties: dict[str, str] = {}
    flavor: Flavor
    ports: tuple[Port, ...] = ()
    #: names
    security_groups: tuple[str, ...] = ()
    key_name: str | None = None
    metadata: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    availability_zone: str | None = None
    #: ids
    server_groups: tuple[str, ...] = ()
    config_drive: bool = False
    volumes: tuple[AttachedVolume, ...] = ()

    def volume_of(self, serial: str | None) -> AttachedVolume | None:
        """The volume that a disk of the definition is, by the disk's serial number, which is the volume's id."""
        return next((volume for volume in self.volumes if volume.id == serial), None)

    def volume_at(self, target: str) -> AttachedVolume | None:
        """The volume that the hypervisor calls so: `vdb` is the one at /dev/vdb."""
        return next((volume for volume in self.volumes if volume.target == target), None)

    def boots_from(self, stored: Iterable[str]) -> bool:
        """Whether its boot disk is among disks that were taken from storage: there, that is an image or a volume."""
        volumes = {volume.target or volume.id for volume in self.volumes}
        return self.image_id is None or not volumes.issuperset(stored)


class Needs(Struct, frozen=True, kw_only=True):
    """What the restore of a VM needs of a cloud. Of a new server: what was asked for, else what the old one had."""

    #: what it was; None: no cloud was asked when it was backed up
    had: Server | None
    server: bool
    flavor: str | None = None
    networks: tuple[str, ...] | None = None
    #: network and address of each network card that is to have a certain one
    addresses: tuple[tuple[str, str], ...] = ()
    key_name: str | None = None
    #: GiB and type (None: the cloud's default) of each volume
    volumes: tuple[tuple[int, str | None], ...] = ()
