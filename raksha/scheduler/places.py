"""Where backups go: the address of a project's vault, and the vault itself, made before anybody may write to it.

All schedulers of a deployment are one writer: `vault.json` names the id of the vault's row.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager

from raksha.db import vaults
from raksha.db.columns import new_id
from raksha.db.models import Vault, VaultService
from raksha.db.session import Database
from raksha.errors import ChangedMeanwhile, ObjectExists, RakshaError, VaultNotFound
from raksha.scheduler.access import Access
from raksha.scheduler.placement import Wait
from raksha.vault.address import open_store
from raksha.vault.catalog import Catalog
from raksha.vault.commit import establish, open_catalog_for_writing, plan_catalog
from raksha.vault.credentials import Credentials
from raksha.vault.metadata import Writer

_log = logging.getLogger(__name__)

#: seconds that a vault may take to answer while others wait for their runs to start
_PATIENCE = 10.0
#: seconds for whoever makes a vault
_MAKING = 120.0
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_OTHERS = uuid.UUID("5a0e5c0a-7a0b-4f0b-8c43-1f7a4a0b7f3e")


def vault_url(service: VaultService, project_id: str) -> str:
    """Of a project's vault: a folder of its own, or containers of its own in Swift, where all projects share an account
    unless the service's settings say `account: project` or `account: service`."""
    if service.kind == "swift" and (service.settings or {}).get("account") in ("project", "service"):
        return service.url
    folder = project_id if _FOLDER.fullmatch(project_id) else str(uuid.uuid5(_OTHERS, project_id))
    if service.kind == "swift":
        prefix = service.url.removeprefix("swift://")
        return f"swift://{prefix}-{folder}" if prefix else f"swift://{folder}"
    return f"{service.url.rstrip('/')}/{folder}"


def writer(vault: Vault) -> Writer:
    return Writer(kind="service", id=vault.id, name=f"Raksha service, project {vault.project_id}")


@contextmanager
def writing(vault: Vault, patience: float, credentials: Credentials | None = None) -> Iterator[Catalog]:
    """The vault, to be written to. `credentials` None: those of the environment.

    Raises `VaultNotFound`, `VaultWriterOther`, `ChangedMeanwhile` if another one stands in its place, and what stores
    raise after so many seconds.
    """
    with closing(open_store(vault.url, retry_deadline=patience, credentials=credentials)) as store:
        catalog = open_catalog_for_writing(store, writer(vault))
        if catalog.vault.id != vault.vault_uuid:
            raise ChangedMeanwhile(noun=vaults.NOUN, id=vault.id, found=catalog.vault.id, given=vault.vault_uuid)
        yield catalog


def make_vault(database: Database, vault: Vault, access: Access, job_id: str) -> Wait | None:
    """Make `vault.json` and its first key, if they are not there, and note that they are. Else the reason.

    `job_id`: by whose trust, where one is needed.
    """
    me = new_id()
    if not database.run(lambda session: vaults.collect(session, vault.id, me, _MAKING)):
        return Wait("vault_not_ready", "another scheduler is making its vault")
    try:
        made = _make(vault, access.credentials(database, vault, job_id))
        database.run(lambda session: vaults.established(session, vault.id, made))
    except RakshaError as error:
        _log.error("vault %s of project %s cannot be used: %s", vault.url, vault.project_id, error)
        return Wait("vault_away" if error.retryable else "vault_refused", str(error))
    finally:
        database.run(lambda session: vaults.collected(session, vault.id, me))
    return None


def _make(vault: Vault, credentials: Credentials | None) -> str:
    with closing(open_store(vault.url, retry_deadline=_PATIENCE, credentials=credentials)) as store:
        try:
            return open_catalog_for_writing(store, writer(vault)).vault.id
        except VaultNotFound:
            catalog = plan_catalog(store, writer(vault))
        try:
            establish(catalog)
        except ObjectExists:  # another scheduler took longer than it may
            return open_catalog_for_writing(store, writer(vault)).vault.id
        return catalog.vault.id
