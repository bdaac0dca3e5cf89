"""Volumes of Cinder that this host writes: new ones, and over those of the project.

::

    a new volume            attached here; only what the disk has is written; detached again
    over one that is there  noted on the volume; attached; all of it is written, zeroes where the disk has none;
                            detached; the note goes

The note, `raksha_half_written` in the volume's metadata, says which restore, and which host. It stays after whatever
goes wrong once something was written: the volume is neither what it was nor what it should be.

Nobody goes on with what another attempt has left half-written. A new volume is made again. One of the project's own is
written from its beginning, and only when no other host has it any more: this one's own agent has died with all that
it had open, of another host nobody knows, so a person must look.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from raksha.agent.host import Host
from raksha.agent.work import Work
from raksha.errors import CloudRefused, DeviceHalfWritten, RakshaError, VolumeHeld, VolumeNotAttachable
from raksha.openstack.attach import Attached, attached, can_attach
from raksha.openstack.lent import LentLogin
from raksha.openstack.volumes import Volumes
from raksha.restore.disk import DiskJob, restore_disks
from raksha.restore.image import Image
from raksha.restore.source import DiskSource
from raksha.virt.libvirt.layer_header import NotQcow2, read_header

_log = logging.getLogger(__name__)

#: in the metadata of a volume that is written over
HALF_WRITTEN = "raksha_half_written"
GIB = 1024**3


class VolumeWriter:
    """Of one VM's part of a restore."""

    def __init__(
        self, host: Host, work: Work, cloud: LentLogin, mark: str, tell: Callable[[dict[str, Any]], None]
    ) -> None:
        """`mark`: of the restore. `tell`: what is about to be made."""
        self._host = host
        self._work = work
        self._cloud = cloud
        self._volumes = Volumes(cloud)
        self._mark = mark
        self._tell = tell

    @property
    def able(self) -> bool:
        """Whether this host writes volumes at all."""
        return self._host.agent.attach_volumes and can_attach()

    def fill(self, volume_id: str, source: DiskSource) -> None:
        """A new one that reads as zeroes where it has room to spare. Whoever made it removes it after an error.

        Raises `VolumeNotAttachable`, `TargetUnusable` when nothing was written, and what restores raise.
        """
        self._write(volume_id, source, fresh=True)
        self._volumes.wait_until_available(volume_id, self._work.check)

    def require(self, volume_id: str, source: DiskSource) -> None:
        """It can be written over, if it stays as it is.

        Raises `CloudMissing`, `CloudRefused`, `VolumeNotAttachable`, `VolumeHeld` for one that another host has.
        """
        if not self.able:
            raise VolumeNotAttachable(volume=volume_id, detail="it may not, or cannot (attach_volumes, root, os-brick)")
        found = self._volumes.get(volume_id)
        if found.multiattach:
            raise _refused(volume_id, "may be attached more than once")
        if found.size * GIB < source.geometry.size:
            raise _refused(volume_id, f"has {found.size} GiB, and the disk {source.geometry.size} bytes")
        if found.status == "available":
            return
        restore, _, host = found.metadata.get(HALF_WRITTEN, "").partition(" ")
        if restore != self._mark:
            raise _refused(volume_id, f"is {found.status}, not available")
        if host != self._own:
            raise VolumeHeld(volume=volume_id, host=host)

    def overwrite(self, volume_id: str, source: DiskSource) -> None:
        """Raises what `require` does, `DeviceHalfWritten` once something was written, and what restores raise."""
        self.require(volume_id, source)
        self._tell({"kind": "overwritten_volume", "id": volume_id, "disk": source.disk})
        self._work.wait_for_lease()
        # of an earlier attempt that died with our process
        if not self._volumes.let_go(volume_id):
            raise _refused(volume_id, "is attached to a server")
        self._volumes.wait_until_available(volume_id, self._work.check)
        was = self._volumes.get(volume_id).metadata.get(HALF_WRITTEN)
        self._volumes.note(volume_id, HALF_WRITTEN, f"{self._mark} {self._own}")
        try:
            self._write(volume_id, source, fresh=False)
        except DeviceHalfWritten:
            raise
        except BaseException:
            self._note_again(volume_id, was)
            raise
        self._volumes.note(volume_id, HALF_WRITTEN, None)

    @property
    def _own(self) -> str:
        return self._host.agent.host

    def _write(self, volume_id: str, source: DiskSource, *, fresh: bool) -> None:
        self._work.progress.step(f"writing volume {volume_id}")

        def announce(attachment: str) -> None:
            self._tell({"kind": "attachment", "id": attachment, "volume": volume_id})

        context = self._host.context(self._work)
        with attached(self._cloud, volume_id, read_only=False, announce=announce) as there:
            _require_alone(there)
            node = {"driver": there.format, "file": there.node()}
            image = Image(f"volume {volume_id}", node, context.workers, fresh=fresh)
            restore_disks([DiskJob(source, image)], context)

    def _note_again(self, volume_id: str, was: str | None) -> None:
        """After an error, which is to be told whatever becomes of this."""
        try:
            self._volumes.note(volume_id, HALF_WRITTEN, was)
        except RakshaError as error:
            _log.error("volume %s is noted as half-written, and is not: %s", volume_id, error)


def _require_alone(there: Attached) -> None:
    """Only such a file is written whose header names no other: it would be opened too, and could show through."""
    if there.format != "qcow2":
        return
    try:
        header = read_header(there.path)
    except (OSError, NotQcow2) as error:
        raise VolumeNotAttachable(volume=there.volume_id, detail="its file is no qcow2 image") from error
    if header.backing is not None or header.data_file or header.encrypted:
        raise VolumeNotAttachable(volume=there.volume_id, detail="its file stands on others: does it have snapshots?")


def _refused(volume_id: str, detail: str) -> CloudRefused:
    return CloudRefused(service="block-storage", detail=f"volume {volume_id} {detail}")
