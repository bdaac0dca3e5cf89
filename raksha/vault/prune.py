"""Deleting restore points that others build on, without moving data.

A disk copy whose parent goes becomes a full one: the maps of its chain, laid over each other, are a new map
over the same segments. Order for each such copy::

    image tables and new map (inert) → Backup → BackupMetadata → run.json

and only when all of them stand are the unwanted points deleted. An interruption leaves every remaining point
restorable: its BackupMetadata names either the old map and parent, or the new map and none. The old map is garbage.

Not here: which points are unwanted (raksha.retention), and freeing space (`collect`).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from raksha.errors import Interrupted
from raksha.progress import Progress
from raksha.states import BackupKind
from raksha.vault import names
from raksha.vault.catalog import Catalog
from raksha.vault.chain import Chain, consolidate
from raksha.vault.collect import live_runs
from raksha.vault.commit import delete_run, put_metadata
from raksha.vault.image import write_image_objects
from raksha.vault.map import MapBuilder
from raksha.vault.metadata import BackupMetadata, MapReference, RunDocument, encode


def remove_runs(
    catalog: Catalog,
    victims: Sequence[RunDocument],
    spool_dir: Path,
    progress: Progress,
    cancel: threading.Event | None = None,
) -> int:
    """Delete restore points; those that build on them come to stand alone first. Returns the number of objects.

    Raises `Damaged` errors if a chain cannot be read: then nothing has been deleted. Raises `Interrupted` between two
    points when `cancel` is set: every point is whole or gone.
    """
    gone = {run.backupjobrun for run in victims}
    for run in _all_runs(catalog):
        _check(cancel)
        if run.backupjobrun not in gone:
            _stand_alone(catalog, run, gone, spool_dir, progress)
    deleted = 0
    # newest first: an interruption never leaves a point whose parent is gone
    for run in sorted(victims, key=lambda run: run.number, reverse=True):
        _check(cancel)
        deleted += delete_run(catalog, run)
        progress.step(f"deleted {run.backupjobrun}")
    return deleted


def _all_runs(catalog: Catalog) -> Iterable[RunDocument]:
    """By the numbers of all commits: a listing that lags would hide a point that builds on one that goes."""
    found = {(run.backupjob, run.backupjobrun): run for run in catalog.runs()}
    return {**found, **{(run.backupjob, run.backupjobrun): run for run in live_runs(catalog)}}.values()


def _check(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Interrupted()


def _stand_alone(catalog: Catalog, run: RunDocument, gone: set[str], spool_dir: Path, progress: Progress) -> None:
    """Make every disk copy of `run` that builds on something in `gone` a full one."""
    changed: dict[tuple[str, str], BackupMetadata] = {}
    for key in run.resource_keys():
        metadata = catalog.metadata(key)
        if metadata.parent in gone:
            changed[key.vm, key.resource] = consolidate_disk(catalog, metadata, spool_dir)
            progress.step(f"{run.backupjobrun} {key.resource}: now stands alone")
    if changed:
        catalog.store.put(names.run(run.backupjob, run.backupjobrun), encode(_with(run, changed)))


def consolidate_disk(catalog: Catalog, metadata: BackupMetadata, spool_dir: Path) -> BackupMetadata:
    """A full copy from a chain, over the same segments. The old map stays until the next collection."""
    full = write_consolidated(catalog, metadata, f"{uuid.uuid4()}.1", spool_dir)
    show_disk(catalog, full)
    return full


def write_consolidated(catalog: Catalog, metadata: BackupMetadata, claim: str, spool_dir: Path) -> BackupMetadata:
    """Image tables and map of a full copy over the segments of a chain; inert. What its `BackupMetadata` is to be."""
    key, store = metadata.resource_key, catalog.store
    chain = Chain(catalog.readers(catalog.chain(key)))
    with MapBuilder(metadata.geometry, metadata.key_id, spool_dir) as builder:
        consolidate(chain, builder)
        sealed = builder.seal()
        image = write_image_objects(store, sealed, claim, None, spool_dir)
        built = builder.finish(image.objects, image.parts)
        store.put_file(names.map_object(key, built.digest), built.file, built.size)
        stored = sum(sealed.stored_sizes())
    return msgspec.structs.replace(
        metadata,
        kind=BackupKind.FULL,
        parent=None,
        map=MapReference(digest=built.digest, size=built.size),
        image_size=image.size,
        volume=msgspec.structs.replace(metadata.volume, stored=stored),
    )


def show_disk(catalog: Catalog, metadata: BackupMetadata) -> None:
    """`Backup` and `BackupMetadata` of a copy as its map says. Again, by whoever: the same."""
    parts = list(islice(catalog.reader(metadata).parts(), catalog.store.manifest_limit))
    catalog.store.put_manifest(names.image(metadata.resource_key), parts)
    put_metadata(catalog.store, metadata)


def _with(run: RunDocument, changed: dict[tuple[str, str], BackupMetadata]) -> RunDocument:
    vms = []
    for vm in run.vms:
        resources = []
        for resource in vm.resources:
            now = changed.get((vm.vm, resource.resource))
            if now is not None:
                resource = msgspec.structs.replace(resource, kind=now.kind, parent=None, volume=now.volume)
            resources.append(resource)
        vms.append(msgspec.structs.replace(vm, resources=resources))
    return msgspec.structs.replace(run, vms=vms)
