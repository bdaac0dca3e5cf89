"""Where volumes of Ceph are, as Cinder tells whoever attaches them.

A volume that is in use was attached already, and Cinder shows its project how: nothing is changed for it. Of another
one nobody is told until it is attached, so that is done with a temporary volume of the same storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from msgspec import Struct

from raksha.block_node import rbd_node
from raksha.openstack.attach import Attached
from raksha.openstack.lent import LentLogin, asking

_SERVICE = "block-storage"


class CephImage(Struct, frozen=True, kw_only=True):
    """An image of Ceph."""

    #: POOL/IMAGE, or POOL/NAMESPACE/IMAGE
    path: str
    #: address and port of each
    monitors: tuple[tuple[str, str], ...] = ()
    #: its keyring is below /etc/ceph; None: Ceph asks for no key
    user: str | None = None

    def snapshot_node(self, snapshot_id: str) -> dict[str, Any]:
        """A node of QEMU's block layer for a snapshot that Cinder has made of it."""
        return rbd_node(self.path, self.monitors, self.user, snapshot_name(snapshot_id))

    def beside(self, volume_id: str) -> CephImage:
        """The image of another volume in the same pool, as Cinder calls it unless its operator has said otherwise."""
        above, _, _ = self.path.rpartition("/")
        return CephImage(path=f"{above}/volume-{volume_id}", monitors=self.monitors, user=self.user)


def snapshot_name(snapshot_id: str) -> str:
    """As Cinder calls it in Ceph."""
    return f"snapshot-{snapshot_id}"


def image_of(cloud: LentLogin, volume_id: str) -> CephImage | None:
    """Of a volume that something has attached. None: nothing has, or it is of another storage.

    Raises `CloudRefused`, `CloudUnavailable`.
    """
    with asking(_SERVICE):
        answer = cloud.volumes().client.get(f"/attachments/detail?{urlencode({'volume_id': volume_id})}")[1]
        mine = [each for each in answer["attachments"] if each["volume_id"] == volume_id]
        return next((found for each in mine if (found := _image(each.get("connection_info"))) is not None), None)


def image_in(there: Attached) -> CephImage | None:
    """Of a volume that this host has attached."""
    return CephImage(path=there.path, monitors=there.monitors, user=there.user) if there.kind == "rbd" else None


def _image(connection: Mapping[str, Any] | None) -> CephImage | None:
    if not connection or str(connection.get("driver_volume_type")).lower() != "rbd" or "name" not in connection:
        return None
    monitors = zip(connection.get("hosts") or (), connection.get("ports") or (), strict=True)
    return CephImage(
        path=str(connection["name"]),
        monitors=tuple((str(host).strip("[]"), str(port)) for host, port in monitors),
        user=connection.get("auth_username") if connection.get("auth_enabled") else None,
    )
