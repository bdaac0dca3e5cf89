"""HTTP Basic, for one machine or a few: users in a file, one a line, read again when it changes.

    # name:bcrypt hash:project:roles
    alice:$2b$12$…:sales:member
    bob:$2b$12$…:sales:reader,auditor

Names, projects and roles are made of letters, digits, `.`, `_` and `-`. The file holds what opens backups, so it is
refused unless only its owner can read it, and its owner is us or root.
Unknown names cost the same time as known ones. A password that was right is remembered as a keyed digest in memory,
since bcrypt is slow on purpose and every request carries the password.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import bcrypt
import flask
from msgspec import Struct

from raksha.api.auth import Identity, with_implied
from raksha.errors import NotAuthenticated, SettingsWrong

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

CHALLENGE = 'Basic realm="raksha", charset="UTF-8"'

WORD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)
_HASH = re.compile(r"\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}", re.ASCII)
#: bcrypt looks at no more of a password
MAX_PASSWORD = 72
_REMEMBERED = 1000


class User(Struct, frozen=True):
    """A line of the file."""

    name: str
    hashed: bytes
    project: str
    roles: frozenset[str]


class LocalUser(Struct, frozen=True):
    """The one user of the embedded default."""

    name: str
    project: str
    #: of mode 0600, holds the password and a line feed
    password_file: Path


class HttpBasic:
    """Users of a file. Raises `SettingsWrong` at the start, and from `identify` should the file become wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(32)
        self._seen: tuple[int, ...] = ()
        self._users: dict[str, User] = {}
        self._right: dict[str, bytes] = {}
        self._refresh()
        # as slow as the slowest real one
        cost = max((int(user.hashed[4:6]) for user in self._users.values()), default=12)
        self._nobody = bcrypt.hashpw(secrets.token_bytes(16), bcrypt.gensalt(cost))

    def wrap(self, application: WSGIApplication) -> WSGIApplication:
        return application

    def identify(self, request: flask.Request) -> Identity:
        given = request.authorization
        if given is None or given.type != "basic" or not given.username or given.password is None:
            raise NotAuthenticated(challenge=CHALLENGE)
        self._refresh()
        user = self._users.get(given.username)
        if not self._is_right(user, given.password.encode("utf-8", "surrogatepass")) or user is None:
            raise NotAuthenticated(challenge=CHALLENGE)
        return Identity(user_id=user.name, project_id=user.project, roles=user.roles)

    def _is_right(self, user: User | None, password: bytes) -> bool:
        if user is None:
            # the time that it takes must not tell which names exist
            bcrypt.checkpw(password[:MAX_PASSWORD], self._nobody)
            return False
        digest = hashlib.blake2b(user.hashed + password, key=self._key).digest()
        known = self._right.get(user.name)
        if known is not None and hmac.compare_digest(known, digest):
            return True
        right = bcrypt.checkpw(password[:MAX_PASSWORD], user.hashed) and len(password) <= MAX_PASSWORD
        if right:
            with self._lock:
                if len(self._right) >= _REMEMBERED:
                    self._right.clear()
                self._right[user.name] = digest
        return right

    def _refresh(self) -> None:
        """Read the file if it is not the one that was read."""
        with self._lock:
            with _opened(self._path) as file:
                found = os.fstat(file.fileno())
                # the time of change tells of a new mode, too
                seen = (found.st_dev, found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size)
                if seen == self._seen:
                    return
                _refuse_readable_by_others(self._path, found)
                self._users = parse(file.read(), self._path)
            self._seen = seen
            self._right = {}


def parse(content: bytes, path: Path) -> dict[str, User]:
    """The users of a file by name. Raises `SettingsWrong` with the number of a line that is none."""
    users: dict[str, User] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.strip().split(":")
        if len(parts) != 4:
            raise SettingsWrong(detail=f"{path}:{number}: not of the form name:hash:project:roles")
        name, hashed, project, roles = parts[0], parts[1], parts[2], parts[3].split(",")
        if not all(WORD.fullmatch(word) for word in (name, project, *roles)):
            raise SettingsWrong(detail=f"{path}:{number}: a name, project or role with other signs than A-Za-z0-9._-")
        if not _HASH.fullmatch(hashed):
            raise SettingsWrong(detail=f"{path}:{number}: the hash of {name} is not one of bcrypt")
        if name in users:
            raise SettingsWrong(detail=f"{path}:{number}: a second {name}")
        users[name] = User(name, hashed.encode(), project, with_implied(roles))
    return users


def line(name: str, password: str, project: str, roles: str, cost: int = 12) -> str:
    """A line for the file, with its end."""
    return f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()}:{project}:{roles}\n"


def create_default_users(path: Path) -> LocalUser:
    """Make one user, `admin` of project `default`, with a random password; or find the one that was made before.

    The password stands in a file of mode 0600 beside `path`. It is written first: a start that was cut off between
    the two is made good by the next. Raises `SettingsWrong` if the files cannot be made.
    """
    user = LocalUser("admin", "default", path.with_name(f"{path.name}.admin-password"))
    try:
        if not path.exists():
            password = secrets.token_urlsafe(24)
            write_private(user.password_file, f"{password}\n")
            write_private(path, line(user.name, password, user.project, "admin"))
    except OSError as error:
        raise SettingsWrong(detail=f"users cannot be made at {path}: {error}") from error
    return user


def write_private(path: Path, content: str) -> None:
    """Whole or not at all, and never readable by others, not for a moment. Whose it was, it stays. Raises `OSError`."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if os.geteuid() == 0 and path.exists():
            os.fchown(file.fileno(), path.stat().st_uid, path.stat().st_gid)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise SettingsWrong(detail=f"the file of users {path} cannot be read: {error.strerror}") from error


def _refuse_readable_by_others(path: Path, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise SettingsWrong(detail=f"{path} has mode {mode:04o}: others could read or change it; it has to be 0600")
    if found.st_uid not in (0, os.geteuid()):
        raise SettingsWrong(detail=f"{path} belongs to user {found.st_uid}, neither to us nor to root")
