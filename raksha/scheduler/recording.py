"""What the database knows of stored copies, told to whoever reads a vault that somebody else may write to.

Noted with the commit, in the transaction that makes the restore point: what stands in the vault then is what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from raksha.db import backups, rows
from raksha.db.models import VmResourceBackup
from raksha.types import ResourceKey
from raksha.vault.metadata import MapReference, VMMetadata, encode
from raksha.vault.recorded import RecordedCopy, digest_of

_MACHINE = "machine_digest"


def recorded(session: Session, ids: Iterable[str]) -> tuple[RecordedCopy, ...]:
    """These copies and all that they build on. Raises `RowNotFound`."""
    found = backups.with_parents(session, ids)
    parents = {copy.id: found.get(copy.vm_resource_backup_backing_id or "") for copy in found.values()}
    return tuple(
        RecordedCopy(
            key=ResourceKey(copy.backupjob_id, copy.backupjobrun_id, copy.vm_id, copy.resource),
            parent=None if (parent := parents[copy.id]) is None else parent.backupjobrun_id,
            map=MapReference(digest=copy.map_digest, size=copy.map_size),
        )
        for copy in found.values()
        if copy.map_digest is not None
    )


def note_machines(session: Session, run_id: str, machines: Mapping[str, VMMetadata]) -> None:
    """`machines` by VM, as they were committed."""
    digests = {vm: digest_of(encode(machine)) for vm, machine in machines.items()}
    for copy in (each for each in backups.of_run(session, run_id) if each.vm_id in digests):
        told = {**copy.vault_service_metadata, _MACHINE: digests[copy.vm_id]}
        mine = VmResourceBackup.id == copy.id
        rows.changed(session, update(VmResourceBackup).where(mine).values(vault_service_metadata=told))
    rows.reread(session, VmResourceBackup)


def machine_digest(session: Session, run_id: str, vm_id: str) -> str | None:
    """None: nobody noted it."""
    mine = VmResourceBackup.backupjobrun_id == run_id, VmResourceBackup.vm_id == vm_id
    told = session.scalars(select(VmResourceBackup.vault_service_metadata).where(*mine).limit(1)).first()
    return None if told is None else told.get(_MACHINE)
