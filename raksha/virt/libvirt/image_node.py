"""What of a VM's disks is no file of its own, as a node of QEMU's block layer: to be written to while the VM is off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lxml import etree

from raksha.block_node import rbd_node
from raksha.virt.libvirt.domain_xml import parse_xml

_DRIVERS = {"file": ("file", "file"), "block": ("host_device", "dev")}


def image_node(xml: str, target: str) -> Mapping[str, Any] | None:
    """Format on top of what holds the disk. None: it is neither file, device nor image of Ceph, or neither raw nor
    qcow2."""
    for disk in parse_xml(xml).iterfind("./devices/disk"):
        if (named := disk.find("target")) is not None and named.get("dev") == target:
            source, driver = disk.find("source"), disk.find("driver")
            form = driver.get("type", "") if driver is not None else ""
            if source is None or form not in ("raw", "qcow2"):
                return None
            node = _node(disk.get("type", "file"), source, disk.find("auth"))
            return None if node is None else {"driver": form, "file": node}
    return None


def _node(kind: str, source: etree._Element, auth: etree._Element | None) -> dict[str, Any] | None:
    if kind in _DRIVERS:
        driver, attribute = _DRIVERS[kind]
        return {"driver": driver, "filename": source.get(attribute)}
    if kind != "network" or source.get("protocol") != "rbd" or source.find("snapshot") is not None:
        return None
    if auth is None:
        auth = source.find("auth")
    monitors = [(host.get("name", ""), host.get("port", "6789")) for host in source.iterfind("host")]
    node = rbd_node(source.get("name", ""), monitors, auth.get("username") if auth is not None else None)
    config = source.find("config")
    return node if config is None else {**node, "conf": config.get("file")}
