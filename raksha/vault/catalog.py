"""What is in a vault, read from the vault alone: runs, disks, chains, machines.

Promises: a restore point is listed only if its `run.json` can be read, and it is said if one cannot; everything
returned was validated, and says of itself that it belongs where it stands: a document that was put in the place of
another is refused. What a `Record` knows counts before what the vault says.
Does not promise: to see a commit that another process made a moment ago (listings may lag), hence nothing is
decided on a run being absent here. What a name leads to is always read by that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct

from raksha.errors import (
    Damaged,
    MetadataInvalid,
    ObjectMissing,
    ParentMissing,
    ResourceNotFound,
    RunAmbiguous,
    RunNotFound,
    VaultForeign,
    VaultNewer,
    VaultNotFound,
)
from raksha.types import ResourceKey
from raksha.vault import names
from raksha.vault.map import MapReader, StoreSource
from raksha.vault.metadata import (
    FORMAT,
    BackupMetadata,
    KeyDocument,
    RunDocument,
    VaultDocument,
    VMMetadata,
    VmSummary,
    decode,
)
from raksha.vault.recorded import Record, digest_of
from raksha.vault.segment import ClusterHasher
from raksha.vault.store import BACKUPS, Store

#: requests under way at once while listing
_PARALLEL = 8


class Listing(Struct, frozen=True):
    """What is in a vault."""

    #: oldest commit first
    runs: list[RunDocument]
    #: what is wrong with each `run.json` that cannot be read
    damaged: dict[str, Damaged]


class Catalog:
    """The reading side of a vault. Safe to use from several threads."""

    def __init__(
        self,
        store: Store,
        vault: VaultDocument,
        *,
        planned: KeyDocument | None = None,
        record: Record | None = None,
    ) -> None:
        self.store = store
        self.vault = vault
        self._record = record or Record(())
        #: the first key of a vault that is still to be made; nothing can be in it
        self.planned = planned
        self._hashers: dict[str, ClusterHasher] = {}

    @classmethod
    def open(cls, store: Store, record: Record | None = None) -> Catalog:
        """Raises `VaultNotFound`, `VaultForeign`, `VaultNewer`, `VaultUnavailable` and the like."""
        return cls(store, read_vault(store), record=record)

    def recorded(self, record: Record) -> Catalog:
        """The same vault, with what somebody knows of it."""
        return Catalog(self.store, self.vault, planned=self.planned, record=record)

    # -- runs -------------------------------------------------------------------------------------

    def runs(self) -> list[RunDocument]:
        """All restore points, oldest commit first. Raises `Damaged` if one cannot be read."""
        listing = self.listing()
        for error in listing.damaged.values():
            raise error
        return listing.runs

    def listing(self) -> Listing:
        """All restore points, and those that cannot be read: one of these must not hide the others."""
        if self.planned is not None:
            return Listing([], {})
        found = [name for name in self.store.names(BACKUPS) if name.endswith("/" + names.RUN_FILE)]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            documents = list(pool.map(self._run_or_damage, found))
        runs = [each for each in documents if isinstance(each, RunDocument)]
        damaged = {name: each for name, each in zip(found, documents, strict=True) if isinstance(each, Damaged)}
        return Listing(sorted(runs, key=lambda run: run.number), damaged)

    def _run_or_damage(self, name: str) -> RunDocument | Damaged | None:
        try:
            return self._run_if_there(name)
        except Damaged as error:
            return error

    def _run_if_there(self, name: str) -> RunDocument | None:
        try:
            found = decode(self.store.get(name), RunDocument, name)
        except ObjectMissing:  # a listing may still name what was deleted
            return None
        if f"{BACKUPS}/{found.backupjob}/{found.backupjobrun}/{names.RUN_FILE}" != name:
            raise MetadataInvalid(name=name, detail=f"it is that of run {found.backupjobrun}")
        self._record.check_run(found)
        return found

    def run(self, backupjob: str, backupjobrun: str) -> RunDocument | None:
        """One restore point by its exact ids, or None."""
        return self._run_if_there(names.run(backupjob, backupjobrun))

    def find(self, text: str, vm: str | None = None) -> RunDocument:
        """A restore point by its id, the beginning of it, or `latest` (of `vm`, where given).

        Raises `RunNotFound`, `RunAmbiguous`; `Damaged` if that point, or perhaps the latest, cannot be read.
        """
        if text == "latest":
            of_vm = [run for run in self.runs() if vm is None or any(vm in (each.vm, each.name) for each in run.vms)]
            if not of_vm:
                raise RunNotFound(run=text)
            return of_vm[-1]
        listing = self.listing()
        known: dict[str, RunDocument | Damaged] = {name.split("/")[-2]: each for name, each in listing.damaged.items()}
        known |= {run.backupjobrun: run for run in listing.runs}
        fitting = [run for run in known if text and run.startswith(text)]
        if not fitting:
            raise RunNotFound(run=text)
        if len(fitting) > 1:
            raise RunAmbiguous(run=text, candidates=", ".join(fitting[:5]))
        found = known[fitting[0]]
        if isinstance(found, Damaged):
            raise found
        return found

    def vm(self, run: RunDocument, vm: str | None) -> VmSummary:
        """A VM of a run by name or id; without one, the only VM. Raises `ResourceNotFound`."""
        fitting = [each for each in run.vms if vm is None or vm in (each.vm, each.name)]
        if len(fitting) != 1:
            known = ", ".join(each.name for each in run.vms)
            raise ResourceNotFound(run=run.backupjobrun, resource=vm or f"one of {known}")
        return fitting[0]

    # -- disks ------------------------------------------------------------------------------------

    def metadata(self, resource: ResourceKey) -> BackupMetadata:
        """Raises `ObjectMissing`, `MetadataInvalid`."""
        name = names.metadata(resource)
        found = decode(self.store.get(name), BackupMetadata, name)
        if found.resource_key != resource:
            raise MetadataInvalid(name=name, detail=f"it is that of another copy, of run {found.backupjobrun}")
        return self._record.counts(found)

    def chain(self, resource: ResourceKey) -> list[BackupMetadata]:
        """A disk copy and all that it builds on, oldest first. Raises `ParentMissing` naming what is lost."""
        newest = self.metadata(resource)
        chain, seen = [newest], {newest.backupjobrun}
        while (parent := chain[-1].parent_key) is not None:
            if parent.backupjobrun in seen:
                raise MetadataInvalid(name=names.metadata(resource), detail="its parents form a loop")
            try:
                chain.append(self.metadata(parent))
            except ObjectMissing as error:
                raise ParentMissing(run=resource.backupjobrun, parent=parent.backupjobrun) from error
            seen.add(parent.backupjobrun)
        return chain[::-1]

    def reader(self, metadata: BackupMetadata) -> MapReader:
        """The map of one disk copy; pages are fetched and verified as they are used.

        Raises `ObjectMissing`, `ObjectCorrupt`, `MetadataInvalid` when map and metadata are not of one disk.
        """
        name = names.map_object(metadata.resource_key, metadata.map.digest)
        reader = MapReader.open(StoreSource(self.store, name, metadata.map.size), metadata.map.digest)
        if (reader.geometry, reader.key_id) != (metadata.geometry, metadata.key_id):
            detail = "its geometry or key is not that of the map it names"
            raise MetadataInvalid(name=names.metadata(metadata.resource_key), detail=detail)
        return reader

    def map_of(self, resource: ResourceKey, digest: str) -> MapReader:
        """A map by its digest, whatever `BackupMetadata` names. Raises `ObjectMissing`, `ObjectCorrupt`."""
        return MapReader.open(StoreSource(self.store, names.map_object(resource, digest)), digest)

    def readers(self, chain: Sequence[BackupMetadata]) -> list[MapReader]:
        return [self.reader(metadata) for metadata in chain]

    def machine(self, run: RunDocument, vm: VmSummary) -> VMMetadata:
        name = names.vm_metadata(run.backupjob, run.backupjobrun, vm.vm)
        return decode(self.machine_bytes(run, vm), VMMetadata, name)

    def machine_bytes(self, run: RunDocument, vm: VmSummary, digest: str | None = None) -> bytes:
        """Its VMMetadata as it is stored, which can be read and is that of this VM. Before anybody reads it, it must
        have the `digest` that somebody knows."""
        name = names.vm_metadata(run.backupjob, run.backupjobrun, vm.vm)
        data = self.store.get(name)
        self._record.check_machine(name, data)
        if digest is not None and digest_of(data) != digest:
            raise MetadataInvalid(name=name, detail="it is not what was stored there")
        found = decode(data, VMMetadata, name)
        if found.vm != vm.vm:
            raise MetadataInvalid(name=name, detail=f"it is that of VM {found.vm}")
        return data

    def hasher(self, key_id: str) -> ClusterHasher:
        """For clusters of maps that name this key."""
        if key_id not in self._hashers:
            name = names.key(key_id)
            document = decode(self.store.get(name), KeyDocument, name)
            if document.id != key_id:
                raise MetadataInvalid(name=name, detail=f"it is key {document.id}")
            self._hashers[key_id] = ClusterHasher(bytes.fromhex(document.key))
        return self._hashers[key_id]

    # -- looking for parents and for what shares data -------------------------------------------------

    def newest(self, runs: Sequence[RunDocument], vm: str) -> Iterator[RunDocument]:
        """Runs that hold `vm` (an id), newest commit first."""
        return (run for run in reversed(runs) if any(each.vm == vm for each in run.vms))


def read_vault(store: Store) -> VaultDocument:
    """`vault.json`, checked.

    Raises `VaultNotFound`, `VaultForeign` (something stands at our names, but no vault), `VaultNewer`.
    """
    try:
        data = store.get(names.VAULT)
    except ObjectMissing:
        # A key alone was left by somebody who was killed while making a vault here, before anything else was written.
        found = next((name for name in store.names(BACKUPS) if not name.startswith(names.KEYS)), None)
        if found is None:
            raise VaultNotFound(url=store.url) from None
        raise VaultForeign(url=store.url, detail=f"{found} stands there, but no {names.VAULT}") from None
    vault = decode(data, VaultDocument, names.VAULT)
    if vault.format > FORMAT:
        raise VaultNewer(url=store.url, found=vault.format, known=FORMAT)
    return vault
