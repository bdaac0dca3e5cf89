"""What is wrong with restore points: the documents that lead to their data here, the data in `raksha.restore.verify`.

Promises: one broken object hides no other; every finding names the restore points that it hits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from raksha.errors import Damaged, MetadataInvalid, ObjectMissing, ParentMissing
from raksha.restore.context import Context
from raksha.restore.verify import CopyToVerify, Finding, verify
from raksha.types import ResourceKey
from raksha.vault import names
from raksha.vault.catalog import Catalog
from raksha.vault.metadata import BackupMetadata, RunDocument, VmSummary

#: by run and VM the digest of its VMMetadata, where somebody knows it
Machines = Mapping[str, Mapping[str, str | None]]


def verify_runs(
    catalog: Catalog,
    runs: Sequence[RunDocument],
    context: Context,
    lost: Mapping[str, Damaged] | None = None,
    *,
    data: bool,
) -> tuple[int, list[Finding]]:
    """The number of disk copies that were looked at, and what is wrong. Raises `VaultError`, `Interrupted`.

    `lost`: why restore points cannot be read at all, by the object that should tell of them.
    """
    unreadable = [Finding(name, error.code, str(error), ()) for name, error in (lost or {}).items()]
    documents = _Documents(catalog)
    for run in runs:
        for vm in run.vms:
            context.check()
            documents.look_at(run, vm)
    found = verify(catalog.store, list(documents.copies.values()), context, data=data)
    return len(documents.copies), [*unreadable, *documents.findings(), *found]


def copies_of(
    catalog: Catalog, keys: Sequence[ResourceKey], machines: Machines
) -> tuple[list[CopyToVerify], list[Finding]]:
    """These disk copies with all that they build on; and what is wrong with the documents that lead there."""
    documents = _Documents(catalog)
    for (job, run), of_run in groupby(sorted(keys), key=lambda key: (key.backupjob, key.backupjobrun)):
        documents.look_at_run(job, run, list(of_run), machines.get(run, {}))
    return list(documents.copies.values()), documents.findings()


class _Documents:
    """Reads what leads to the data."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        #: disk copies whose whole chain can be followed
        self.copies: dict[ResourceKey, CopyToVerify] = {}
        self._wrong: dict[tuple[str, str], tuple[str, list[ResourceKey]]] = {}

    def look_at(self, run: RunDocument, vm: VmSummary) -> None:
        keys = [ResourceKey(run.backupjob, run.backupjobrun, vm.vm, each.resource) for each in vm.resources]
        try:
            self._catalog.machine(run, vm)
        except Damaged as error:
            self._note(names.vm_metadata(run.backupjob, run.backupjobrun, vm.vm), error, keys)
        for key in keys:
            self.look_at_copy(vm.name, key)

    def look_at_run(self, job: str, run: str, keys: Sequence[ResourceKey], machines: Mapping[str, str | None]) -> None:
        """`keys`: its copies that somebody knows of."""
        try:
            found = self._catalog.run(job, run)
            if found is None:
                raise ObjectMissing(name=names.run(job, run))
        except Damaged as error:
            self._note(names.run(job, run), error, keys)
            found = None
        known = {} if found is None else {vm.vm: vm for vm in found.vms}
        for vm, of_vm in groupby(keys, key=lambda key: key.vm):
            mine = list(of_vm)
            self._look_at_machine(known.get(vm), found, mine, machines.get(vm))
            for key in mine:
                self.look_at_copy(vm, key)

    def _look_at_machine(
        self, vm: VmSummary | None, run: RunDocument | None, keys: Sequence[ResourceKey], digest: str | None
    ) -> None:
        if run is None:
            return
        name = names.vm_metadata(run.backupjob, run.backupjobrun, keys[0].vm)
        try:
            if vm is None:
                raise MetadataInvalid(name=names.run(run.backupjob, run.backupjobrun), detail=f"it lacks {keys[0].vm}")
            self._catalog.machine_bytes(run, vm, digest)
        except Damaged as error:
            self._note(name, error, keys)

    def look_at_copy(self, vm: str, key: ResourceKey) -> None:
        """`vm`: as a person knows it."""
        try:
            chain = self._catalog.chain(key)
            self.copies |= {each.resource_key: self._copy(vm, each) for each in chain}
        except ParentMissing as error:
            parent = ResourceKey(key.backupjob, error.fields["parent"], key.vm, key.resource)
            self._note(names.metadata(parent), error, [key])
        except Damaged as error:
            self._note(error.fields.get("name", names.metadata(key)), error, [key])

    def findings(self) -> list[Finding]:
        return [Finding(name, code, detail, tuple(hits)) for (name, code), (detail, hits) in self._wrong.items()]

    def _note(self, name: str, error: Damaged, keys: Sequence[ResourceKey]) -> None:
        self._wrong.setdefault((name, error.code), (str(error), []))[1].extend(keys)

    def _copy(self, vm: str, metadata: BackupMetadata) -> CopyToVerify:
        key = metadata.resource_key
        return CopyToVerify(
            key=key,
            vm=vm,
            map_name=names.map_object(key, metadata.map.digest),
            map_size=metadata.map.size,
            hasher=self._catalog.hasher(metadata.key_id),
            image_name=names.image(key),
            image_size=metadata.image_size,
            parent=metadata.parent_key,
        )
