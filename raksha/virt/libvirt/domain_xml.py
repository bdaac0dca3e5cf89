"""Reads domain XML into frozen records. Pure: opens nothing, resolves no entities, decides nothing."""

from __future__ import annotations

from lxml import etree
from msgspec import Struct

#: which attribute of <source> holds the place, by type of disk
_SOURCE = {"file": "file", "block": "dev", "dir": "dir", "nvme": "type", "vhostuser": "path"}

#: namespace of what Nova notes in a domain, less its version
_NOVA = "{http://openstack.org/xmlns/libvirt/nova/"


class Layer(Struct, frozen=True):
    """One image of a disk's chain."""

    #: path as the definition spells it; for other kinds something to show
    path: str
    #: libvirt's type: file, block, network, volume, ...
    kind: str
    #: driver, such as raw or qcow2; empty: not stated
    format: str
    #: libvirt's name for it in a running VM: `vda[index]`
    index: int | None = None


class Disk(Struct, frozen=True):
    """One disk of a domain."""

    target: str
    #: disk, cdrom, floppy or lun
    device: str
    bus: str
    #: from the active layer downwards; empty: no medium. Of a VM that is shut off it may end early
    layers: tuple[Layer, ...]
    readonly: bool
    shareable: bool
    transient: bool
    #: any layer is encrypted
    encrypted: bool
    #: a block job with a mirror is under way, or its remains are there
    mirrored: bool
    #: only part of the file is the disk, or its data lies in another one
    sliced: bool
    serial: str | None
    #: attributes of <driver>, such as cache and discard
    driver: tuple[tuple[str, str], ...]

    @property
    def top(self) -> Layer:
        return self.layers[0]


class Domain(Struct, frozen=True):
    """What of a definition matters for a capture."""

    uuid: str
    name: str
    disks: tuple[Disk, ...]
    #: the guest agent's channel: connected, disconnected, or None where there is none (or the VM is shut off)
    agent: str | None
    #: path of the UEFI variables
    nvram: str | None
    #: there is an emulated TPM
    tpm: bool
    #: Nova rebuilds this domain from records of its own
    nova: bool

    def disk(self, target: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.target == target), None)


def parse_xml(xml: str) -> etree._Element:
    """The root element. Raises `lxml.etree.XMLSyntaxError`."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
    return etree.fromstring(xml.encode(), parser)


def parse_domain(xml: str) -> Domain:
    root = parse_xml(xml)
    channel = root.find("./devices/channel/target[@name='org.qemu.guest_agent.0']")
    nvram = root.find("./os/nvram")
    return Domain(
        uuid=root.findtext("uuid") or "",
        name=root.findtext("name") or "",
        disks=tuple(_disk(element) for element in root.iterfind("./devices/disk")),
        agent=None if channel is None else channel.get("state", "disconnected"),
        nvram=_nvram_path(nvram) if nvram is not None else None,
        tpm=root.find("./devices/tpm/backend[@type='emulator']") is not None,
        nova=any(str(element.tag).startswith(_NOVA) for element in root.iterfind("./metadata/*")),
    )


def _nvram_path(nvram: etree._Element) -> str | None:
    source = nvram.find("source")
    path = source.get("file") if source is not None else nvram.text
    return path.strip() if path and path.strip() else None


def _disk(element: etree._Element) -> Disk:
    target = element.find("target")
    driver = element.find("driver")
    return Disk(
        target=(target.get("dev") if target is not None else None) or "",
        device=element.get("device", "disk"),
        bus=(target.get("bus") if target is not None else None) or "",
        layers=tuple(_layers(element)),
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        encrypted=next(element.iter("encryption"), None) is not None,
        mirrored=element.find("mirror") is not None,
        sliced=any(next(element.iter(name), None) is not None for name in ("slices", "dataStore")),
        serial=element.findtext("serial"),
        driver=tuple(sorted((str(key), str(value)) for key, value in driver.items())) if driver is not None else (),
    )


def _layers(disk: etree._Element) -> list[Layer]:
    driver = disk.find("driver")
    layers: list[Layer] = []
    element: etree._Element | None = disk
    form = driver.get("type", "") if driver is not None else ""
    while element is not None and (source := element.find("source")) is not None:
        kind = element.get("type", "file")
        # The active layer carries its index on <source>, the others on <backingStore>.
        index = source.get("index") or element.get("index")
        layers.append(Layer(_place(source, kind), kind, form, int(index) if index else None))
        element = element.find("backingStore")
        if element is not None:
            stated = element.find("format")
            form = stated.get("type", "") if stated is not None else ""
    return layers


def _place(source: etree._Element, kind: str) -> str:
    if kind == "network":
        return f"{source.get('protocol')}:{source.get('name')}"
    if kind == "volume":
        return f"{source.get('pool')}/{source.get('volume')}"
    return source.get(_SOURCE.get(kind, "file")) or ""
