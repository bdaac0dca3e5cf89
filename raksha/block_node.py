"""Nodes of QEMU's block layer for what holds a disk: the driver of its format goes on top. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rbd_node(
    path: str, monitors: Sequence[tuple[str, str]], user: str | None, snapshot: str | None = None
) -> dict[str, Any]:
    """POOL/IMAGE, or POOL/NAMESPACE/IMAGE, of Ceph. `monitors`: address and port of each; none: as this host's Ceph is
    set up. `user`: whose keyring below /etc/ceph opens it."""
    pool, *namespace, image = path.split("/")
    node: dict[str, Any] = {"driver": "rbd", "pool": pool, "image": image}
    if namespace:
        node["namespace"] = namespace[0]
    if monitors:
        node["server"] = [{"host": host, "port": port} for host, port in monitors]
    if user:
        node["user"] = user
    if snapshot is not None:
        node["snapshot"] = snapshot
    return node
