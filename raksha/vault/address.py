"""From the address of a vault to its store.

    file:///absolute/path        a directory; characters that a URL cannot hold are written %XX
    swift://                     Swift, containers `backupjobs` and `backupjobs_segments`
    swift://PREFIX               Swift, containers `PREFIX_backupjobs` and `PREFIX_backupjobs_segments`

Secrets are never part of an address: those for Swift come from the environment (`vault/credentials.py`).
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from raksha.errors import BadVaultUrl
from raksha.vault.crash_store import with_crash_points
from raksha.vault.directory import DirectoryStore
from raksha.vault.retry import RetryStore
from raksha.vault.store import Store

if TYPE_CHECKING:
    from raksha.vault.credentials import Credentials

_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def open_store(
    url: str,
    *,
    retry_deadline: float = 300.0,
    cancel: threading.Event | None = None,
    credentials: Credentials | None = None,
    timeout: float = 60.0,
) -> Store:
    """A patient store (`RetryStore`). Nothing is read, made or sent yet.

    `retry_deadline` and `timeout` are in seconds: for one call with all its attempts, and for each wait on the
    network. `credentials` stand in for the environment. Raises `BadVaultUrl`, and `VaultAccessDenied` when Swift is
    wanted and no credentials are given.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise BadVaultUrl(url=_without_secrets(url), detail="it cannot be read") from error
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise BadVaultUrl(url=_without_secrets(url), detail="it may have no user, query or fragment")
    if parts.scheme == "file":
        store: Store = DirectoryStore(url, _path(url, parts))
    elif parts.scheme == "swift":
        store = _swift(url, parts, credentials, timeout)
    else:
        raise BadVaultUrl(url=_without_secrets(url), detail=f"unknown scheme {parts.scheme!r}")
    return RetryStore(with_crash_points(store), deadline=retry_deadline, cancel=cancel)


def _path(url: str, parts: SplitResult) -> Path:
    if parts.netloc not in ("", "localhost"):
        raise BadVaultUrl(url=url, detail="a path has three slashes before it: file:///path")
    path = unquote(parts.path)
    if not path.startswith("/") or path.strip("/") == "" or not path.isprintable():
        raise BadVaultUrl(url=url, detail="it needs an absolute path, and not the root of the file system")
    return Path(path)


def _swift(url: str, parts: SplitResult, credentials: Credentials | None, timeout: float) -> Store:
    if parts.path not in ("", "/") or not (parts.netloc == "" or _PREFIX.fullmatch(parts.netloc)):
        detail = "the prefix has letters, digits, '.', '_' and '-', at most 64"
        raise BadVaultUrl(url=_without_secrets(url), detail=detail)
    try:
        # only those who keep a vault in Swift need its client (the extra `swift`)
        from raksha.vault.credentials import from_environment
        from raksha.vault.swift import SwiftStore
    except ModuleNotFoundError as error:
        raise BadVaultUrl(url=url, detail=f"{error.name} is not installed: pip install 'raksha[swift]'") from error
    found = credentials or from_environment(url, os.environ)
    return SwiftStore(url, found, prefix=parts.netloc, timeout=timeout)


def _without_secrets(url: str) -> str:
    """What stands before an @, and after a question mark, may be one."""
    return re.sub(r"^(\w*:?/*).*@", r"\1…@", url).partition("?")[0]
