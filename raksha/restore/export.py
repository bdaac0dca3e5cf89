"""Disks as plain qcow2 files: each copy of a chain on top of its parent's, or the chain flattened into one image.

::

    for each copy: the vault's own image tables, then every segment, fetched once and verified, none recompressed
    flat names: `qemu-img rebase` to the parent's new name
    all files durable: the directory gets its name

Two ways to name the files: `TREE` as the vault does (`<run>/<vm>/<disk>/Backup`), `FLAT` in one directory. Backing
files are relative and their format is written, so the directory may be moved and opened anywhere.

Nothing half-made is visible: files are made in a hidden directory beside the target, which is removed after an error.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path, PurePosixPath

from msgspec import Struct

from raksha import crash
from raksha.errors import TargetExists, TargetFailed, TargetUnusable
from raksha.restore.context import Context
from raksha.restore.disk import losing
from raksha.restore.files import require_space, sync, writing
from raksha.restore.leftovers import clear, own
from raksha.restore.segments import cluster_hashes, get_segment
from raksha.restore.source import DiskSource
from raksha.types import ResourceKey
from raksha.vault import names
from raksha.vault.chain import Chain, consolidate
from raksha.vault.image import write_image
from raksha.vault.map import MapBuilder, MapReader
from raksha.vault.segment import ClusterHasher, SegmentRow
from raksha.virt.libvirt.image import rebase


class Naming(StrEnum):
    """How exported files are named."""

    TREE = "tree"
    FLAT = "flat"


class ExportDisk(Struct, frozen=True):
    """A disk at one restore point."""

    source: DiskSource
    #: for each map of the source the copy that it belongs to, oldest first
    keys: Sequence[ResourceKey]


class Exported(Struct, frozen=True):
    """One file."""

    vm: str
    disk: str
    #: id of the run whose copy this is
    run: str
    path: Path
    #: bytes of the file
    size: int
    #: path of the backing file as the header names it; None: it stands alone
    backing: str | None


def export(
    disks: Sequence[ExportDisk],
    directory: Path,
    context: Context,
    *,
    naming: Naming = Naming.FLAT,
    flatten: bool = False,
) -> list[Exported]:
    """Make `directory`, which does not exist or is empty, with an image for each copy of each disk.

    A copy that several chains share is written once. Raises `DiskLost` naming the object that is missing or damaged,
    `TargetExists`, `TargetUnusable`, `NoSpaceForRestore`, `TargetFailed`, `ImageToolFailed`, `Interrupted`, and what
    the store raises; nothing is left then.
    """
    _require_new(directory)
    with ExitStack() as stack:
        images = _flattened(disks, naming, context, stack) if flatten else _copies(disks, naming)
        require_space([(directory.parent, image.room()) for image in images])
        staging = stack.enter_context(_staging(directory))
        made = [_write(image, staging, directory, context) for image in images]
        _publish(staging, directory)
    return made


class _Image(Struct, frozen=True):
    """A file to be made."""

    source: DiskSource
    key: ResourceKey
    reader: MapReader
    hasher: ClusterHasher
    #: below the directory
    path: PurePosixPath
    #: as the vault's own image names its parent
    vault_backing: str | None
    #: as the exported image does
    backing: str | None

    def stored(self) -> int:
        return sum(self.reader.stored_sizes())

    def room(self) -> int:
        """Bytes it takes: the segments, a table for each page, refcounts."""
        stored, size = self.stored(), self.reader.geometry.cluster_size
        return stored + stored // 1024 + (self.reader.page_count + 16) * size


def _copies(disks: Sequence[ExportDisk], naming: Naming) -> list[_Image]:
    paths = _Paths(naming)
    images: dict[ResourceKey, _Image] = {}
    for disk in disks:
        below: _Image | None = None
        for place, (key, reader) in enumerate(zip(disk.keys, disk.source.readers, strict=True)):
            if key not in images:
                path = paths.make(disk.source, key, f"-{place:03d}")
                images[key] = _Image(
                    source=disk.source,
                    key=key,
                    reader=reader,
                    hasher=disk.source.hashers[place],
                    path=path,
                    vault_backing=names.relative_image(key, below.key) if below else None,
                    backing=os.path.relpath(below.path, path.parent) if below else None,
                )
            below = images[key]
    return list(images.values())


def _flattened(disks: Sequence[ExportDisk], naming: Naming, context: Context, stack: ExitStack) -> list[_Image]:
    paths = _Paths(naming)
    images = []
    for disk in disks:
        context.check()
        source, key = disk.source, disk.keys[-1]
        with losing(source):
            chain = Chain(source.readers)
            builder = stack.enter_context(MapBuilder(chain.geometry, source.readers[-1].key_id, context.spool_dir))
            consolidate(chain, builder)
        path = paths.make(source, key, "")
        images.append(_Image(source, key, builder.seal(), source.hashers[-1], path, None, None))
    return images


class _Paths:
    """Gives every copy a path of its own."""

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._taken: set[PurePosixPath] = set()

    def make(self, source: DiskSource, key: ResourceKey, place: str) -> PurePosixPath:
        # every element is checked, so none leaves the directory
        run, vm = names.checked(key.backupjobrun, "a run"), names.checked(key.vm, "a VM")
        disk = names.checked(key.resource, "a disk")
        path = PurePosixPath(run, vm, disk, names.IMAGE_FILE)
        if self._naming is Naming.FLAT:
            shown = re.sub(r"[^A-Za-z0-9._-]", "_", source.vm)[:64].lstrip(".-") or vm
            path = PurePosixPath(f"{shown}-{disk}{place}-{run}.qcow2")
            if path in self._taken:  # two VMs whose names look alike in a path
                path = PurePosixPath(f"{vm}-{disk}{place}-{run}.qcow2")
        if path in self._taken:
            raise TargetExists(target=path)
        self._taken.add(path)
        return path


def _write(image: _Image, staging: Path, directory: Path, context: Context) -> Exported:
    source, file = image.source, staging / image.path
    with writing(directory):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def fetch(row: SegmentRow) -> bytes:
        context.check()
        body = get_segment(source.store, row)
        cluster_hashes(body, row, image.hasher, image.reader.geometry.cluster_size)
        context.progress.advance(len(body), len(body))
        return body

    context.progress.begin(f"{source.vm}:{source.disk}", image.stored())
    try:
        with losing(source), writing(directory / image.path), file.open("x+b") as target:
            file.chmod(0o600)
            size = write_image(image.reader, fetch, target, image.vault_backing, context.workers)
    finally:
        context.progress.end()
    if image.backing is not None and image.backing != image.vault_backing:
        rebase(str(file), image.backing)
    sync(file)
    return Exported(source.vm, image.key.resource, image.key.backupjobrun, directory / image.path, size, image.backing)


def _require_new(directory: Path) -> None:
    if directory.is_symlink() or (directory.exists() and not (directory.is_dir() and not any(directory.iterdir()))):
        raise TargetExists(target=directory)
    if not directory.parent.is_dir():
        raise TargetUnusable(target=directory, detail=f"there is no directory {directory.parent}")


@contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """A hidden directory beside the target. It is gone at the end, or has become the target."""
    clear(directory, lambda _: True)
    staging = directory.parent / f".raksha-{secrets.token_hex(4)}.part"
    with writing(directory), crash.around("export.create"):
        staging.mkdir(mode=0o700)
        descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        own(descriptor)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)


def _publish(staging: Path, directory: Path) -> None:
    for each in [staging, *(path for path in staging.rglob("*") if path.is_dir())]:
        sync(each)
    try:
        # replaces an empty directory and nothing else
        with crash.around("export.rename"):
            staging.rename(directory)
    except OSError as error:
        if os.path.lexists(directory):
            raise TargetExists(target=directory) from error
        raise TargetFailed(target=directory, detail=error.strerror) from error
    sync(directory.parent)
