"""Vault services as the operator set them up, and each project's vault there with its commit numbers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import literal, or_, select, update
from sqlalchemy.orm import Session

from raksha.db import rows
from raksha.db.columns import SECOND, now
from raksha.db.models import Vault, VaultService
from raksha.errors import ChangedMeanwhile, NameTaken

NOUN = "vault"


def declare(session: Session, name: str, *, kind: str, url: str, **more: Any) -> VaultService:
    """A vault service of the configuration: made, or brought up to date, by its name."""
    values = {"kind": kind, "url": url, **more}
    service = VaultService(name=name, **values)
    if rows.inserted(session, service):
        return service
    rows.changed(session, update(VaultService).where(VaultService.name == name).values(**values))
    rows.reread(session, VaultService)
    return rows.one(session, select(VaultService).where(VaultService.name == name), "vault service", name)


def service(session: Session, id: str) -> VaultService:
    """Raises `RowNotFound`."""
    return rows.one(session, select(VaultService).where(VaultService.id == id), "vault service", id)


def all_services(session: Session) -> list[VaultService]:
    return list(session.scalars(select(VaultService).order_by(VaultService.name)))


def add(session: Session, name: str, *, kind: str, url: str, **more: Any) -> VaultService:
    """A new vault service. Raises `NameTaken`."""
    service = VaultService(name=name, kind=kind, url=url, **more)
    if not rows.inserted(session, service):
        raise NameTaken(noun="vault service", name=name)
    return service


def named(session: Session, name: str) -> VaultService:
    """Raises `RowNotFound`."""
    return rows.one(session, select(VaultService).where(VaultService.name == name), "vault service", name)


def change(session: Session, id: str, **values: Any) -> None:
    """Columns of a vault service. Raises `RowNotFound`."""
    service(session, id)
    rows.changed(session, update(VaultService).where(VaultService.id == id).values(**values))
    rows.reread(session, VaultService)


def make_default(session: Session, id: str) -> None:
    """Taken where a job names none; no other is that is for the same projects. Raises `RowNotFound`."""
    chosen = service(session, id)
    rivals = VaultService.id != id, VaultService.project_id.is_not_distinct_from(chosen.project_id)
    rows.changed(session, update(VaultService).where(*rivals).values(is_default=False))
    change(session, id, is_default=True)


def services(session: Session, project_id: str) -> list[VaultService]:
    """Enabled vault services that a project may use, the default one first."""
    mine = or_(VaultService.project_id.is_(None), VaultService.project_id == project_id)
    order = VaultService.is_default.desc(), VaultService.name
    return list(session.scalars(select(VaultService).where(mine, VaultService.enabled).order_by(*order)))


def of_project(session: Session, service: VaultService, project_id: str, url: str) -> Vault:
    """The project's vault at a service; its row is made if there is none. `url` is taken only then."""
    vault = Vault(vault_service_id=service.id, project_id=project_id, url=url)
    if rows.inserted(session, vault):
        return vault
    mine = Vault.vault_service_id == service.id, Vault.project_id == project_id
    return rows.one(session, select(Vault).where(*mine), NOUN, project_id)


def get(session: Session, id: str) -> Vault:
    """Raises `RowNotFound`."""
    return rows.one(session, select(Vault).where(Vault.id == id), NOUN, id)


def all_vaults(session: Session) -> list[Vault]:
    return list(session.scalars(select(Vault).order_by(Vault.id)))


def established(session: Session, id: str, vault_uuid: str) -> None:
    """Its `vault.json` is there, and bears this id. Raises `ChangedMeanwhile` if the row says another."""
    same = or_(Vault.vault_uuid.is_(None), Vault.vault_uuid == vault_uuid)
    if rows.changed(session, update(Vault).where(Vault.id == id, same).values(vault_uuid=vault_uuid)) == 0:
        raise ChangedMeanwhile(noun=NOUN, id=id, found=get(session, id).vault_uuid, given=vault_uuid)
    rows.reread(session, Vault)


def take_number(session: Session, id: str, seen: int) -> int:
    """The number of the next commit, for the one who saw `seen` as the last. Raises `ChangedMeanwhile`: look again."""
    mine = Vault.id == id, Vault.last_commit == seen
    if rows.changed(session, update(Vault).where(*mine).values(last_commit=seen + 1)) == 0:
        raise ChangedMeanwhile(noun=NOUN, id=id, found=get(session, id).last_commit, given=seen)
    rows.reread(session, Vault)
    return seen + 1


def collect(session: Session, id: str, collector_id: str, seconds: float) -> bool:
    """Become, or stay, the one who collects garbage in a vault for so many seconds. False: another does."""
    free = or_(Vault.collector_until < now(), Vault.collector_id == collector_id)
    values = {"collector_id": collector_id, "collector_until": now() + literal(round(seconds * SECOND))}
    return rows.changed(session, update(Vault).where(Vault.id == id, free).values(**values)) == 1


def collected(session: Session, id: str, collector_id: str) -> None:
    """A collection is over."""
    mine = Vault.id == id, Vault.collector_id == collector_id
    rows.changed(session, update(Vault).where(*mine).values(collector_until=0, collected_at=now()))
    rows.reread(session, Vault)
