"""Changes to the file of users of `http_basic`: whole or not at all, one at a time. APIs read it again by themselves.

Comments and the order of lines stay. A password is never part of an error.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raksha.api.http_basic import MAX_PASSWORD, WORD, User, line, parse, write_private
from raksha.errors import BadArgument, HostFailed, NameTaken, RowNotFound, SettingsWrong

MIN_PASSWORD = 8
_NOUN = "user"


def listed(path: Path) -> list[User]:
    """By name. Raises `SettingsWrong` for a file that cannot be read."""
    return sorted(parse(_content(path), path).values(), key=lambda user: user.name)


def add(path: Path, name: str, password: str, project: str, roles: list[str]) -> None:
    """The file is made if it is not there. Raises `BadArgument`, `NameTaken`, `SettingsWrong`, `HostFailed`."""
    for word in (name, project, *roles):
        if not WORD.fullmatch(word):
            detail = "names, projects and roles are made of letters, digits, '.', '_' and '-', 64 at most"
            raise BadArgument(argument=word, detail=detail)
    check_password(password)

    def added(lines: list[str]) -> list[str]:
        return [*lines, line(name, password, project, ",".join(roles))]

    with _alone(path):
        content = _content(path) if path.exists() else b""
        if name in parse(content, path):
            raise NameTaken(noun=_NOUN, name=name)
        _write(path, content, added)


def change_password(path: Path, name: str, password: str) -> None:
    """Raises `BadArgument`, `RowNotFound`, `SettingsWrong`, `HostFailed`."""
    check_password(password)
    _replace(path, name, lambda rest: [line(name, password, *rest)])


def remove(path: Path, name: str) -> None:
    """Raises `RowNotFound`, `SettingsWrong`, `HostFailed`."""
    _replace(path, name, lambda _: [])


def check_password(password: str) -> None:
    """Raises `BadArgument`."""
    if len(password) < MIN_PASSWORD or len(password.encode()) > MAX_PASSWORD or not password.isprintable():
        detail = f"it has {MIN_PASSWORD} to {MAX_PASSWORD} characters that can be printed"
        raise BadArgument(argument="the password", detail=detail)


def password_file(path: Path, name: str) -> Path:
    """Where the password of a user stands that nobody has chosen."""
    return path.with_name(f"{path.name}.{name}-password")


def _replace(path: Path, name: str, by: Callable[[tuple[str, str]], list[str]]) -> None:
    """`by`: from project and roles the lines instead."""

    def replaced(lines: list[str]) -> list[str]:
        changed: list[str] = []
        for each in lines:
            parts = each.strip().split(":")
            changed += by((parts[2], parts[3])) if parts[0] == name else [each]
        return changed

    with _alone(path):
        content = _content(path)
        if name not in parse(content, path):
            raise RowNotFound(noun=_NOUN, id=name)
        _write(path, content, replaced)
        # what stood there is no password any more
        password_file(path, name).unlink(missing_ok=True)


def _write(path: Path, content: bytes, change: Callable[[list[str]], list[str]]) -> None:
    lines = [f"{each}\n" for each in content.decode("utf-8", "replace").splitlines()]
    try:
        write_private(path, "".join(change(lines)))
    except OSError as error:
        raise HostFailed(detail=error) from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other change meanwhile: the lock is on the folder, for the file is replaced."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostFailed(detail=error) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsWrong(detail=f"the file of users {path} cannot be read: {error.strerror}") from error
