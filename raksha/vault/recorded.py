"""What somebody outside of the vault knows of its copies: a service, from its database.

The owner of an account may put anything in the place of a document there, also an older one of ours that was good once.
So whatever leads from a restore point to bytes is kept in two places: in the vault, which outlives us, and in the
database, whose word counts as long as there is one. Bytes themselves need no second place: a map is verified by its
digest, and data by the hashes in its map.

    the map of a copy, and on what copy it builds      `RecordedCopy`: what the vault says is not asked
    VMMetadata                                         its digest: another one is refused
    which disks a restore point has                    those asked for must be there, others are not read

Local mode has no database: there the vault is as trustworthy as whoever may write to it.
"""

from __future__ import annotations

from collections.abc import Iterable

import blake3
from msgspec import Struct
from msgspec.structs import replace

from raksha.errors import MetadataInvalid
from raksha.states import BackupKind
from raksha.types import ResourceKey
from raksha.vault import names
from raksha.vault.metadata import BackupMetadata, MapReference, RunDocument


class RecordedCopy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a copy is made of."""

    key: ResourceKey
    #: run of the copy that it builds on
    parent: str | None = None
    map: MapReference


def digest_of(document: bytes) -> str:
    """Of a whole document, as it was stored."""
    return str(blake3.blake3(document).hexdigest())


class Record:
    """Of one task. Nothing changes it."""

    def __init__(self, copies: Iterable[RecordedCopy], *, machine: str | None = None, only: bool = False) -> None:
        """`machine`: digest of the VMMetadata that the task needs. `only`: no other copies are to be read."""
        self._copies = {copy.key: copy for copy in copies}
        self._machine = machine
        self._only = only

    def counts(self, found: BackupMetadata) -> BackupMetadata:
        """What is found, with what is known in place of what it says. Raises `MetadataInvalid`."""
        known = self._copies.get(found.resource_key)
        if known is None:
            if self._only:
                raise MetadataInvalid(name=names.metadata(found.resource_key), detail="nobody asked for this copy")
            return found
        kind = BackupKind.FULL if known.parent is None else BackupKind.INCREMENTAL
        return replace(found, kind=kind, parent=known.parent, map=known.map)

    def check_run(self, run: RunDocument) -> None:
        """Raises `MetadataInvalid` for a restore point that lacks a disk which it is known to have."""
        of_run = {key for key in self._copies if (key.backupjob, key.backupjobrun) == (run.backupjob, run.backupjobrun)}
        if lost := of_run.difference(run.resource_keys()):
            named = ", ".join(sorted(f"{key.vm}/{key.resource}" for key in lost))
            raise MetadataInvalid(name=names.run(run.backupjob, run.backupjobrun), detail=f"it says nothing of {named}")

    def check_machine(self, name: str, data: bytes) -> None:
        """Raises `MetadataInvalid` for other bytes than those that were stored."""
        if self._machine is not None and digest_of(data) != self._machine:
            raise MetadataInvalid(name=name, detail="it is not what was stored there")
