"""The folder of `raksha serve`: who works with it, its database, its users, its first vault.

    raksha.db, users, users.admin-password, serve.lock      of mode 0600
    vault/                                                  of mode 0700, unless it was told another
    journal.sqlite, locks/, spool/, restores/, …            of the engine: docs/operations.md

The folder itself is of mode 0711: QEMU must get to the disks of restored VMs below it.
A start that was cut off at any moment is made good by the next.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy.orm import Session

from raksha.config_database import DatabaseSettings
from raksha.db import migrate, vaults
from raksha.db.models import VaultService
from raksha.db.session import Database, connect
from raksha.errors import BadArgument, HostFailed, ServiceRunning
from raksha.vault.address import open_store

_DEFAULT_VAULT = "default"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The folder is there, and no other `raksha serve` works with it until the block ends.

    Raises `ServiceRunning`, `HostFailed`.
    """
    try:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        file = os.open(folder / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostFailed(detail=error) from error
    try:
        try:
            # not `flock`, which a child process would keep beyond the end of ours
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServiceRunning(path=folder, pid=os.read(file, 20).decode() or "unknown") from error
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        yield
    finally:
        os.close(file)


def database_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'raksha.db'}"


@contextmanager
def opened(settings: DatabaseSettings, folder: Path) -> Iterator[Database]:
    """The database, made or brought to the schema of this Raksha. Raises `DatabaseUnavailable`, `HostFailed`."""
    try:
        # the files beside it take its mode
        os.close(os.open(folder / "raksha.db", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise HostFailed(detail=error) from error
    database = connect(settings)
    try:
        migrate.upgrade(database)
        yield database
    finally:
        database.close()


def first_vault(database: Database, folder: Path, url: str | None) -> str:
    """Where jobs that name no vault store: declared at the first start, afterwards as it is. `url`: what was asked for.

    Raises `BadArgument` if another was asked for before, `BadVaultUrl`, `VaultAccessDenied`, `HostFailed`.
    """
    wanted = url or (folder / "vault").as_uri()

    def declare(session: Session) -> str:
        known = vaults.all_services(session)
        if not known:
            kind = "swift" if wanted.startswith("swift:") else "directory"
            return vaults.declare(session, _DEFAULT_VAULT, kind=kind, url=wanted, is_default=True).url
        if url is not None and url not in {service.url for service in known}:
            detail = f"this service stores in {_first(known).url}; `raksha-manage vault add` gives it another vault"
            raise BadArgument(argument=f"--vault {url}", detail=detail)
        return _first(known).url

    with database.reading() as session:
        new = not vaults.all_services(session)
    if new:
        _make(wanted)
    return database.run(declare)


def _first(known: list[VaultService]) -> VaultService:
    return next((service for service in known if service.is_default), known[0])


def _make(url: str) -> None:
    """A directory must be there, so that one that is not mounted later on is not taken for an empty one."""
    with closing(open_store(url)):
        pass
    if url.startswith("file:"):
        try:
            Path(unquote(urlsplit(url).path)).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HostFailed(detail=error) from error
