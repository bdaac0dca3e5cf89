"""What the engine `pull` refuses, and which images can hold a bitmap."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from raksha.virt.libvirt.domain_xml import Disk, Layer, parse_domain
from raksha.virt.libvirt.lineage import Lineage
from raksha.virt.libvirt.pull_survey import PullDemands, below, can_hold_bitmap
from raksha.virt.libvirt.survey import obstacle

RBD = "<source protocol='rbd' name='pool/volume'><host name='x'/></source>"
ISCSI = "<source protocol='iscsi' name='iqn.2026-01.org:disk/1'><host name='x'/></source>"

FILE = "<source file='/d'/>"


def disk(inner: str = "", kind: str = "file", form: str = "raw", source: str = FILE, **more: str) -> Disk:
    attributes = "".join(f" {name}='{value}'" for name, value in more.items())
    content = f"<driver type='{form}'/>{source}<target dev='vda' bus='virtio'/>{inner}"
    xml = f"<disk type='{kind}'{attributes}>{content}</disk>"
    return parse_domain(f"<domain><devices>{xml}</devices></domain>").disks[0]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (disk(device="lun"), "SCSI LUN"),
        (disk("<shareable/>"), "shareable"),
        (disk("<transient/>"), "transient"),
        (disk(source="<source file='/d'><encryption format='luks'/></source>"), "in clear"),
        (disk(source="<source file='/d'><slices/></source>"), "only a part"),
        (disk(form="vmdk"), "vmdk"),
    ],
)
def test_refused(found: Disk, text: str) -> None:
    assert text in (obstacle(found, PullDemands(), active=True) or "")


def test_network_disks_are_read_by_the_qemu_of_the_vm_and_those_in_ceph_by_another_too() -> None:
    network = disk(kind="network", source=ISCSI)
    assert obstacle(network, PullDemands(), active=True) is None
    assert "while the VM runs" in (obstacle(network, PullDemands(), active=False) or "")
    for active in (True, False):
        assert obstacle(disk(kind="network", source=RBD), PullDemands(), active=active) is None
    assert obstacle(disk(), PullDemands(), active=False) is None


def image(path: Path, *options: str) -> Lineage:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"], check=True)
    return Lineage((), (Layer(str(path), "file", "qcow2"),), ())


def test_who_can_hold_a_bitmap(tmp_path: Path) -> None:
    good = image(tmp_path / "a")
    assert can_hold_bitmap(good)
    assert not can_hold_bitmap(image(tmp_path / "old", "-o", "compat=0.10"))
    assert not can_hold_bitmap(Lineage((), (Layer(str(tmp_path / "a"), "file", "raw"),), ()))
    assert not can_hold_bitmap(Lineage((), (Layer("nbd:x", "network", "qcow2"),), ()))
    subprocess.run(["qemu-img", "snapshot", "-c", "s", tmp_path / "a"], check=True)
    assert not can_hold_bitmap(good), "an internal snapshot could not be gone back to"


def test_what_lies_below(tmp_path: Path) -> None:
    top, one = Layer("/top", "file", "qcow2"), tmp_path / "one"
    one.write_bytes(b"x" * 512)
    lineage = Lineage((), (top, Layer(str(one), "file", "raw"), Layer("rbd:p/v", "network", "raw")), ())
    before = below(lineage)
    assert json.loads(before) == [[str(one), one.stat().st_ino, 512], ["rbd:p/v"]]
    one.touch()  # as Nova does with base images in use
    assert below(lineage) == before
    one.write_bytes(b"x" * 1024)
    assert below(lineage) != before
    assert below(Lineage((), (top,), ())) == "[]"
