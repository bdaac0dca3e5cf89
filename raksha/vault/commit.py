"""Changing what is in a vault: becoming its writer, committing a run, deleting one.

A run of local mode takes its number here; one of a service has got it from the database (`commit_numbered`).

Order of writing (a reader never sees half a run)::

    segments, image tables, maps          by whoever captured, before anything here; inert without what follows
    Backup, BackupMetadata (read back), VMMetadata
    epochs/<n>                            create-only; fixes the order of commits
    run.json                              create-only; now the run exists

Deleting goes the other way. Every commit proves before its epoch, and once more before `run.json`, that
the vault still has this writer: one that was taken over writes inert names only.

Not here: deciding what to delete, and removing segments that nothing refers to (`collect`).
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import Struct

from raksha.errors import (
    Damaged,
    DatabaseBehind,
    ObjectCorrupt,
    ObjectExists,
    ObjectMissing,
    VaultUnavailable,
    VaultWriterOther,
)
from raksha.types import ResourceKey
from raksha.vault import names
from raksha.vault.catalog import Catalog, read_vault
from raksha.vault.metadata import (
    FORMAT,
    BackupMetadata,
    EpochDocument,
    KeyDocument,
    RunDocument,
    VaultDocument,
    VMMetadata,
    Writer,
    decode,
    encode,
)
from raksha.vault.store import Part, Store

#: how often a number is asked for that a store calls taken although nothing is there, and seconds of patience
_CLAIMS, _PAUSE = 5, 0.2


class StoredDisk(Struct, frozen=True):
    """A disk copy whose segments, tables and map are in the vault."""

    metadata: BackupMetadata
    #: what `Backup` is made of: image tables, segments, nested manifests
    parts: tuple[Part, ...]


def open_catalog_for_writing(store: Store, me: Writer, *, take_over: bool = False) -> Catalog:
    """The catalog of a vault that `me` may write to.

    Raises `VaultNotFound`, and `VaultWriterOther` if it belongs to somebody else, unless `take_over`.
    """
    vault = read_vault(store)
    if vault.writer.id != me.id:
        if not take_over:
            raise VaultWriterOther(url=store.url, writer=f"{vault.writer.name} ({vault.writer.kind} {vault.writer.id})")
        vault = msgspec.structs.replace(vault, writer=me)
        store.put(names.VAULT, encode(vault))
    store.prepare()
    return Catalog(store, vault)


def plan_catalog(store: Store, me: Writer) -> Catalog:
    """The catalog of a vault that is not there yet. Nothing is written before `establish`."""
    key = KeyDocument(id=str(uuid.uuid4()), key=os.urandom(32).hex(), created_at=time.time())
    vault = VaultDocument(format=FORMAT, id=str(uuid.uuid4()), writer=me, key_id=key.id, created_at=time.time())
    return Catalog(store, vault, planned=key)


def establish(catalog: Catalog) -> None:
    """Make a planned vault; does nothing for one that is there.

    Raises `VaultForeign`, and `ObjectExists` if somebody else made one here meanwhile.
    """
    key, store = catalog.planned, catalog.store
    if key is None:
        return
    store.prepare()
    # the key first: a vault document must never name a key that is not there
    store.put(names.key(key.id), encode(key), create_only=True)
    try:
        store.put(names.VAULT, encode(catalog.vault), create_only=True)
    except ObjectExists:
        store.delete(names.key(key.id))
        raise
    catalog.planned = None


def assert_writer(catalog: Catalog) -> None:
    """Raises `VaultWriterOther` if the vault was taken over meanwhile."""
    now = read_vault(catalog.store).writer
    if now.id != catalog.vault.writer.id:
        raise VaultWriterOther(url=catalog.store.url, writer=f"{now.name} ({now.kind} {now.id})")


def commit_run(
    catalog: Catalog, run: RunDocument, disks: Sequence[StoredDisk], machines: Mapping[str, VMMetadata]
) -> RunDocument:
    """Make a run exist. Returns it with its number. `machines` by VM id.

    After an error nothing is visible; what was written is garbage for `collect`.
    """
    store = catalog.store
    assert_writer(catalog)
    for disk in disks:
        store.put_manifest(names.image(disk.metadata.resource_key), disk.parts)
        put_metadata(store, disk.metadata)
    for vm, machine in machines.items():
        store.put(names.vm_metadata(run.backupjob, run.backupjobrun, vm), encode(machine))
    run = msgspec.structs.replace(run, number=_take_number(catalog, run), finished_at=time.time())
    assert_writer(catalog)
    store.put(names.run(run.backupjob, run.backupjobrun), encode(run), create_only=True)
    return run


def commit_numbered(
    catalog: Catalog,
    run: RunDocument,
    disks: Sequence[StoredDisk],
    machines: Mapping[str, VMMetadata],
    fence: Callable[[], None],
) -> None:
    """Make a run exist whose number and times are given. Whoever does it again, at any time, writes the same.

    `fence` is called before each object that a reader would follow: what it raises ends the commit. Raises
    `DatabaseBehind` if another run has the number, and what `commit_run` raises.
    """
    store = catalog.store
    assert_writer(catalog)
    for disk in disks:
        fence()
        store.put_manifest(names.image(disk.metadata.resource_key), disk.parts)
        put_metadata(store, disk.metadata)
    fence()
    for vm, machine in machines.items():
        store.put(names.vm_metadata(run.backupjob, run.backupjobrun, vm), encode(machine))
    put_epoch(catalog, run)
    assert_writer(catalog)
    fence()
    try:
        store.put(names.run(run.backupjob, run.backupjobrun), encode(run), create_only=True)
    except ObjectExists:
        if not is_committed(catalog, run):
            raise


def is_committed(catalog: Catalog, run: RunDocument) -> bool:
    """Whether the run is there, under its number."""
    found = catalog.run(run.backupjob, run.backupjobrun)
    return found is not None and found.number == run.number


def put_epoch(catalog: Catalog, run: RunDocument) -> None:
    """`epochs/<n>` of a run whose number is given.

    Raises `DatabaseBehind` if it is another run's, `VaultUnavailable`.
    """
    document = EpochDocument(
        number=run.number,
        backupjob=run.backupjob,
        backupjobrun=run.backupjobrun,
        writer=catalog.vault.writer,
        committed_at=run.finished_at,
    )
    if not _create_epoch(catalog, document):
        check_epoch(catalog, run.number, run.backupjobrun)


def _create_epoch(catalog: Catalog, document: EpochDocument) -> bool:
    """Returns whether it was created; else it is there, whoever made it. Raises `VaultUnavailable`.

    A store that calls it taken, wrongly, would leave a gap in the numbers, at which every later collection ends.
    """
    name = names.epoch(document.number)
    for attempt in range(_CLAIMS):
        try:
            catalog.store.put(name, encode(document), create_only=True)
            return True
        except ObjectExists:
            if _is_taken(catalog, document.number):
                return False
            time.sleep(_PAUSE * attempt)
    raise VaultUnavailable(url=catalog.store.url, detail=f"{name} is said to be there, and cannot be found")


def check_epoch(catalog: Catalog, number: int, backupjobrun: str | None) -> None:
    """Raises `DatabaseBehind` if there is a commit of this number, of another run than this (None: of any)."""
    name = names.epoch(number)
    try:
        found = decode(catalog.store.get(name), EpochDocument, name)
    except ObjectMissing:
        return
    if found.backupjobrun != backupjobrun:
        raise DatabaseBehind(url=catalog.store.url, number=number, backupjobrun=found.backupjobrun)


def put_metadata(store: Store, metadata: BackupMetadata) -> None:
    """Write `BackupMetadata` and prove that it reads back the same."""
    name, data = names.metadata(metadata.resource_key), encode(metadata)
    store.put(name, data)
    if store.get(name) != data:
        raise ObjectCorrupt(name=name, detail="it does not read back as it was written")


def _take_number(catalog: Catalog, run: RunDocument) -> int:
    """The next commit number; a commit that failed after its epoch leaves a gap in runs, none in numbers."""
    number = last_number(catalog) + 1
    while True:
        document = EpochDocument(
            number=number,
            backupjob=run.backupjob,
            backupjobrun=run.backupjobrun,
            writer=catalog.vault.writer,
            committed_at=time.time(),
        )
        if _create_epoch(catalog, document):
            return number
        number += 1


def last_number(catalog: Catalog) -> int:
    """Number of the newest commit; 0 for none. Found by name, a listing only gives the place to start.

    A listing has no checksum. One digit that was changed on the way would leave a gap in the numbers, at which every
    later collection ends: so nothing is believed that is not there.
    """
    listed = [name.rpartition("/")[2] for name in catalog.store.names(names.EPOCHS.partition("/")[0], "epochs/")]
    known = sorted({int(text) for text in listed if text.isdigit()}, reverse=True)
    number = next((each for each in known if _is_taken(catalog, each)), 0)
    while _is_taken(catalog, number + 1):
        number += 1
    return number


def _is_taken(catalog: Catalog, number: int) -> bool:
    try:
        catalog.store.head(names.epoch(number))
    except ObjectMissing:
        return False
    return True


def delete_run(catalog: Catalog, run: RunDocument) -> int:
    """Delete a restore point, newest object first, so that an interruption never leaves half a run visible.

    Returns the number of objects. The caller has made sure that no other point needs it. Segments stay until `collect`.
    """
    assert_writer(catalog)
    store = catalog.store
    maps = [
        names.map_object(key, reference.map.digest)
        for key in run.resource_keys()
        if (reference := _metadata_if_there(catalog, key)) is not None
    ]
    doomed = [names.run(run.backupjob, run.backupjobrun)]
    doomed += [names.vm_metadata(run.backupjob, run.backupjobrun, vm.vm) for vm in run.vms]
    doomed += [name for key in run.resource_keys() for name in (names.metadata(key), names.image(key))]
    doomed += maps
    for name in doomed:
        store.delete(name)
    return len(doomed)


def delete_unreadable(catalog: Catalog, name: str) -> None:
    """Delete a `run.json` that cannot be read. Points that build on its disk copies keep those."""
    assert_writer(catalog)
    catalog.store.delete(name)


def _metadata_if_there(catalog: Catalog, key: ResourceKey) -> BackupMetadata | None:
    try:
        return catalog.metadata(key)
    except Damaged:  # its map is found by the next collection
        return None
