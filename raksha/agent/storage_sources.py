"""How this host gets to what is in a snapshot of a volume, without touching the volume.

::

    an image of Ceph, attached to something     Cinder shows how: the snapshot is read directly
    of anything else                            a temporary volume is made of the snapshot, and attached to this host
        that is of Ceph                         now it is known how: the snapshot is read directly, the volume goes
        a file, a device                        it is read, in the format that Cinder says

Formats are never probed. What a qcow2 file names below it must be on the same share, or it is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec import Struct

from raksha.agent.storage_notes import ATTACHMENT, VOLUME, Notes
from raksha.errors import CaptureFailed
from raksha.openstack import ceph
from raksha.openstack.attach import Attached, attached
from raksha.openstack.ceph import CephImage
from raksha.openstack.lent import LentLogin
from raksha.openstack.snapshots import Snapshot, Temporary, delete_volume, find_snapshot
from raksha.virt.libvirt import nbd
from raksha.virt.libvirt.chain import ChainBroken, follow
from raksha.virt.libvirt.domain_xml import Layer

_log = logging.getLogger(__name__)


class Reached(Struct, frozen=True):
    """A snapshot that can be read."""

    source: nbd.Server
    #: `rbd`, `file` or `block`, and `raw` or `qcow2`
    kind: str
    format: str
    #: of Ceph, where the snapshot itself is read
    image: CephImage | None


class Wanted(Struct, frozen=True):
    """A snapshot of a volume, by the name of the disk."""

    target: str
    snapshot: Snapshot
    #: the volume is attached to something
    in_use: bool


class Sources:
    """Of one capture. What is opened here, `close` closes; temporary volumes are left to whoever made `temporary`."""

    def __init__(
        self, cloud: LentLogin, temporary: Temporary, notes: Notes, *, vm: str, check: Callable[[], None], readers: int
    ) -> None:
        self._cloud = cloud
        self._temporary = temporary
        self._notes = notes
        self._vm = vm
        self._check = check
        self._readers = readers
        self._stack = ExitStack()

    def close(self) -> None:
        """May be called twice."""
        self._stack.close()

    def reach(self, wanted: list[Wanted]) -> dict[str, Reached]:
        """By the names of the disks. Raises `CaptureFailed`, `VolumeNotAttachable`, `CloudRefused`, `CloudUnavailable`.

        Temporary volumes are all asked for before the first is waited for.
        """
        found: dict[str, Reached] = {}
        for each in wanted:
            direct = self._in_ceph(each, ceph.image_of(self._cloud, each.snapshot.volume_id)) if each.in_use else None
            if direct is not None:
                found[each.target] = direct
        rest = [each for each in wanted if each.target not in found]
        if rest:
            self._notes.tell(*({"kind": VOLUME, "volume": each.snapshot.volume_id} for each in rest))
        volumes = {each.target: self._temporary.volume(each.snapshot) for each in rest}
        for each in rest:
            volume = volumes[each.target]
            self._notes.tell({"kind": VOLUME, "volume": each.snapshot.volume_id, "id": volume})
            self._temporary.wait_for_volume(volume, self._check)
            found[each.target] = self._by_volume(each, volume)
        return found

    def _by_volume(self, wanted: Wanted, volume: str) -> Reached:
        of = wanted.snapshot.volume_id
        with ExitStack() as stack:

            def told(attachment: str) -> None:
                self._notes.tell({"kind": ATTACHMENT, "volume": of, "id": attachment})

            self._notes.tell({"kind": ATTACHMENT, "volume": of})
            there = stack.enter_context(attached(self._cloud, volume, read_only=True, announce=told))
            image = ceph.image_in(there)
            direct = self._in_ceph(wanted, image.beside(of) if image else None)
            if direct is None:
                source = self._open(wanted, there.format, self._node(there))
                stack.callback(source.close)
                self._stack.push(stack.pop_all())
                return Reached(source, there.kind, there.format, None)
        self._notes.gone({"kind": ATTACHMENT, "volume": of})
        delete_volume(self._cloud, volume)
        self._notes.gone({"kind": VOLUME, "volume": of})
        return direct

    def _in_ceph(self, wanted: Wanted, image: CephImage | None) -> Reached | None:
        """None: it is not there, or not called what Cinder calls it."""
        if image is None:
            return None
        node = {"driver": "raw", "read-only": True, "file": image.snapshot_node(wanted.snapshot.id)}
        try:
            source = self._open(wanted, "raw", node)
        except CaptureFailed as error:
            _log.info("the snapshot of %s is not read directly: %s", wanted.target, error)
            return None
        self._stack.callback(source.close)
        return Reached(source, "rbd", "raw", image)

    def _node(self, there: Attached) -> dict[str, Any]:
        """Raises `CaptureFailed`."""
        if there.format == "raw":
            return {"driver": "raw", "read-only": True, "file": there.node()}
        if there.kind != "file":
            raise CaptureFailed(vm=self._vm, detail=f"Cinder calls a volume {there.format}, and it is no file")
        share = Path(there.path).parent.resolve()
        try:
            chain = follow((Layer(there.path, "file", there.format),))
        except ChainBroken as error:
            raise CaptureFailed(vm=self._vm, detail=str(error)) from error
        for layer in chain:
            if layer.kind != "file" or not Path(layer.path).resolve().is_relative_to(share):
                raise CaptureFailed(vm=self._vm, detail="a volume names a backing file that is not on its share")
        return nbd.node(chain, share=False)

    def _open(self, wanted: Wanted, form: str, node: dict[str, Any]) -> nbd.Server:
        """Raises `CaptureFailed`: also for less than Cinder says there is."""

        def explain() -> None:
            found = find_snapshot(self._cloud, wanted.snapshot.id)
            if found is None or found.status != "available":
                status = found.status if found else "gone"
                raise CaptureFailed(vm=self._vm, detail=f"the snapshot of {wanted.target} is {status}: not our doing")

        server = nbd.Server(self._vm, wanted.target, node, share=False, connections=self._readers, explain=explain)
        least = wanted.snapshot.size * 1024**3
        if server.size < least:
            server.close()
            detail = f"{wanted.target} has {server.size} bytes ({form}), and Cinder says {least}"
            raise CaptureFailed(vm=self._vm, detail=detail)
        return server
