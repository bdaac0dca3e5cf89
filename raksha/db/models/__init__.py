"""The tables. docs/database.md draws them.

A row's state gets its first value from its column and every other from `raksha.db.transition`; nobody else writes it.
Rows that were read in a transaction may be read after it, never written.
"""

from raksha.db.models.backups import Pin, Tombstone, Vault, VaultService, VmResourceBackup
from raksha.db.models.base import Base
from raksha.db.models.jobs import (
    BackupJob,
    BackupJobRun,
    BackupJobRunVm,
    BackupJobRunVmResource,
    BackupJobVm,
)
from raksha.db.models.notifications import Notification
from raksha.db.models.services import IdempotencyKey, ProjectLimit, SeenVm, Service
from raksha.db.models.work import Barrier, BarrierMember, Reservation, Restore, Task, Verification

__all__ = [
    "BackupJob",
    "BackupJobRun",
    "BackupJobRunVm",
    "BackupJobRunVmResource",
    "BackupJobVm",
    "Barrier",
    "BarrierMember",
    "Base",
    "IdempotencyKey",
    "Notification",
    "Pin",
    "ProjectLimit",
    "Reservation",
    "Restore",
    "SeenVm",
    "Service",
    "Task",
    "Tombstone",
    "Vault",
    "VaultService",
    "Verification",
    "VmResourceBackup",
]
