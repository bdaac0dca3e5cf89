"""What the engine `overlay` asks of a VM: it puts layers on files and block devices, and libvirt must follow."""

from __future__ import annotations

from raksha.virt.libvirt.domain_xml import Disk, Domain, Layer
from raksha.virt.libvirt.layer_header import LayerHeader
from raksha.virt.libvirt.survey import FORMATS, LIVE_ONLY, OURS


class OverlayDemands:
    """Fulfils `Demands`."""

    def vm(self, inactive: Domain) -> str | None:  # noqa: ARG002
        return None

    def disk(self, disk: Disk, *, active: bool) -> str | None:  # noqa: ARG002
        for layer in disk.layers:
            if layer.kind not in OURS:
                return f"{layer.path} is of type {layer.kind}; only files and block devices can be"
        return None

    def running(self, disk: Disk, inactive: Disk | None, *, nova: bool) -> str | None:  # noqa: ARG002
        if inactive is None:
            return LIVE_ONLY
        # libvirt moves the definition to an overlay only where both spell the source alike. Else the next cold
        # boot starts below the overlay and loses data.
        if inactive.top.path != disk.top.path:
            return f"the running VM has {disk.top.path}, its definition {inactive.top.path}; make them the same"
        return None

    def layer(self, layer: Layer, head: LayerHeader | None, *, own: bool) -> str | None:
        if layer.format not in FORMATS or layer.kind not in OURS:
            return f"{layer.path} ({layer.kind}, {layer.format}) lies below it"
        if own and head is not None and head.snapshots:
            return f"{layer.path} holds an internal snapshot, which a merge would lose; delete it"
        return None
