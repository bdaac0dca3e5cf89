"""Disks in memory, and a vault in memory to store them in. What a capture engine gives, without a VM."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raksha.backup.disk import store_disk
from raksha.backup.pipeline import Destination
from raksha.progress import Progress
from raksha.restore.context import Context
from raksha.restore.disk import restore_disk
from raksha.restore.source import DiskSource
from raksha.restore.targets import RawFile
from raksha.states import Consistency, ReadMode, Reason
from raksha.types import Extent, ExtentKind, ResourceKey
from raksha.vault.catalog import Catalog
from raksha.vault.commit import StoredDisk, commit_run, establish, plan_catalog
from raksha.vault.dedupe import DedupeIndex
from raksha.vault.memory import MemoryStore
from raksha.vault.metadata import FORMAT, BackupMetadata, ResourceSummary, RunDocument, VMMetadata, VmSummary, Writer
from raksha.vault.store import Store
from raksha.virt.capture import BaseImage, DiskReader, Machine

ME = Writer(kind="host", id="1b671a64-40d5-491e-99b0-da01ff1f3341", name="test")
JOB, VM = "job", "vm"


def read_into(reader: DiskReader, buffer: bytearray, stretches: Sequence[tuple[int, int]]) -> None:
    """What `CaptureReader.pread_into` promises; what was in the buffer behind it is spoilt."""
    buffer[:] = bytes([0xA5]) * len(buffer)
    at = 0
    for offset, length in stretches:
        buffer[at : at + length] = reader.pread(offset, length)
        at += length


@dataclass
class MemoryReader:
    disk: MemoryDisk
    closed: bool = False

    def pread(self, offset: int, length: int) -> bytes:
        assert not self.closed
        assert offset >= 0 and length > 0 and offset + length <= self.disk.size
        self.disk.reads.append((offset, length))
        for error in self.disk.fails:
            raise error
        return self.disk.data[offset : offset + length]

    def pread_into(self, buffer: bytearray, stretches: Sequence[tuple[int, int]]) -> None:
        read_into(self, buffer, stretches)

    def close(self) -> None:
        self.closed = True


@dataclass
class MemoryDisk:
    """Fulfils `DiskCapture`."""

    data: bytes
    listed: list[Extent]
    mode: ReadMode = ReadMode.FULL
    reason: Reason | None = Reason.FIRST_RUN
    parent: str | None = None
    target: str = "vda"
    base_image: BaseImage | None = None
    facts: Mapping[str, str | int | None] = field(default_factory=dict)
    tracker: Mapping[str, str | int | None] | None = None
    fails: list[Exception] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)
    readers: list[MemoryReader] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.data)

    def open(self) -> MemoryReader:
        self.readers.append(MemoryReader(self))
        return self.readers[-1]

    def extents(self) -> Iterator[Extent]:
        return iter(self.listed)


def whole(data: bytes) -> list[Extent]:
    return [Extent(0, len(data), ExtentKind.DATA)] if data else []


class MemoryCapture:
    """Fulfils `Capture` as far as storing looks at it."""

    engine = "memory"
    consistency = Consistency.CRASH
    taken_at = 1000.0
    frozen_seconds = None

    def __init__(self, disks: Iterable[MemoryDisk]) -> None:
        self.disks = list(disks)
        self.machine = Machine(uuid=VM, name=VM, domain_xml="<domain/>", live_xml=None, power="running", nvram=None)

    def check(self) -> None: ...

    def finish(self) -> list[str]:
        return []

    def abandon(self) -> None: ...


class Bench:
    """A vault, and the few steps from a disk to a restore point and back."""

    def __init__(self, spool: Path, store: Store | None = None) -> None:
        self.store = store or MemoryStore()
        self.catalog = plan_catalog(self.store, ME)
        establish(self.catalog)
        self.spool = spool
        self.cancel = threading.Event()
        self.workers = 3

    def store_disk(self, run: str, disk: MemoryDisk, pins: Iterable[BackupMetadata] = ()) -> StoredDisk:
        with DedupeIndex() as dedupe:
            for metadata in pins:
                dedupe.pin(metadata.map.digest, self.catalog.reader(metadata))
            to = Destination(
                store=self.store,
                hasher=self.catalog.hasher(self.catalog.vault.key_id),
                dedupe=dedupe,
                claim=f"{run}.1",
                workers=self.workers,
                compression_level=1,
                spool_dir=self.spool,
                progress=Progress(),
                cancel=self.cancel,
            )
            return store_disk(self.catalog, MemoryCapture([disk]), disk, ResourceKey(JOB, run, VM, disk.target), to)

    def commit(self, run: str, *disks: StoredDisk) -> RunDocument:
        resources = [
            ResourceSummary(
                resource=disk.metadata.resource,
                size=disk.metadata.size,
                kind=disk.metadata.kind,
                parent=disk.metadata.parent,
                mode=disk.metadata.mode,
                reason=disk.metadata.reason,
                volume=disk.metadata.volume,
            )
            for disk in disks
        ]
        vm = VmSummary(
            vm=VM,
            name=VM,
            engine="memory",
            power="running",
            consistency=Consistency.CRASH,
            taken_at=1000.0,
            frozen_seconds=None,
            resources=resources,
        )
        document = RunDocument(
            format=FORMAT,
            number=0,
            backupjob=JOB,
            job_name="job",
            backupjobrun=run,
            started_at=1000.0,
            taken_at=1000.0,
            finished_at=1000.0,
            skew_seconds=0,
            vms=[vm],
            host="test",
            raksha="test",
        )
        machine = VMMetadata(
            format=FORMAT, vm=VM, name=VM, power="running", domain_xml="<domain/>", live_xml=None, nvram=None
        )
        return commit_run(self.catalog, document, disks, {VM: machine})

    def backup(self, run: str, disk: MemoryDisk, pins: Iterable[BackupMetadata] = ()) -> StoredDisk:
        stored = self.store_disk(run, disk, pins)
        self.commit(run, stored)
        return stored

    def restored(self, run: str, target: str = "vda") -> bytes:
        return restored(self.catalog, ResourceKey(JOB, run, VM, target), self.spool)


def restored(catalog: Catalog, key: ResourceKey, spool: Path) -> bytes:
    """The disk, by way of Raksha's own restore."""
    chain = catalog.chain(key)
    source = DiskSource(
        vm=key.vm,
        disk=key.resource,
        run=key.backupjobrun,
        store=catalog.store,
        readers=catalog.readers(chain),
        hashers=[catalog.hasher(metadata.key_id) for metadata in chain],
    )
    path = spool / f"{key.backupjobrun}-{key.resource}.raw"
    path.unlink(missing_ok=True)
    restore_disk(source, RawFile(path), Context(spool))
    return path.read_bytes()
