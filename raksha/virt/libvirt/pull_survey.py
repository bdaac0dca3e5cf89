"""What the engine `pull` asks of a VM, and which of its images can hold a bitmap.

Less than the other engine: QEMU itself reads the disks of a running VM, so network disks will do, and whoever
rebuilds the definition (Nova) does no harm. Changes nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from raksha.virt.libvirt.chain import ChainBroken, header
from raksha.virt.libvirt.domain_xml import Disk, Domain, Layer
from raksha.virt.libvirt.layer_header import LayerHeader
from raksha.virt.libvirt.lineage import Lineage
from raksha.virt.libvirt.survey import OURS


class PullDemands:
    """Fulfils `Demands`."""

    def vm(self, inactive: Domain) -> str | None:  # noqa: ARG002
        return None

    def disk(self, disk: Disk, *, active: bool) -> str | None:
        for layer in disk.layers:
            if not active and layer.kind not in OURS:
                return f"{layer.path} is of type {layer.kind}, which can be read only while the VM runs"
        return None

    def running(self, disk: Disk, inactive: Disk) -> str | None:  # noqa: ARG002
        return None

    def layer(self, layer: Layer, head: LayerHeader | None, *, own: bool) -> str | None:  # noqa: ARG002
        return None


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
