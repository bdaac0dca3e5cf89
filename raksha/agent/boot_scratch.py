"""Where the disks of a VM lie that is booted for a test, and what an agent that was killed has left of such VMs.

Each has a directory of its own, locked by whoever uses it. libvirt destroys the domain when the agent's connection
ends; where libvirtd itself was restarted meanwhile it forgets that, so the domain names its directory, and one whose
directory is below ours and locked by nobody is destroyed. Then the directory goes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from raksha import crash
from raksha.errors import LibvirtFailed, RakshaError, TargetUnusable, VmNotFound
from raksha.virt.libvirt.boot_xml import is_test, scratch_of
from raksha.virt.libvirt.connection import Connection

_log = logging.getLogger(__name__)

_PREFIX = "boot-"


@contextmanager
def scratch(uri: str, parent: Path, identity: str) -> Iterator[Path]:
    """A directory for the VM with this UUID. Afterwards neither VM nor directory is there, or the log says why.

    Raises `TargetUnusable`.
    """
    path = parent / f"{_PREFIX}{identity}"
    try:
        descriptor = _make(path)
    except OSError as error:
        raise TargetUnusable(target=path, detail=error.strerror) from error
    try:
        yield path
    finally:
        try:
            _remove(uri, path, identity)
        finally:
            os.close(descriptor)


def _make(path: Path) -> int:
    """QEMU, another user than we are, must get to its disks: they are owned as the directory above them is."""
    with crash.around("boot.make"):
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        path.mkdir(mode=0o711)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def sweep(uri: str, parent: Path) -> None:
    """What nobody uses any more. Never raises."""
    for path in sorted(parent.glob(f"{_PREFIX}*")):
        try:
            identity = str(uuid.UUID(path.name.removeprefix(_PREFIX)))
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (ValueError, OSError):  # not ours, or gone
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _log.warning("a test of a restore point was broken off: %s goes", path.name, extra={"action": "sweep"})
            _remove(uri, path, identity)
        except OSError:  # in use
            continue
        finally:
            os.close(descriptor)


def _remove(uri: str, path: Path, identity: str) -> None:
    """Never raises: where libvirt does not say that the VM is gone, the directory stays for the next sweep."""
    try:
        with closing(Connection(uri)) as connection:
            _destroy(connection, path, identity)
    except RakshaError as error:
        _log.error("VM %s of a test may still run, its disks stay: %s", identity, error, extra={"action": "sweep"})
        return
    with crash.around("boot.remove"):
        shutil.rmtree(path, ignore_errors=True)


def _destroy(connection: Connection, path: Path, identity: str) -> None:
    """Raises `HypervisorUnavailable`, `LibvirtFailed`."""
    with suppress(VmNotFound):
        guest = connection.guest(identity)
        if not is_test(guest.name, guest.uuid):
            return
        try:
            if scratch_of(guest.live_xml()) == path:
                guest.destroy()
        except LibvirtFailed:
            connection.guest(identity)  # gone by itself?
            raise
