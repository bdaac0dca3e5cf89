"""The JSON documents of a vault as typed, frozen records. The fields are the format: docs/vault-format.md.

Reading validates types and ranges and raises `MetadataInvalid`; unknown fields are ignored, so that a later
Raksha may add some. Writing gives indented JSON: people read these.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from raksha.errors import MetadataInvalid
from raksha.server import AttachedVolume, Server
from raksha.states import BackupKind, Consistency, ReadMode, Reason
from raksha.types import Geometry, ResourceKey

#: highest vault format this code reads, and the one it writes
FORMAT = 1

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Power2 = Annotated[int, msgspec.Meta(ge=4096, le=2 * 1024 * 1024)]


class Writer(msgspec.Struct, frozen=True, kw_only=True):
    """Who may write: one service, or one host in local mode."""

    kind: str
    #: what is compared
    id: str
    #: what a person reads
    name: str


class VaultDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`vault.json`"""

    format: Annotated[int, msgspec.Meta(ge=1)]
    id: Name
    writer: Writer
    #: key that new maps use
    key_id: Name
    created_at: float


class KeyDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`keys/<id>`, write-once"""

    id: Name
    #: hex, 32 bytes
    key: Digest
    created_at: float


class EpochDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`epochs/<n>`: the n-th commit of this vault"""

    number: Count
    backupjob: Name
    backupjobrun: Name
    writer: Writer
    committed_at: float


class BaseImageDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The bottom of the disk's backing chain on the host. A hint for dedupe, never trusted."""

    path: str
    size: Count
    modified: int


class MapReference(msgspec.Struct, frozen=True, kw_only=True):
    """Which map belongs to a disk copy."""

    #: of the map's root; names the object
    digest: Digest
    #: bytes of the map object
    size: Count


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """What one disk copy cost. All in bytes."""

    #: read from the VM
    read: Count = 0
    #: plain data that this copy holds itself (not its parents)
    data: Count = 0
    #: sent to the vault: new segments, tables and the map
    sent: Count = 0
    #: compressed data that this copy refers to, wherever it was stored first
    stored: Count = 0


class BackupMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """`BackupMetadata`: one stored disk copy"""

    format: Annotated[int, msgspec.Meta(ge=1)]
    backupjob: Name
    backupjobrun: Name
    vm: Name
    resource: Name
    kind: BackupKind
    #: run of the parent copy (same job, VM and resource); None for a full
    parent: Name | None
    #: how it was read, and why it was no plain increment
    mode: ReadMode
    reason: Reason | None
    size: Count
    cluster_size: Power2
    clusters_per_segment: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    key_id: Name
    map: MapReference
    #: bytes of the `Backup` object
    image_size: Count
    volume: Volume
    engine: str
    taken_at: float
    base_image: BaseImageDocument | None = None
    #: disk as the VM had it: format, bus, source
    facts: dict[str, str | int | None] = {}
    #: what the engine knows of the change tracker that counts from this copy; it checks that before it believes it
    tracker: dict[str, str | int | None] | None = None

    @property
    def resource_key(self) -> ResourceKey:
        return ResourceKey(self.backupjob, self.backupjobrun, self.vm, self.resource)

    @property
    def parent_key(self) -> ResourceKey | None:
        return ResourceKey(self.backupjob, self.parent, self.vm, self.resource) if self.parent else None

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.size, self.cluster_size, self.clusters_per_segment)


class VMMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """`VMMetadata`: everything of a VM that is not on its disks. Holds secrets as far as the VM's definition does."""

    format: Annotated[int, msgspec.Meta(ge=1)]
    vm: Name
    name: str
    power: str
    domain_xml: str
    live_xml: str | None
    nvram: bytes | None
    files: dict[str, bytes] = {}
    #: as the cloud knows it; None: it is not of a cloud, or the cloud could not be asked
    server: Server | None = None
    #: of a volume that stands in the place of a VM. Then, and of servers taken from storage, `domain_xml` is empty
    volume: AttachedVolume | None = None

    def volume_of(self, resource: str, serial: str | None) -> AttachedVolume | None:
        """Which volume a disk was, as far as a cloud has told. `serial`: what the definition says of the disk."""
        if self.volume is not None:
            return self.volume
        if self.server is None:
            return None
        if self.domain_xml:
            return self.server.volume_of(serial)
        return self.server.volume_at(resource)


class ResourceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A disk, as `run.json` lists it. `BackupMetadata` is what counts."""

    resource: Name
    size: Count
    kind: BackupKind
    parent: Name | None
    mode: ReadMode
    reason: Reason | None
    volume: Volume


class VmSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A VM, as `run.json` lists it."""

    vm: Name
    name: str
    engine: str
    power: str
    consistency: Consistency
    taken_at: float
    frozen_seconds: float | None
    resources: list[ResourceSummary]


class RunDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`: a restore point exists when this exists"""

    format: Annotated[int, msgspec.Meta(ge=1)]
    #: number of the commit, ascending in the order of commits
    number: Count
    backupjob: Name
    #: name of the job as a person gave it
    job_name: str
    backupjobrun: Name
    started_at: float
    taken_at: float
    finished_at: float
    #: seconds between the first and the last VM's snapshot
    skew_seconds: float
    vms: list[VmSummary]
    host: str
    raksha: str
    #: keys and values of the job, as its owner gave them
    hints: dict[str, str] = {}

    def volume(self) -> Volume:
        """Sum over all disks."""
        each = [resource.volume for vm in self.vms for resource in vm.resources]
        return Volume(
            read=sum(v.read for v in each),
            data=sum(v.data for v in each),
            sent=sum(v.sent for v in each),
            stored=sum(v.stored for v in each),
        )

    def resource_keys(self) -> list[ResourceKey]:
        return [
            ResourceKey(self.backupjob, self.backupjobrun, vm.vm, resource.resource)
            for vm in self.vms
            for resource in vm.resources
        ]


T = TypeVar("T", bound=msgspec.Struct)


#: Made here, once: msgspec works out what a type looks like at its first use, and crashes when two threads
#: do that at the same time (0.22).
_DECODERS: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (VaultDocument, KeyDocument, EpochDocument, BackupMetadata, VMMetadata, RunDocument)
}


def encode(document: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def decode(data: bytes, kind: type[T], name: str) -> T:
    """Raises `MetadataInvalid` naming the object, also for a format that this code does not know."""
    try:
        document: T = _DECODERS[kind].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MetadataInvalid(name=name, detail=str(error)) from error
    # vault.json is refused by name: `VaultNewer`
    if kind is not VaultDocument and getattr(document, "format", FORMAT) > FORMAT:
        raise MetadataInvalid(name=name, detail=f"its format is newer than {FORMAT}, which this Raksha reads")
    return document
