"""What is stored: vaults, stored disk copies, who needs them, and what is left of tasks."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from raksha.db.columns import Word
from raksha.db.models.base import Base, Count, CreatedAt, Document, Id, Micros, Name, Text36, Url, options, refers
from raksha.states import BackupKind, BackupState, PinHolder


class VaultService(Base):
    """A place that stores backups, as the operator set it up: Swift, or a directory."""

    __tablename__ = "vault_services"

    id: Mapped[Id]
    name: Mapped[Name]
    #: `swift` or `directory`
    kind: Mapped[str] = mapped_column(String(16))
    url: Mapped[Url]
    #: of one project only; None: of all
    project_id: Mapped[Name | None]
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    #: taken where a job names none
    is_default: Mapped[bool] = mapped_column(Boolean, default=False)
    #: runs that may write to it at once; None: any number
    max_runs: Mapped[int | None]
    settings: Mapped[Document] = mapped_column(default=dict)
    created_at: Mapped[CreatedAt]

    __table_args__ = options(UniqueConstraint("name"))


class Vault(Base):
    """One project's part of a vault service: it has a `vault.json`, keys and commit numbers of its own."""

    __tablename__ = "vaults"

    id: Mapped[Id]
    vault_service_id: Mapped[str] = refers("vault_services.id", "RESTRICT")
    project_id: Mapped[Name]
    url: Mapped[Url]
    #: in its `vault.json`; None: not made yet
    vault_uuid: Mapped[Text36 | None]
    #: of the last commit. The next one takes the next by compare-and-swap
    last_commit: Mapped[Count]
    #: one collector at a time: who, and until when
    collector_id: Mapped[Text36 | None]
    collector_until: Mapped[Micros] = mapped_column(default=0)
    collected_at: Mapped[Micros | None]
    created_at: Mapped[CreatedAt]

    __table_args__ = options(UniqueConstraint("vault_service_id", "project_id"))


class VmResourceBackup(Base):
    """One stored disk copy, full or incremental."""

    __tablename__ = "vm_resource_backups"

    id: Mapped[Id]
    backupjobrun_vm_resource_id: Mapped[str] = refers("backupjobrun_vm_resources.id", "RESTRICT")
    #: the copy that this one builds on; None for a full one. That cannot go while this is there
    vm_resource_backup_backing_id: Mapped[str | None] = refers("vm_resource_backups.id", "RESTRICT")
    #: nothing builds on it
    top: Mapped[bool] = mapped_column(Boolean, default=True)
    vault_service_id: Mapped[str] = refers("vault_services.id", "RESTRICT")
    vault_service_url: Mapped[Url]
    #: where in the vault: job, run, VM and resource; hints of the job
    vault_service_metadata: Mapped[Document] = mapped_column(default=dict)
    state: Mapped[BackupState] = mapped_column("status", Word(BackupState), default=BackupState.CREATING)

    vault_id: Mapped[str] = refers("vaults.id", "RESTRICT")
    project_id: Mapped[Name]
    backupjob_id: Mapped[Text36]
    backupjobrun_id: Mapped[Text36]
    vm_id: Mapped[Text36]
    resource: Mapped[Name]
    kind: Mapped[BackupKind] = mapped_column(Word(BackupKind))
    #: bytes of the disk, and the grid it is cut into
    size: Mapped[Count]
    cluster_size: Mapped[int] = mapped_column(Integer)
    key_id: Mapped[Text36 | None]
    #: names its map; None until it is stored
    map_digest: Mapped[str | None] = mapped_column(String(64))
    map_size: Mapped[Count]
    #: what a consolidation is about to put in its place, or has replaced: collected later
    other_map_digest: Mapped[str | None] = mapped_column(String(64))
    #: which image is at the bottom of the backing chain on the host: a hint for dedupe
    base_image: Mapped[str | None] = mapped_column(String(255))
    bytes_read: Mapped[Count]
    bytes_data: Mapped[Count]
    bytes_sent: Mapped[Count]
    bytes_stored: Mapped[Count]
    image_size: Mapped[Count]
    #: rows of `pins` for it: deleting it and pinning it both swap this row, so one of them loses
    pin_count: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[CreatedAt]
    taken_at: Mapped[Micros | None]
    verified_at: Mapped[Micros | None]
    trashed_at: Mapped[Micros | None]

    __table_args__ = options(
        UniqueConstraint("backupjobrun_vm_resource_id"),
        Index(None, "vm_resource_backup_backing_id"),
        Index(None, "project_id", "status", "bytes_stored"),
        Index("ix_vm_resource_backups_disk", "vm_id", "resource", "created_at"),
        Index(None, "backupjobrun_id"),
        Index(None, "vault_id", "status"),
        Index(None, "vault_id", "base_image", "created_at"),
    )


class Pin(Base):
    """Somebody reads a stored disk copy: it must stay."""

    __tablename__ = "pins"

    id: Mapped[Id]
    vm_resource_backup_id: Mapped[str] = refers("vm_resource_backups.id", "RESTRICT")
    holder_kind: Mapped[PinHolder] = mapped_column(Word(PinHolder))
    #: id of the run, restore, …
    holder_id: Mapped[Text36]
    created_at: Mapped[CreatedAt]

    __table_args__ = options(UniqueConstraint("vm_resource_backup_id", "holder_id"), Index(None, "holder_id"))


class Tombstone(Base):
    """A task whose row is gone while segments that it stored may still be listed."""

    __tablename__ = "tombstones"

    task_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    vault_id: Mapped[str] = refers("vaults.id", "RESTRICT")
    #: its last; claims of it bear this or a lower one
    epoch: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[CreatedAt]

    __table_args__ = options(Index(None, "vault_id", "created_at"))
