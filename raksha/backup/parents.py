"""What an increment may build on, and whose segments a full copy may share.

Promises: a parent is proposed only if its whole chain of metadata and maps is in the vault and uses the vault's key
and grid. Whether the VM's change tracker counts from it is the capture engine's to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from raksha.errors import Damaged
from raksha.states import Reason
from raksha.types import Geometry, ResourceKey
from raksha.vault import names
from raksha.vault.catalog import Catalog
from raksha.vault.dedupe import DedupeIndex
from raksha.vault.metadata import BackupMetadata, RunDocument
from raksha.virt.capture import BaseImage, History, Parent, StoredCopy

#: other disks on the same base image whose segments are looked at; they hold the same data, one would nearly do
_CLONES = 2


class Parents(Struct, frozen=True):
    """Per disk target of one VM."""

    since: dict[str, Parent | None]
    #: why a disk that has older copies gets a full one
    reasons: dict[str, Reason]


def find_parents(catalog: Catalog, runs: Sequence[RunDocument], backupjob: str, vm: str) -> Parents:
    """The newest copy of every disk of a VM within its job."""
    since: dict[str, Parent | None] = {}
    reasons: dict[str, Reason] = {}
    for run in catalog.newest(runs, vm):
        if run.backupjob != backupjob:
            continue
        for resource in next(each for each in run.vms if each.vm == vm).resources:
            target = resource.resource
            if target in since:
                continue
            since[target] = Parent(run.backupjobrun, resource.size)
            if not _usable(catalog, ResourceKey(backupjob, run.backupjobrun, vm, target)):
                since[target] = None
                reasons[target] = Reason.PARENT_DAMAGED
    return Parents(since, reasons)


def _usable(catalog: Catalog, key: ResourceKey) -> bool:
    try:
        for metadata in catalog.chain(key):
            if metadata.key_id != catalog.vault.key_id or metadata.geometry != Geometry(metadata.size):
                return False
            catalog.store.head(names.map_object(metadata.resource_key, metadata.map.digest))
    except Damaged:
        return False
    return True


def history_of(catalog: Catalog, runs: Sequence[RunDocument], vm: str) -> History:
    """What the vault has of a VM's disks, for an engine that meets the change tracker of another host."""

    def find(target: str, beginning: str) -> Sequence[StoredCopy]:
        copies = []
        for run in runs:
            key = ResourceKey(run.backupjob, run.backupjobrun, vm, target)
            if run.backupjobrun.startswith(beginning) and key in run.resource_keys():
                try:
                    tracker = catalog.metadata(key).tracker
                except Damaged:  # then nothing is known of it
                    continue
                copies.append(StoredCopy(run.backupjobrun, run.backupjob, run.number, tracker))
        return copies

    return find


def pin_for_full(
    catalog: Catalog,
    runs: Sequence[RunDocument],
    vm: str,
    target: str,
    base: BaseImage | None,
    dedupe: DedupeIndex,
) -> None:
    """Let a full copy share segments with this disk's last copy and with disks on the same base image."""
    clones = 0
    own = False
    for run in reversed(runs):
        for summary in run.vms:
            for resource in summary.resources:
                mine = summary.vm == vm and resource.resource == target
                if (mine and own) or (not mine and (base is None or clones == _CLONES)):
                    continue
                key = ResourceKey(run.backupjob, run.backupjobrun, summary.vm, resource.resource)
                try:
                    chain = catalog.chain(key)
                    if not mine and not _same_base(chain[-1], base):
                        continue
                    _pin(catalog, chain, dedupe)
                except Damaged:  # it cannot be shared with; that is no reason not to back up
                    continue
                own, clones = own or mine, clones + (not mine)
        if own and (base is None or clones == _CLONES):
            return


def _same_base(metadata: BackupMetadata, base: BaseImage | None) -> bool:
    other = metadata.base_image
    return (
        base is not None
        and other is not None
        and (other.path, other.size, other.modified)
        == (
            base.path,
            base.size,
            base.modified,
        )
    )


def _pin(catalog: Catalog, chain: Sequence[BackupMetadata], dedupe: DedupeIndex) -> None:
    for metadata in chain:
        if metadata.key_id == catalog.vault.key_id:
            dedupe.pin(names.map_object(metadata.resource_key, metadata.map.digest), catalog.reader(metadata))


def pin_copies(
    catalog: Catalog,
    own: Iterable[ResourceKey],
    clones: Iterable[ResourceKey],
    base: BaseImage | None,
    dedupe: DedupeIndex,
) -> None:
    """`pin_for_full` where somebody else has looked: `own` are copies of this disk, the newest first, `clones` those of
    others that may be on the same base image."""
    for keys, alike, most in ((own, False, 1), (clones, True, _CLONES if base is not None else 0)):
        pinned = 0
        for key in keys:
            if pinned == most:
                break
            try:
                chain = catalog.chain(key)
                if alike and not _same_base(chain[-1], base):
                    continue
                _pin(catalog, chain, dedupe)
            except Damaged:  # it cannot be shared with; that is no reason not to back up
                continue
            pinned += 1
