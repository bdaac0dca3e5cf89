"""Processes of the service, the VMs that agents see, limits, and requests that may be repeated."""

from __future__ import annotations

from sqlalchemy import Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from raksha.db.columns import Word
from raksha.db.models.base import Base, Count, CreatedAt, Document, Id, Name, Text36, options, refers
from raksha.states import ServiceKind, ServiceState


class Service(Base):
    """A process: API, scheduler or agent."""

    __tablename__ = "services"

    id: Mapped[Id]
    kind: Mapped[ServiceKind] = mapped_column(Word(ServiceKind))
    #: one row per kind and name, over all restarts; an agent is named by its host
    name: Mapped[Name]
    host: Mapped[Name]
    zone: Mapped[Name | None]
    state: Mapped[ServiceState] = mapped_column(Word(ServiceState), default=ServiceState.ENABLED)
    #: what the operator said
    state_reason: Mapped[str | None] = mapped_column(String(255))
    #: of this start of the process: heartbeats of an earlier one are refused
    instance: Mapped[Text36]
    version: Mapped[str] = mapped_column(String(64))
    #: engines, targets, versions of libvirt and QEMU
    capabilities: Mapped[Document] = mapped_column(default=dict)
    #: tasks it may hold at once, and holds
    capacity: Mapped[int] = mapped_column(Integer, default=1)
    load: Mapped[int] = mapped_column("running", Integer, default=0)
    started_at: Mapped[CreatedAt]
    heartbeat_at: Mapped[CreatedAt]

    __table_args__ = options(
        UniqueConstraint("kind", "name"), Index(None, "kind", "heartbeat_at"), Index(None, "kind", "host")
    )


class SeenVm(Base):
    """A VM that an agent sees on its host."""

    __tablename__ = "seen_vms"

    service_id: Mapped[str] = refers("services.id", primary_key=True)
    vm_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[Name]
    #: None: of no project, for operators and the embedded default
    project_id: Mapped[Name | None]
    power: Mapped[str] = mapped_column(String(32))
    tags: Mapped[Document] = mapped_column(default=list)
    hints: Mapped[Document] = mapped_column(default=dict)
    disks: Mapped[Document] = mapped_column(default=list)
    #: why it cannot be protected; None: it can
    refusal: Mapped[Document | None]
    seen_at: Mapped[CreatedAt]

    __table_args__ = options(Index(None, "vm_id", "seen_at"), Index(None, "project_id", "name", "vm_id"))


class ProjectLimit(Base):
    """What a project may have or do at most, where it differs from the default."""

    __tablename__ = "project_limits"

    project_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    #: `jobs`, `runs`, `stored_bytes`, `concurrent_runs`
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: -1: no limit
    value: Mapped[Count]

    __table_args__ = options()


class IdempotencyKey(Base):
    """A POST that its sender may repeat: it is done once and answered the same."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    key: Mapped[str] = mapped_column("idempotency_key", String(255), primary_key=True)
    #: of user, URL and body: the same key for something else is refused
    fingerprint: Mapped[str] = mapped_column(String(64))
    #: None: the first is still at work
    status: Mapped[int | None]
    headers: Mapped[Document | None]
    body: Mapped[Document | None]
    created_at: Mapped[CreatedAt]

    __table_args__ = options(Index(None, "created_at"))
