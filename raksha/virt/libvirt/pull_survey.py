"""What the engine `pull` asks of a VM, and which of its images can hold a bitmap.

Less than the other engine: QEMU itself reads the disks of a running VM, so network disks will do, and whoever
rebuilds the definition (Nova) does no harm. Changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raksha.errors import DiskUnsupported
from raksha.virt.libvirt.chain import ChainBroken, header
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Disk, Domain, Layer
from raksha.virt.libvirt.image_node import image_node
from raksha.virt.libvirt.layer_header import LayerHeader
from raksha.virt.libvirt.lineage import Lineage
from raksha.virt.libvirt.survey import LIVE_ONLY, OURS, SurveyedDisk


class PullDemands:
    """Fulfils `Demands`."""

    def vm(self, inactive: Domain) -> str | None:  # noqa: ARG002
        return None

    def disk(self, disk: Disk, *, active: bool) -> str | None:
        for layer in disk.layers:
            if not active and layer.kind not in OURS and not _in_ceph(disk):
                return f"{layer.path} is of type {layer.kind}, which can be read only while the VM runs"
        return None

    def running(self, disk: Disk, inactive: Disk | None, *, nova: bool) -> str | None:  # noqa: ARG002
        # a volume that Nova could not detach is in the server still, and out of a definition that Nova does not go by
        return LIVE_ONLY if inactive is None and not nova else None

    def layer(self, layer: Layer, head: LayerHeader | None, *, own: bool) -> str | None:  # noqa: ARG002
        return None


def lying(guest: Guest, disk: SurveyedDisk) -> Sequence[Layer] | Mapping[str, Any]:
    """What qemu-nbd opens of a disk of a VM that is shut off. Raises `DiskUnsupported`."""
    if disk.disk.top.kind in OURS:
        return disk.chain
    node = image_node(guest.inactive_xml(), disk.target)
    if node is None:
        raise DiskUnsupported(vm=guest.name, disk=disk.target, detail="its definition does not say where it is")
    return {**node, "read-only": True}


def _in_ceph(disk: Disk) -> bool:
    """Whether it is a raw image of Ceph, which QEMU's tools read without the VM."""
    (top, *below) = disk.layers
    return not below and (top.kind, top.format) == ("network", "raw") and top.path.startswith("rbd:")


def can_hold_bitmap(lineage: Lineage) -> bool:
    """Whether the VM's own file keeps a dirty bitmap.

    One on an overlay of ours is merged into that file. An image with internal snapshots gets none: QEMU refuses to go
    back to a snapshot while there is a bitmap, and that would be the user's loss.
    """
    if lineage.base.format != "qcow2" or lineage.base.kind not in OURS:
        return False
    with suppress(ChainBroken):
        head = header(lineage.base)
        return head is not None and head.version >= 3 and head.snapshots == 0
    return False


def below(lineage: Lineage) -> str:
    """What lies below the VM's own file, told so that an exchange shows: a bitmap says nothing about that.

    Not the time of modification: Nova touches its base images.
    """
    return json.dumps([_mark(layer) for layer in lineage.below[1:]])


def _mark(layer: Layer) -> list[str | int]:
    if layer.kind not in OURS:
        return [layer.path]
    status = Path(layer.path).stat()
    return [layer.path, status.st_ino, status.st_size]
