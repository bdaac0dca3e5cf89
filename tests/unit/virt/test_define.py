"""A new VM's definition shares nothing with the old one's; an own definition is put back exactly."""

from __future__ import annotations

import pytest

from raksha.errors import MetadataInvalid
from raksha.virt.libvirt.define import NewDisk, PlannedDomain, plan_domain
from raksha.virt.libvirt.domain_xml import Layer, parse_domain, parse_xml
from raksha.virt.libvirt.own_source import own_sources

OLD = "6f2ac3b4-0000-4000-8000-000000000001"
CAPTURED = f"""<domain type='kvm' id='3'><name>web</name><uuid>{OLD}</uuid><genid>{OLD}</genid>
<sysinfo type='smbios'><system><entry name='uuid'>{OLD}</entry></system></sysinfo>
<os><type>hvm</type><nvram template='/usr/share/x.fd'>/var/lib/libvirt/qemu/nvram/web.fd</nvram></os>
<seclabel type='dynamic' model='dac'><label>+64055:+108</label></seclabel><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
  <source file='/d/web.raksha-1-2-vda.qcow2' index='4'><seclabel model='dac' relabel='no'/></source>
  <backingStore type='file'><format type='qcow2'/><source file='/d/web.qcow2'/></backingStore>
  <target dev='vda' bus='virtio'/><boot order='1'/><alias name='virtio-disk0'/></disk>
<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/data'/>
  <target dev='vdb' bus='virtio'/><alias name='ua-data'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/d/scratch'/><target dev='vdc'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/iso/tools'/><target dev='vdd'/>
  <readonly/></disk>
<disk type='file' device='cdrom'><source file='/iso/here.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
<disk type='file' device='cdrom'><source file='/iso/gone.iso'/><target dev='sdb' bus='sata'/><readonly/></disk>
<interface type='network'><mac address='52:54:00:11:22:33'/><source network='default' portid='{OLD}' bridge='virbr0'/>
  <target dev='vnet3'/><virtualport type='openvswitch'><parameters interfaceid='{OLD}'/></virtualport></interface>
<serial type='file'><source path='/var/log/web.log'/></serial>
<console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/></console>
<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/3-web/agent'/>
  <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
<graphics type='vnc' port='5900' autoport='no' listen='127.0.0.1'>
  <listen type='address' address='127.0.0.1'/></graphics>
<vsock><cid auto='no' address='42'/></vsock>
<hostdev mode='subsystem' type='pci'/>
</devices></domain>"""

DISKS = {"vda": NewDisk("/new/vda.qcow2", "qcow2"), "vdb": NewDisk("/dev/loop7", "raw", "block")}


def planned(nvram: str | None = "/new/nvram.fd") -> PlannedDomain:
    return plan_domain(CAPTURED, "web-2", DISKS, nvram, exists=lambda path: path in ("/iso/here.iso", "/iso/tools"))


def test_disks() -> None:
    domain = parse_domain(planned().xml)
    assert [disk.target for disk in domain.disks] == ["vda", "vdb", "vdd", "sda", "sdb"]
    assert domain.disks[0].layers == (Layer("/new/vda.qcow2", "file", "qcow2"),)
    assert domain.disks[1].layers == (Layer("/dev/loop7", "block", "raw"),)
    assert dict(domain.disks[0].driver)["cache"] == "none"
    assert domain.disks[3].top.path == "/iso/here.iso" and domain.disks[4].layers == ()


def test_nothing_is_shared() -> None:
    plan = planned()
    assert plan.uuid != OLD and plan.name == "web-2"
    for residue in (
        OLD, "52:54:00:11:22:33", "raksha-1", "/d/web", "/d/scratch", "/dev/vg/data", "backingStore", "index=",
        "seclabel", "virtio-disk0", "vnet3", "/run/libvirt", "5900", 'id="3"', "/dev/pts/3", 'address="42"',
        "/var/lib/libvirt",
    ):  # fmt: skip
        assert residue not in plan.xml, residue
    for kept in ("ua-data", "virbr0", "org.qemu.guest_agent.0", "127.0.0.1", 'order="1"'):
        assert kept in plan.xml, kept
    root = parse_xml(plan.xml)
    assert root.findtext("uuid") == plan.uuid == root.findtext("./sysinfo/system/entry")
    assert root.findtext("genid") not in (OLD, plan.uuid)
    assert root.findtext("./os/nvram") == "/new/nvram.fd"


def test_what_a_person_is_told() -> None:
    told = " / ".join(planned().warnings)
    for text in ("vdc: not part", "sdb: /iso/gone.iso is not here", "/var/log/web.log-web-2", "devices of the host"):
        assert text in told
    assert "vdd" not in told and "sda" not in told


def test_nvram_from_the_template() -> None:
    root = parse_xml(planned(None).xml)
    nvram = root.find("./os/nvram")
    assert nvram is not None and not (nvram.text or "").strip() and nvram.get("template") == "/usr/share/x.fd"


def test_two_plans_are_two_vms() -> None:
    assert planned().uuid != planned().uuid


@pytest.mark.parametrize("xml", ["", "<domain", "<network/>", "<domain/>"])
def test_no_domain(xml: str) -> None:
    with pytest.raises(MetadataInvalid):
        plan_domain(xml, "x", {}, None)


def test_own_sources() -> None:
    before = CAPTURED.split("<devices>")[0]
    bases = {"vda": Layer("/d/web.qcow2", "file", "qcow2")}
    after = own_sources(CAPTURED, bases)
    domain = parse_domain(after)
    assert domain.disks[0].layers == (Layer("/d/web.qcow2", "file", "qcow2"),)
    assert domain.disks[1:] == parse_domain(CAPTURED).disks[1:]
    assert parse_xml(after).findtext("uuid") == OLD and "seclabel" in before
    assert own_sources(CAPTURED, {}) == CAPTURED


def test_own_source_is_a_block_device() -> None:
    after = own_sources(CAPTURED, {"vda": Layer("/dev/vg/web", "block", "raw")})
    assert parse_domain(after).disks[0].layers == (Layer("/dev/vg/web", "block", "raw"),)
    assert "type='block'" in after.replace('"', "'") and "/d/web.raksha" not in after
