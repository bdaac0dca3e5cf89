"""The definition of a VM that is booted for a test: an allow-list, whatever the captured one says."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from lxml import etree

from raksha.errors import MetadataInvalid
from raksha.virt.libvirt.boot_xml import MIB, BootHost, BootLimits, BootPlan, boot_plan, is_test, kind_of, scratch_of

UUID = str(uuid.UUID(int=7))
SCRATCH = Path("/srv/boots/boot-7")
LOADER = "/usr/share/OVMF/OVMF_CODE_4M.fd"
PLAIN = """<domain type='kvm' id='3'><name>web</name><uuid>1</uuid><memory unit='GiB'>64</memory><vcpu>32</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><features><acpi/><apic/><kvm/></features>
  <clock offset='localtime'/><devices>
  <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/sdx'/>
    <target dev='sda' bus='scsi'/><serial>root-1</serial></disk>
  <disk type='file' device='disk'><source file='/x'/><target dev='sdb' bus='scsi'/></disk>
  <controller type='scsi' index='0' model='virtio-scsi'/>{more}</devices>{end}</domain>"""

#: each names something of the host, or leads out of the VM
HOSTILE = {
    "a network": "<interface type='bridge'><source bridge='br0'/></interface>",
    "a network of QEMU": "<interface type='user'/>",
    "a device of the host": "<hostdev mode='subsystem' type='pci'><source><address domain='0'/></source></hostdev>",
    "a folder": "<filesystem type='mount'><source dir='/'/><target dir='root'/></filesystem>",
    "another disk": "<disk type='file' device='disk'><source file='/etc/shadow'/><target dev='vdz'/></disk>",
    "a medium": "<disk type='file' device='cdrom'><source file='/etc/shadow'/><target dev='hdc' bus='ide'/></disk>",
    "an emulator": "<emulator>/tmp/evil</emulator>",
    "a console into a file": "<serial type='file'><source path='/etc/cron.d/x'/></serial>",
    "a console over the net": "<serial type='tcp'><source mode='connect' host='10.0.0.1' service='22'/></serial>",
    "a channel": "<channel type='unix'><source path='/run/x'/><target type='virtio' name='x'/></channel>",
    "a redirected device": "<redirdev bus='usb' type='tcp'><source host='h' service='1'/></redirdev>",
    "a screen": "<graphics type='vnc' listen='0.0.0.0'/>",
    "randomness of the host": "<rng model='virtio'><backend model='egd' type='tcp'/></rng>",
    "memory as a file": "<shmem name='x'><model type='ivshmem-plain'/></shmem>",
    "a vsock": "<vsock model='virtio'><cid address='3'/></vsock>",
    "a TPM of the host": "<tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
    "a smart card": "<smartcard mode='host'/>",
    "a watchdog that dumps": "<watchdog model='i6300esb' action='dump'/>",
}
#: beside <devices>
ENDS = {
    "words for QEMU": "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-x'/>"
    "</q:commandline>",
    "a label": "<seclabel type='static' model='dac'><label>+0:+0</label></seclabel>",
    "a cgroup": "<resource><partition>/x</partition></resource>",
    "security off": "<launchSecurity type='sev'/>",
    "huge pages": "<memoryBacking><source type='file'/></memoryBacking>",
    "an identity": "<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>",
}
ALLOWED = {"disk", "controller", "serial", "channel", "video", "rng", "memballoon"}


def planned(xml: str, host: BootHost | None = None, nvram: Path | None = None, *, memory: int = 512) -> BootPlan:
    disks = {"sda": SCRATCH / "disk0.qcow2", "sdb": SCRATCH / "disk1.qcow2"}
    return boot_plan(xml, UUID, SCRATCH, disks, nvram, host or BootHost(kvm=False), BootLimits(memory * MIB, 2))


def root_of(plan: BootPlan) -> etree._Element:
    return etree.fromstring(plan.xml)


def assert_harmless(root: etree._Element) -> None:
    devices = root.find("devices")
    assert devices is not None
    assert {str(each.tag) for each in devices} <= ALLOWED
    files = [each.get("file") for each in devices.iterfind("disk/source")]
    assert files == [f"{SCRATCH}/disk0.qcow2", f"{SCRATCH}/disk1.qcow2"]
    assert [dict(each.attrib) for each in devices.findall("serial")] == [{"type": "pty"}]
    (channel,) = devices.findall("channel")
    assert [dict(each.attrib) for each in channel] == [{"type": "virtio", "name": "org.qemu.guest_agent.0"}]
    assert [each.text for each in devices.iterfind("rng/backend")] == ["/dev/urandom"]
    top = {"name", "uuid", "metadata", "memory", "vcpu", "os", "features", "cpu", "clock", "on_poweroff", "on_reboot",
           "on_crash", "devices"}  # fmt: skip
    assert {str(each.tag) for each in root} <= top


def test_what_is_taken_over() -> None:
    plan = planned(PLAIN.format(more="", end=""))
    root = root_of(plan)
    assert_harmless(root)
    assert (root.get("type"), root.findtext("name"), root.findtext("uuid")) == ("qemu", f"raksha-test-{UUID}", UUID)
    assert (root.findtext("memory"), root.findtext("vcpu"), plan.memory) == (str(512 * 1024), "2", 512 * MIB)
    assert [dict(each.attrib) for each in root.iterfind("os/type")] == [{"arch": "x86_64", "machine": "pc-q35-7.2"}]
    assert [each.tag for each in root.iterfind("features/*")] == ["acpi", "apic"]
    assert [each.get("model") for each in root.iterfind("devices/controller[@type='scsi']")] == ["virtio-scsi"]
    disks = root.findall("devices/disk")
    assert [(d.find("target").get("dev"), d.find("target").get("bus")) for d in disks] == [("sda", "scsi"),
                                                                                          ("sdb", "scsi")]  # fmt: skip
    assert [d.findtext("serial") for d in disks] == ["root-1", None]
    assert [d.find("boot").get("order") for d in disks] == ["1", "2"]
    assert is_test(plan.name, UUID) and not is_test(plan.name, str(uuid.UUID(int=8)))
    assert scratch_of(plan.xml) == SCRATCH and scratch_of(PLAIN.format(more="", end="")) is None


@pytest.mark.parametrize(
    ("had", "host", "kind", "cpu"),
    [("kvm", True, "kvm", "host-passthrough"), ("kvm", False, "qemu", "maximum"), ("qemu", True, "qemu", "maximum"),
     ("x", True, "qemu", "maximum")],
)  # fmt: skip
def test_kvm_where_there_is_some_and_the_vm_had_it(had: str, host: bool, kind: str, cpu: str) -> None:
    xml = PLAIN.format(more="", end="").replace("type='kvm'", f"type='{had}'")
    root = root_of(planned(xml, BootHost(kvm=host)))
    assert (root.get("type"), [each.get("mode") for each in root.iterfind("cpu")]) == (kind, [cpu])


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_else_is(name: str) -> None:
    root = root_of(planned(PLAIN.format(more=HOSTILE[name], end="")))
    assert_harmless(root)
    assert etree.tostring(root) == etree.tostring(root_of(planned(PLAIN.format(more="", end="")))), name


@pytest.mark.parametrize("name", ENDS)
def test_nor_is_anything_beside_the_devices(name: str) -> None:
    root = root_of(planned(PLAIN.format(more="", end=ENDS[name])))
    assert etree.tostring(root) == etree.tostring(root_of(planned(PLAIN.format(more="", end="")))), name


@pytest.mark.parametrize(
    ("word", "evil"),
    [("pc-q35-7.2", "pc,accel=x"), ("pc-q35-7.2", "-S"), ("x86_64", "../../x"), ("sda' bus='scsi", "x/../y' bus='fdc"),
     ("root-1", "a,file=/etc/shadow"), ("virtio-scsi", "evil,x=y"), ("index='0'", "index='99999'"),
     (">64<", ">-1<"), (">64<", ">9999999999999999999<"), (">32<", ">many<"), ("GiB", "parsec")],
)  # fmt: skip
def test_words_are_checked(word: str, evil: str) -> None:
    xml = PLAIN.format(more="", end="")
    assert word in xml
    plan = planned(xml.replace(word, evil))
    root = root_of(plan)
    assert evil not in plan.xml and 64 * MIB <= plan.memory <= 512 * MIB
    assert 1 <= int(root.findtext("vcpu") or 0) <= 2
    assert all(int(each.get("index", "0")) < 32 for each in root.iterfind("devices/controller"))


def test_direct_boot_of_files_of_the_host_is_not_taken_over() -> None:
    direct = "<kernel>/etc/shadow</kernel><initrd>/etc/passwd</initrd><cmdline>x</cmdline><dtb>/x</dtb></os>"
    root = root_of(planned(PLAIN.format(more="", end="").replace("</os>", direct)))
    assert [each.tag for each in root.iterfind("os/*")] == ["type"]


@pytest.mark.parametrize(
    ("stated", "host", "nvram", "loader", "efi"),
    [
        (f"<loader type='pflash'>{LOADER}</loader>", {LOADER}, True, LOADER, None),
        # another file of the host, or variables that libvirt has to make anew: firmware as this host has it
        ("<loader type='pflash'>/etc/shadow</loader>", {LOADER}, True, None, "efi"),
        (f"<loader type='pflash'>{LOADER}</loader>", {LOADER}, False, None, "efi"),
        ("<loader type='rom'>/etc/shadow</loader>", {LOADER}, False, None, None),
    ],
)
def test_firmware(stated: str, host: set[str], nvram: bool, loader: str | None, efi: str | None) -> None:
    xml = PLAIN.format(more="", end="").replace("</os>", f"{stated}<nvram template='/x'>/y</nvram></os>")
    path = SCRATCH / "nvram.fd" if nvram else None
    system = root_of(planned(xml, BootHost(kvm=False, loaders=frozenset(host)), path)).find("os")
    assert system is not None
    assert (system.findtext("loader") or None, system.get("firmware")) == (loader, efi)
    assert system.findtext("nvram") == (str(path) if path else None)


def test_secure_boot_needs_its_feature() -> None:
    xml = PLAIN.format(more="", end="").replace("</os>", "<loader secure='yes' type='pflash'>/x</loader></os>")
    root = root_of(planned(xml))
    assert [each.get("secure") for each in root.iterfind("os/loader")] == ["yes"]
    assert root.find("features/smm") is not None


def test_disks_that_the_definition_does_not_have_stand_behind_those_that_it_has() -> None:
    xml = "<domain><os><type/></os><devices><disk><target dev='sdb' bus='sata'/></disk></devices></domain>"
    plan = planned(xml)
    targets = [dict(each.attrib) for each in root_of(plan).iterfind("devices/disk/target")]
    assert targets == [{"dev": "sdb", "bus": "sata"}, {"dev": "sda", "bus": "virtio"}]
    assert kind_of(xml) == ("x86_64", None) and plan.memory == 512 * MIB


@pytest.mark.parametrize("xml", ["", "<network/>", "<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>"])
def test_what_is_no_definition(xml: str) -> None:
    with pytest.raises(MetadataInvalid):
        planned(xml)
