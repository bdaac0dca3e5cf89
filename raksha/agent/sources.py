"""The disks of a VM at a restore point, as restores read them."""

from __future__ import annotations

from collections.abc import Sequence

from raksha.errors import Damaged, DiskLost, ResourceNotFound
from raksha.restore.source import DiskSource
from raksha.types import ResourceKey
from raksha.vault.catalog import Catalog
from raksha.vault.metadata import RunDocument, VmSummary


def disk_key(run: RunDocument, vm: VmSummary, disk: str) -> ResourceKey:
    return ResourceKey(run.backupjob, run.backupjobrun, vm.vm, disk)


def disk_sources(catalog: Catalog, run: RunDocument, vm: VmSummary, disks: Sequence[str]) -> list[DiskSource]:
    """All disks, or those named. Raises `ResourceNotFound`, `ParentMissing`, `DiskLost`."""
    known = [resource.resource for resource in vm.resources]
    for disk in disks:
        if disk not in known:
            raise ResourceNotFound(run=run.backupjobrun, resource=f"{vm.name}:{disk}")
    wanted = [target for target in known if not disks or target in disks]
    return [_source(catalog, vm, disk_key(run, vm, target)) for target in wanted]


def _source(catalog: Catalog, vm: VmSummary, key: ResourceKey) -> DiskSource:
    chain = catalog.chain(key)
    try:
        readers = catalog.readers(chain)
        hashers = [catalog.hasher(metadata.key_id) for metadata in chain]
    except Damaged as error:
        lost = error.fields.get("name")
        raise DiskLost(disk=key.resource, vm=vm.name, run=key.backupjobrun, object=lost, detail=str(error)) from error
    return DiskSource(
        vm=vm.name, disk=key.resource, run=key.backupjobrun, store=catalog.store, readers=readers, hashers=hashers
    )
