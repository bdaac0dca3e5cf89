"""Reading domain XML: live chains, definitions, and what must be told about a disk."""

from __future__ import annotations

import pytest
from lxml import etree

from raksha.virt.libvirt.domain_xml import Layer, parse_domain, parse_xml
from raksha.virt.libvirt.overlay_survey import OverlayDemands
from raksha.virt.libvirt.survey import is_candidate, obstacle

LIVE = """<domain type='qemu' id='7'><name>web</name><uuid>6f2ac3b4-0000-4000-8000-000000000001</uuid>
<os><type>hvm</type><nvram template='/usr/share/x.fd'>/var/lib/web.fd</nvram></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
  <source file='/d/o2.qcow2' index='7'/>
  <backingStore type='file' index='5'><format type='qcow2'/><source file='/d/o1.qcow2'/>
    <backingStore type='block' index='3'><format type='raw'/><source dev='/dev/vg/web'/><backingStore/></backingStore>
  </backingStore><target dev='vda' bus='virtio'/><serial>abc</serial></disk>
<disk type='network' device='disk'><driver name='qemu' type='raw'/>
  <source protocol='rbd' name='pool/image'><host name='h'/></source><target dev='vdb' bus='virtio'/></disk>
<disk type='file' device='cdrom'><driver name='qemu'/><target dev='sda' bus='sata'/><readonly/></disk>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
</devices></domain>"""


def disk(inner: str, kind: str = "file", device: str = "disk") -> str:
    element = f"<disk type='{kind}' device='{device}'>{inner}<target dev='vda'/></disk>"
    return f"<domain><devices>{element}</devices></domain>"


def reason(inner: str, **named: str) -> str | None:
    return obstacle(parse_domain(disk(inner, **named)).disks[0], OverlayDemands())


def test_live() -> None:
    domain = parse_domain(LIVE)
    assert (domain.name, domain.agent, domain.nvram, domain.tpm) == ("web", "connected", "/var/lib/web.fd", True)
    vda = domain.disk("vda")
    assert vda is not None
    assert vda.layers == (
        Layer("/d/o2.qcow2", "file", "qcow2", 7),
        Layer("/d/o1.qcow2", "file", "qcow2", 5),
        Layer("/dev/vg/web", "block", "raw", 3),
    )
    assert (vda.serial, vda.bus, dict(vda.driver)["discard"]) == ("abc", "virtio", "unmap")
    assert domain.disk("vdb") is not None and domain.disks[1].top.path == "rbd:pool/image"
    assert domain.disks[2].layers == () and not is_candidate(domain.disks[2])
    assert domain.disk("vdz") is None


def test_nvram_as_source() -> None:
    xml = "<domain><os><nvram type='file'><source file='/x.fd'/></nvram></os></domain>"
    assert parse_domain(xml).nvram == "/x.fd"
    assert parse_domain("<domain><os><nvram/></os></domain>").nvram is None


def test_nova() -> None:
    instance = "<n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'/>"
    assert parse_domain(f"<domain><metadata>{instance}</metadata></domain>").nova
    assert not parse_domain("<domain><metadata><x/></metadata></domain>").nova


FILE = "<driver type='qcow2'/><source file='/d/a'/>"


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        (FILE + "<shareable/>", "shareable"),
        (FILE + "<transient/>", "transient"),
        (FILE + "<encryption format='luks'/>", "encrypted"),
        ("<driver type='raw'/><source file='/d/a'><encryption format='luks'/></source>", "encrypted"),
        ("<driver type='raw'/><source file='/d/a'><slices><slice/></slices></source>", "part of its file"),
        ("<driver type='qcow2'/><source file='/d/a'><dataStore type='file'/></source>", "part of its file"),
        ("<driver type='vmdk'/><source file='/d/a'/>", "format vmdk"),
        ("<source file='/d/a'/>", "format unknown"),
    ],
)
def test_obstacles(inner: str, text: str) -> None:
    assert text in (reason(inner) or "")


def test_no_obstacle() -> None:
    assert reason(FILE) is None
    assert reason("<driver type='raw'/><source dev='/dev/x'/>", kind="block") is None


@pytest.mark.parametrize("kind", ["network", "volume", "nvme", "vhostuser", "dir"])
def test_kinds(kind: str) -> None:
    assert f"of type {kind}" in (reason("<driver type='raw'/><source dir='/x'/>", kind=kind) or "")


def test_backing_layers_count_as_well() -> None:
    below = "<backingStore type='network'><format type='raw'/><source protocol='nbd' name='x'/></backingStore>"
    assert "of type network" in (reason(FILE + below) or "")


def test_lun() -> None:
    assert "LUN" in (reason("<driver type='raw'/><source dev='/dev/x'/>", kind="block", device="lun") or "")


def test_entities_are_not_resolved() -> None:
    bomb = "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><domain><name>&a;</name></domain>"
    assert "root:" not in etree.tostring(parse_xml(bomb), encoding="unicode")
    assert parse_domain(bomb).name in ("", None)
