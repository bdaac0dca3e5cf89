"""The definition of a VM that is started for a test of its restore point, and of nothing else. Pure.

Built anew from an allow-list: nothing of the captured definition is copied but a few words that are checked, one by
one. What it says of networks, devices, folders and files of the host, of programs, labels, pools, firmware elsewhere
than where this host has its own, is not taken over, whoever wrote it.

Promises: no network card; no disk but those given, in their own scratch directory; no device of the host, no folder, no
channel but the guest agent's, one serial console that only a reader of libvirt's stream gets; memory and processors are
no more than the limits; it names itself as ours, with its scratch directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lxml import etree
from msgspec import Struct

from raksha.errors import MetadataInvalid
from raksha.virt.libvirt.domain_xml import parse_xml

#: of the names of such VMs; their UUIDs follow
PREFIX = "raksha-test-"
#: of what the definition says of itself
SPACE = "urn:raksha:test:1"
MIB = 1 << 20

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_TARGET = re.compile(r"[a-z]{2,3}[a-z]")
_SERIAL = re.compile(r"[A-Za-z0-9_.+-]{1,128}")
_BUSES = ("virtio", "scsi", "sata", "ide", "usb")
_SCSI = ("virtio-scsi", "virtio-transitional", "virtio-non-transitional", "lsilogic", "lsisas1068", "lsisas1078",
         "auto", "buslogic", "vmpvscsi")  # fmt: skip
_FEATURES = ("acpi", "apic", "pae")
_UNITS = {"b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "MB": 1000**2, "M": MIB, "MiB": MIB,
          "GB": 1000**3, "G": 1 << 30, "GiB": 1 << 30, "TB": 1000**4, "T": 1 << 40, "TiB": 1 << 40}  # fmt: skip
_LEAST_MEMORY = 64 * MIB
_STANDARD_MEMORY = 1 << 30
#: bytes a second that a guest may write to all of its disks each
_WRITES = 128 * MIB


class BootHost(Struct, frozen=True):
    """What this host can do."""

    kvm: bool
    #: its own UEFI firmware, by absolute path
    loaders: frozenset[str] = frozenset()


class BootLimits(Struct, frozen=True):
    #: bytes
    memory: int
    vcpus: int


class BootPlan(Struct, frozen=True):
    """What is to be started."""

    name: str
    xml: str
    #: bytes that the VM gets
    memory: int


def kind_of(xml: str) -> tuple[str, str | None]:
    """Architecture and machine that a definition names. Raises `MetadataInvalid`."""
    found = _parsed(xml).find("./os/type")
    arch, machine = (found.get("arch", ""), found.get("machine", "")) if found is not None else ("", "")
    return _word(arch) or "x86_64", _word(machine)


def is_test(name: str, uuid: str) -> bool:
    """Whether a domain is one of these, by its name."""
    return name == PREFIX + uuid


def scratch_of(xml: str) -> Path | None:
    """The directory that one of these names; None: it is none."""
    told = parse_xml(xml).findtext(f"./metadata/{{{SPACE}}}test/{{{SPACE}}}scratch")
    return Path(told) if told else None


def boot_plan(
    xml: str, identity: str, scratch: Path, disks: Mapping[str, Path], nvram: Path | None, host: BootHost,
    limits: BootLimits,
) -> BootPlan:  # fmt: skip
    """`disks`: qcow2 files by target. `nvram`: UEFI variables as they were captured. Raises `MetadataInvalid`."""
    had = _parsed(xml)
    arch, machine = kind_of(xml)
    memory = max(_LEAST_MEMORY, min(_memory(had), limits.memory))
    # what ran without KVM had a reason for it, even where there seems to be some
    kvm = host.kvm and had.get("type", "kvm") == "kvm"
    root = etree.Element("domain", type="kvm" if kvm else "qemu")
    _text(root, "name", PREFIX + identity)
    _text(root, "uuid", identity)
    about = etree.SubElement(etree.SubElement(root, "metadata"), f"{{{SPACE}}}test", nsmap={"raksha": SPACE})
    _text(about, f"{{{SPACE}}}scratch", str(scratch))
    _text(root, "memory", str(memory // 1024)).set("unit", "KiB")
    _text(root, "vcpu", str(max(1, min(_number(had.findtext("vcpu")), limits.vcpus))))
    secure = _firmware(root, had, arch, machine, nvram, host)
    features = etree.SubElement(root, "features")
    for name in _FEATURES:
        if had.find(f"./features/{name}") is not None:
            etree.SubElement(features, name)
    if secure:
        etree.SubElement(features, "smm", state="on")
    etree.SubElement(root, "cpu", mode="host-passthrough" if kvm else "maximum")
    clock = had.find("clock")
    local = clock is not None and clock.get("offset") == "localtime"
    etree.SubElement(root, "clock", offset="localtime" if local else "utc")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(root, f"on_{event}", action)
    devices = etree.SubElement(root, "devices")
    _disks(devices, had, disks)
    _others(devices, had, arch)
    return BootPlan(PREFIX + identity, etree.tostring(root, encoding="unicode"), memory)


def _parsed(xml: str) -> etree._Element:
    try:
        root = parse_xml(xml)
    except etree.XMLSyntaxError as error:
        raise MetadataInvalid(name="domain XML", detail=error) from error
    if root.tag != "domain":
        raise MetadataInvalid(name="domain XML", detail="it is no domain")
    return root


def _firmware(
    root: etree._Element, had: etree._Element, arch: str, machine: str | None, nvram: Path | None, host: BootHost
) -> bool:
    """Whether it boots securely, which needs SMM."""
    system = etree.SubElement(root, "os")
    kind = etree.SubElement(system, "type", arch=arch)
    kind.text = "hvm"
    if machine:
        kind.set("machine", machine)
    loader = had.find("./os/loader")
    stated = had.find("os")
    efi = stated is not None and stated.get("firmware") == "efi"
    if not efi and (loader is None or loader.get("type") != "pflash"):
        return False
    path = (loader.text or "").strip() if loader is not None else ""
    secure = loader is not None and loader.get("secure") == "yes"
    if path in host.loaders and nvram is not None:
        element = _text(system, "loader", path)
        element.set("readonly", "yes")
        element.set("type", "pflash")
    else:
        system.set("firmware", "efi")
        element = etree.SubElement(system, "loader")
    if secure:
        element.set("secure", "yes")
    if nvram is not None:
        _text(system, "nvram", str(nvram))
    return secure


def _disks(devices: etree._Element, had: etree._Element, disks: Mapping[str, Path]) -> None:
    known: dict[str, etree._Element] = {}
    for element in had.iterfind("./devices/disk"):
        target = element.find("target")
        if target is not None:
            known.setdefault(target.get("dev", ""), element)
    # as they stood in the definition: firmware boots from the first
    order = [name for name in known if name in disks] + [name for name in disks if name not in known]
    for number, name in enumerate(order):
        disk = etree.SubElement(devices, "disk", type="file", device="disk")
        etree.SubElement(disk, "driver", name="qemu", type="qcow2", cache="unsafe", discard="unmap")
        etree.SubElement(disk, "source", file=str(disks[name]))
        bus, serial, boot = _of_disk(known.get(name))
        dev = name if _TARGET.fullmatch(name) else f"vd{chr(ord('a') + number % 26)}"
        etree.SubElement(disk, "target", dev=dev, bus=bus if dev == name else "virtio")
        tune = etree.SubElement(disk, "iotune")
        _text(tune, "write_bytes_sec", str(_WRITES))
        if serial:
            _text(disk, "serial", serial)
        if had.find("./devices/disk/boot") is None:
            boot = number + 1
        if boot:
            etree.SubElement(disk, "boot", order=str(boot))


def _of_disk(had: etree._Element | None) -> tuple[str, str | None, int]:
    """Bus, serial number, and place in the order of booting (0: none)."""
    if had is None:
        return "virtio", None, 0
    target, boot = had.find("target"), had.find("boot")
    bus = target.get("bus", "") if target is not None else ""
    serial = had.findtext("serial") or ""
    order = _number(boot.get("order")) if boot is not None else 0
    return bus if bus in _BUSES else "virtio", serial if _SERIAL.fullmatch(serial) else None, min(order, 999)


def _others(devices: etree._Element, had: etree._Element, arch: str) -> None:
    for element in had.iterfind("./devices/controller[@type='scsi']"):
        model = element.get("model", "")
        if model in _SCSI:
            index = str(min(_number(element.get("index", "0")), 31))
            etree.SubElement(devices, "controller", type="scsi", index=index, model=model)
    if devices.find("./disk/target[@bus='usb']") is None:
        etree.SubElement(devices, "controller", type="usb", model="none")
    # a pseudo terminal: what the guest writes is read, or lost, and fills nothing
    etree.SubElement(devices, "serial", type="pty")
    channel = etree.SubElement(devices, "channel", type="unix")
    etree.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    if arch in ("x86_64", "i686"):
        etree.SubElement(etree.SubElement(devices, "video"), "model", type="vga")
    random = etree.SubElement(devices, "rng", model="virtio")
    _text(random, "backend", "/dev/urandom").set("model", "random")
    etree.SubElement(devices, "memballoon", model="none")


def _memory(had: etree._Element) -> int:
    element = had.find("memory")
    if element is None:
        return _STANDARD_MEMORY
    return _number(element.text) * _UNITS.get(element.get("unit", "KiB"), 1024)


def _number(text: str | None) -> int:
    """0 for what is none."""
    stripped = (text or "").strip()
    return int(stripped) if stripped.isascii() and stripped.isdigit() and len(stripped) < 16 else 0


def _word(text: str) -> str | None:
    return text if _WORD.fullmatch(text) else None


def _text(parent: etree._Element, tag: str, text: str) -> etree._Element:
    element = etree.SubElement(parent, tag)
    element.text = text
    return element
