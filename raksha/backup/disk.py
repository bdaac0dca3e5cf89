"""One captured disk becomes a stored copy: segments, image tables and map in the vault, inert until committed.

Shared by `raksha local`, which then commits by itself, and the agent, which says what it has stored.
"""

from __future__ import annotations

import threading

from raksha.backup.pipeline import Destination, DiskPipeline, needs_parent_map
from raksha.config import Settings
from raksha.progress import Progress
from raksha.states import BackupKind, ReadMode, Reason
from raksha.types import Geometry, ResourceKey
from raksha.vault import names
from raksha.vault.catalog import Catalog
from raksha.vault.chain import Chain
from raksha.vault.commit import StoredDisk
from raksha.vault.dedupe import DedupeIndex
from raksha.vault.image import write_image_objects
from raksha.vault.map import MapBuilder
from raksha.vault.metadata import FORMAT, BackupMetadata, BaseImageDocument, MapReference, Volume
from raksha.virt.capture import Capture, DiskCapture


def destination(
    catalog: Catalog,
    settings: Settings,
    claim: str,
    dedupe: DedupeIndex,
    *,
    progress: Progress,
    cancel: threading.Event,
) -> Destination:
    """Into this vault, the way this host does it. `claim` names what is stored: no other writer may use it."""
    spool_dir = settings.state_dir / "spool"
    spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Destination(
        store=catalog.store,
        hasher=catalog.hasher(catalog.vault.key_id),
        dedupe=dedupe,
        claim=claim,
        workers=settings.workers,
        compression_level=settings.compression_level,
        spool_dir=spool_dir,
        progress=progress,
        cancel=cancel,
    )


def store_disk(
    catalog: Catalog,
    capture: Capture,
    disk: DiskCapture,
    key: ResourceKey,
    to: Destination,
    full_reason: Reason | None = None,
) -> StoredDisk:
    """Everything of one disk except what makes it visible. Raises what the pipeline raises.

    `full_reason` is recorded for a full copy instead of the engine's own, where the caller knows better.
    """
    geometry = Geometry(disk.size)
    parent = None if disk.mode is ReadMode.FULL else disk.parent
    parent_key = ResourceKey(key.backupjob, parent, key.vm, key.resource) if parent else None
    chain = None
    if parent_key and needs_parent_map(disk.mode, disk.reason):
        chain = Chain(catalog.readers(catalog.chain(parent_key)))
    key_id = catalog.vault.key_id
    with MapBuilder(geometry, key_id, to.spool_dir) as builder:
        moved = DiskPipeline(disk, geometry, chain, to).run(builder)
        sealed = builder.seal()
        backing = names.relative_image(key, parent_key) if parent_key else None
        image = write_image_objects(to.store, sealed, to.claim, backing, to.spool_dir)
        built = builder.finish(image.objects, image.parts)
        to.store.put_file(names.map_object(key, built.digest), built.file, built.size)
        around = built.size + sum(each.size for each in image.objects if not each.manifest)
        return StoredDisk(
            metadata=BackupMetadata(
                format=FORMAT,
                backupjob=key.backupjob,
                backupjobrun=key.backupjobrun,
                vm=key.vm,
                resource=key.resource,
                kind=BackupKind.INCREMENTAL if parent_key else BackupKind.FULL,
                parent=parent,
                mode=disk.mode,
                reason=(full_reason or disk.reason) if disk.mode is ReadMode.FULL else disk.reason,
                size=disk.size,
                cluster_size=geometry.cluster_size,
                clusters_per_segment=geometry.clusters_per_segment,
                key_id=key_id,
                map=MapReference(digest=built.digest, size=built.size),
                image_size=image.size,
                volume=Volume(
                    read=moved.read, data=moved.data, sent=moved.sent + around, stored=sum(sealed.stored_sizes())
                ),
                engine=capture.engine,
                taken_at=capture.taken_at,
                base_image=_base_image(disk),
                facts=dict(disk.facts),
                tracker=None if disk.tracker is None else dict(disk.tracker),
            ),
            parts=image.parts,
        )


def _base_image(disk: DiskCapture) -> BaseImageDocument | None:
    base = disk.base_image
    return BaseImageDocument(path=base.path, size=base.size, modified=base.modified) if base else None
