"""Disks of definitions as nodes of QEMU's block layer: files, devices, images of Ceph; nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from raksha.virt.libvirt.image_node import image_node

FILE = "<disk type='file'><driver type='raw'/><source file='/mnt/v'/><target dev='vda'/></disk>"
DEVICE = "<disk type='block'><driver type='raw'/><source dev='/dev/sdx'/><target dev='vda'/></disk>"
CEPH = (
    "<disk type='network'><driver type='raw'/><auth username='cinder'><secret type='ceph' uuid='x'/></auth>"
    "<source protocol='rbd' name='volumes/volume-1'><host name='10.0.0.1' port='6789'/><host name='10.0.0.2'/></source>"
    "<target dev='vda'/></disk>"
)
MONITORS = [{"host": "10.0.0.1", "port": "6789"}, {"host": "10.0.0.2", "port": "6789"}]
FOUND: list[tuple[str, dict[str, Any]]] = [
    (FILE, {"driver": "raw", "file": {"driver": "file", "filename": "/mnt/v"}}),
    (FILE.replace("raw", "qcow2"), {"driver": "qcow2", "file": {"driver": "file", "filename": "/mnt/v"}}),
    (DEVICE, {"driver": "raw", "file": {"driver": "host_device", "filename": "/dev/sdx"}}),
    (CEPH, {"driver": "raw", "file": {"driver": "rbd", "pool": "volumes", "image": "volume-1", "server": MONITORS,
                                      "user": "cinder"}}),
    (CEPH.replace("volumes/volume-1", "volumes/mine/volume-1").replace("<auth username='cinder'>", "<auth>"),
     {"driver": "raw", "file": {"driver": "rbd", "pool": "volumes", "namespace": "mine", "image": "volume-1",
                                "server": MONITORS}}),
]  # fmt: skip
NOTHING = [
    FILE.replace("vda", "vdb"),
    FILE.replace("raw", "vmdk"),
    FILE.replace("<driver type='raw'/>", ""),
    CEPH.replace("rbd", "iscsi"),
    CEPH.replace("</source>", "<snapshot name='s'/></source>"),
    "<disk type='volume'><driver type='raw'/><source pool='p' volume='v'/><target dev='vda'/></disk>",
]


def domain(disk: str) -> str:
    return f"<domain><devices><disk type='file'><target dev='sda'/></disk>{disk}</devices></domain>"


@pytest.mark.parametrize(("disk", "node"), FOUND)
def test_what_can_be_written_to(disk: str, node: dict[str, Any]) -> None:
    assert image_node(domain(disk), "vda") == node


@pytest.mark.parametrize("disk", NOTHING)
def test_what_cannot(disk: str) -> None:
    assert image_node(domain(disk), "vda") is None
