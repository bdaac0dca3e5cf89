"""Volumes of Cinder on this host: attached by the attachments API, connected by os-brick.

::

    with attached(cloud, volume, read_only=True) as there:
        there.node()         # what QEMU opens: a file of a share, a block device, or an image of Ceph

    this host asks for the volume            Cinder: attaching, and how to get to it
    the share is mounted, the device made    os-brick; an image of Ceph needs neither, QEMU speaks to Ceph itself
    that is told                             Cinder: in use, by this host
    ... and at the end, however it comes about: let go, then the attachment is deleted: available

A share is mounted for one attachment alone, below a directory of `/run` that is locked by the process that uses it.
What a killed process has left mounted is unmounted by the next one. Its attachment stays with Cinder: whoever owns the
volume decides (`attachments_of`, `detach`).

Not promised: volumes that Cinder encrypts, as their keys are none of our business: `VolumeNotAttachable`.
The format is what Cinder says; nothing is probed. For root alone: mounting needs it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from raksha.block_node import rbd_node
from raksha.errors import CloudMissing, CloudUnavailable, VolumeNotAttachable
from raksha.openstack.lent import LentLogin, asking

_SERVICE = "block-storage"
#: the attachments API with its modes and `os-complete`: Xena
_VERSION = {"OpenStack-API-Version": "volume 3.64"}
#: seconds to keep trying to let an attachment go
_LET_GO = 60.0
_POLL = 0.5
#: seconds for Cinder's answer, which connects to its storage first
_CONNECT = 180.0
#: of directories below which shares are mounted
_RUN, _PREFIX = Path("/run"), "raksha-volume-"

_log = logging.getLogger(__name__)
# they write down what connects to volumes, which may be secrets, and warn of every kind of storage that is not there
for _name in ("os_brick", "oslo_concurrency", "oslo.privsep"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class Attached(Struct, frozen=True, kw_only=True):
    """A volume that this host can read, or write."""

    volume_id: str
    attachment_id: str
    #: `file`, `block` or `rbd`
    kind: str
    #: of the file or device; of an image of Ceph: POOL/IMAGE
    path: str
    #: `raw` or `qcow2`, as Cinder says
    format: str
    #: of Ceph: address and port of each monitor, and whose key opens it: that user's keyring is below /etc/ceph
    monitors: tuple[tuple[str, str], ...] = ()
    user: str | None = None

    def node(self, snapshot: str | None = None) -> dict[str, Any]:
        """A node of QEMU's block layer for what holds the volume: put the driver of `format` on top.

        `snapshot`: of an image of Ceph.
        """
        if self.kind != "rbd":
            return {"driver": "file" if self.kind == "file" else "host_device", "filename": self.path}
        return rbd_node(self.path, self.monitors, self.user, snapshot)


class Attachment(Struct, frozen=True, kw_only=True):
    """As Cinder shows it to the project: which host has it, only operators see."""

    id: str
    volume_id: str
    #: None: no server of Nova has it
    server: str | None


def can_attach() -> bool:
    """Whether this host can attach volumes at all."""
    return os.geteuid() == 0 and find_spec("os_brick") is not None


def own_host() -> str:
    """The name that attachments of this host bear."""
    return socket.gethostname()


@contextmanager
def attached(
    cloud: LentLogin,
    volume_id: str,
    *,
    read_only: bool,
    announce: Callable[[str], None] = lambda _attachment: None,
) -> Iterator[Attached]:
    """The volume on this host. It must be `available`, or be one that may be attached more than once.

    `announce` is given the id of the attachment as soon as there is one, before anything is connected.
    Raises `VolumeNotAttachable`, `CloudMissing`, `CloudRefused`, `CloudUnavailable`, and what `announce` raises; after
    any of these the volume is not attached, or the log says that it may be.
    """
    if not can_attach():
        raise VolumeNotAttachable(volume=volume_id, detail="this host's agent is not root, or has no os-brick")
    with ExitStack() as stack:
        directory = stack.enter_context(_own_directory())
        attachment, connection = _attach(cloud, volume_id, read_only)
        stack.callback(_let_go, cloud, attachment, volume_id)
        announce(attachment)
        there = stack.enter_context(_connected(volume_id, attachment, connection, directory))
        _post(cloud, f"attachments/{attachment}/action", {"os-complete": {}})
        yield there


def attachments_of(cloud: LentLogin, volume_id: str) -> list[Attachment]:
    """Raises `CloudMissing`, `CloudRefused`, `CloudUnavailable`."""
    with asking(_SERVICE):
        url = f"{cloud.endpoint(_SERVICE)}/attachments/detail"
        asked = cloud.session().get(url, params={"volume_id": volume_id}, headers=_VERSION)
        return [
            Attachment(id=each["id"], volume_id=each["volume_id"], server=each.get("instance"))
            for each in asked.json()["attachments"]
            if each["volume_id"] == volume_id
        ]


def detach(cloud: LentLogin, attachment_id: str) -> None:
    """Delete an attachment; one that is not there is as good. Raises `CloudRefused`, `CloudUnavailable`."""
    with suppress(CloudMissing), asking(_SERVICE):
        url = f"{cloud.endpoint(_SERVICE)}/attachments/{attachment_id}"
        cloud.session(_CONNECT).delete(url, headers=_VERSION)


def _attach(cloud: LentLogin, volume_id: str, read_only: bool) -> tuple[str, Mapping[str, Any]]:
    """Its id, and how to get to the volume."""
    mode = "ro" if read_only else "rw"
    body = {"volume_uuid": volume_id, "mode": mode, "connector": _connector()}
    made = _post(cloud, "attachments", {"attachment": body})["attachment"]
    return str(made["id"]), made["connection_info"]


def _connector() -> dict[str, Any]:
    """What storage must know of this host."""
    connector = _os_brick()
    found: dict[str, Any] = connector.get_connector_properties(
        None, _address(), multipath=False, enforce_multipath=False, host=own_host()
    )
    return found


def _address() -> str:
    with suppress(OSError):
        return socket.gethostbyname(own_host())
    return "127.0.0.1"


def _post(cloud: LentLogin, path: str, body: Mapping[str, Any]) -> Any:
    with asking(_SERVICE):
        answer = cloud.session(_CONNECT).post(f"{cloud.endpoint(_SERVICE)}/{path}", json=body, headers=_VERSION)
        return answer.json() if answer.content else None


def _let_go(cloud: LentLogin, attachment_id: str, volume_id: str) -> None:
    """Until it is; whatever else went wrong is to be told, not this."""
    deadline = time.monotonic() + _LET_GO
    while True:
        try:
            detach(cloud, attachment_id)
        except CloudUnavailable as error:
            if time.monotonic() > deadline:
                _log.error("attachment %s of volume %s may be left: %s", attachment_id, volume_id, error)
                return
            time.sleep(_POLL)
        else:
            return


# -- on this host -----------------------------------------------------------------------------------


@contextmanager
def _connected(
    volume_id: str, attachment_id: str, connection: Mapping[str, Any], directory: Path
) -> Iterator[Attached]:
    """Raises `VolumeNotAttachable`."""
    if connection.get("encrypted"):
        raise VolumeNotAttachable(volume=volume_id, detail="it is encrypted")
    kind, form = str(connection.get("driver_volume_type")).lower(), str(connection.get("format") or "raw")
    if form not in ("raw", "qcow2"):
        raise VolumeNotAttachable(volume=volume_id, detail=f"its format is {form}")
    if kind == "rbd":
        ports = zip(connection["hosts"], connection["ports"], strict=True)
        yield Attached(
            volume_id=volume_id,
            attachment_id=attachment_id,
            kind="rbd",
            path=str(connection["name"]),
            format="raw",
            monitors=tuple((str(host).strip("[]"), str(port)) for host, port in ports),
            user=connection.get("auth_username") if connection.get("auth_enabled") else None,
        )
        return
    from os_brick.exception import BrickException
    from oslo_concurrency.processutils import ProcessExecutionError

    properties = dict(connection)
    try:
        connector = _os_brick().InitiatorConnector.factory(
            kind, None, conn=properties, nfs_mount_point_base=str(directory)
        )
        device = connector.connect_volume(properties)
    except (BrickException, ProcessExecutionError, OSError, KeyError, ValueError) as error:
        # what it says may hold what logs in to the storage
        raise VolumeNotAttachable(volume=volume_id, detail=f"os-brick: {type(error).__name__} ({kind})") from error
    try:
        path = Path(str(device["path"]))
        found = "block" if path.is_block_device() else "file"
        yield Attached(volume_id=volume_id, attachment_id=attachment_id, kind=found, path=str(path), format=form)
    finally:
        try:
            connector.disconnect_volume(properties, device)
        except (BrickException, ProcessExecutionError, OSError) as error:
            _log.error("volume %s is still connected to this host: %s", volume_id, type(error).__name__)


def _os_brick() -> Any:
    """os-brick, told that it is root already: it starts no helper. Imported only when needed, which takes a while."""
    import os_brick
    from os_brick import privileged
    from os_brick.initiator import connector
    from oslo_concurrency import lockutils  # registers the option that os_brick takes its own from
    from oslo_config import cfg

    for context in (privileged.default, privileged.brick_privsep_hide_output):
        context.set_client_mode(False)
    if cfg.CONF.oslo_concurrency.lock_path is None:
        lockutils.set_defaults(lock_path=str(_RUN / "lock"))
    os_brick.setup(cfg.CONF)
    return connector


@contextmanager
def _own_directory() -> Iterator[Path]:
    """Below which this attachment's share is mounted: locked as long as it is in use, and nothing in it at the end."""
    sweep()
    path, held = _locked_directory()
    try:
        yield path
    finally:
        _unmount(path)
        os.close(held)


def _locked_directory() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_RUN))
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)
        if path.exists():
            return path, held
        # a sweep came between
        os.close(held)


def sweep() -> None:
    """Unmount what killed processes have left."""
    for path in _RUN.glob(f"{_PREFIX}*"):
        try:
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone meanwhile
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _unmount(path)
        except BlockingIOError:
            pass
        finally:
            os.close(held)


def _unmount(path: Path) -> None:
    """Never removes what is in a directory: something may be mounted there still."""
    mounted = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    for place in path.iterdir():
        if str(place) in mounted:
            done = subprocess.run(["umount", place], capture_output=True, text=True, check=False)
            if done.returncode:
                _log.warning("%s stays mounted: %s", place, done.stderr.strip())
        with suppress(OSError):
            place.rmdir()
    with suppress(OSError):
        path.rmdir()
