"""The state of an emulated TPM, put where libvirt looks for it. A guest that sealed its disk with it needs it."""

from __future__ import annotations

import grp
import io
import os
import pwd
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from raksha.errors import MetadataInvalid, TargetExists, TargetFailed
from raksha.restore.files import writing

#: bytes of one file; real ones have some kilobytes
_LIMIT = 16 * 1024 * 1024


def tpm_directory(uri: str, uuid: str) -> Path:
    """Where the libvirt at `uri` keeps the state for the VM with this UUID."""
    if urlsplit(uri).path == "/session":
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "libvirt/qemu/swtpm" / uuid
    return Path("/var/lib/libvirt/swtpm") / uuid


def put_tpm_state(archive: bytes, directory: Path) -> None:
    """Unpack plain files and directories, nothing else, with their owners if that is ours to do.

    Raises `TargetExists`, `TargetFailed`, `MetadataInvalid` for what is no such archive.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            members = [(member, _content(tar, member)) for member in tar.getmembers()]
    except tarfile.TarError as error:
        raise MetadataInvalid(name="TPM state", detail=str(error)) from error
    try:
        with writing(directory):
            directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700)
    except TargetFailed as error:
        if isinstance(error.__cause__, FileExistsError):
            raise TargetExists(target=directory) from error
        raise
    for member, content in members:
        with writing(directory):
            _put(directory.joinpath(*_steps(member)), member, content)


def _steps(member: tarfile.TarInfo) -> tuple[str, ...]:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise MetadataInvalid(name="TPM state", detail=f"it names {member.name}")
    return path.parts


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """None for a directory."""
    _steps(member)
    if member.isdir():
        return None
    file = tar.extractfile(member) if member.isreg() and member.size <= _LIMIT else None
    if file is None:
        raise MetadataInvalid(name="TPM state", detail=f"{member.name} is no plain file")
    return file.read()


def _put(path: Path, member: tarfile.TarInfo, content: bytes | None) -> None:
    if content is None:
        path.mkdir(mode=0o700, exist_ok=True)
    else:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        path.chmod(member.mode & 0o700)
    if os.geteuid() == 0:
        user = _number(lambda: pwd.getpwnam(member.uname).pw_uid, member.uid)
        group = _number(lambda: grp.getgrnam(member.gname).gr_gid, member.gid)
        os.chown(path, user, group)


def _number(by_name: Callable[[], int], recorded: int) -> int:
    """Of a user or group on this host, where it has one of that name."""
    try:
        return by_name()
    except KeyError:
        return recorded
