"""A new domain from a captured definition: new name, identity and disks; nothing of the old VM is touched or shared.

`plan_domain` is pure. What cannot be taken over as it was is changed and said so in the warnings. `define` makes the
persistent definition; starting it is the caller's choice.

Not promised: that host devices, networks or pools that the definition names exist on this host.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress

from lxml import etree
from msgspec import Struct

from raksha.errors import MetadataInvalid, TargetExists, VmNotFound
from raksha.virt.libvirt.connection import Connection, Guest
from raksha.virt.libvirt.domain_xml import parse_xml
from raksha.virt.libvirt.own_source import put_on


class NewDisk(Struct, frozen=True):
    """Where a restored disk lies."""

    #: absolute
    path: str
    #: raw or qcow2
    format: str
    #: file or block
    kind: str = "file"


class PlannedDomain(Struct, frozen=True):
    name: str
    uuid: str
    xml: str
    #: what is not as it was, for a person
    warnings: tuple[str, ...]


def plan_domain(
    xml: str,
    name: str,
    disks: Mapping[str, NewDisk],
    nvram: str | None,
    exists: Callable[[str], bool] = os.path.exists,
    identity: str | None = None,
) -> PlannedDomain:
    """The definition of a new VM. `nvram`: path of its UEFI variables; None: libvirt makes them from the template.
    `identity`: its UUID; None: a new one.

    Raises `MetadataInvalid` for what is no domain definition.
    """
    try:
        root = parse_xml(xml)
    except etree.XMLSyntaxError as error:
        raise MetadataInvalid(name="domain XML", detail=error) from error
    devices = root.find("devices")
    if root.tag != "domain" or devices is None:
        raise MetadataInvalid(name="domain XML", detail="it is no domain with devices")
    identity = identity or str(uuid.uuid4())
    warnings: list[str] = []
    _identify(root, name, identity)
    _remove_labels(root)
    _nvram(root, nvram)
    for disk in devices.findall("disk"):
        warnings += _disk(disk, disks, exists)
    for interface in devices.findall("interface"):
        _interface(interface)
    for kind in ("channel", "serial", "console", "parallel"):
        for device in devices.findall(kind):
            warnings += _character_device(device, name)
    for graphics in devices.findall("graphics"):
        _graphics(graphics)
    for cid in devices.iterfind("vsock/cid"):
        cid.attrib.clear()
        cid.set("auto", "yes")
    if devices.find("hostdev") is not None:
        warnings.append("devices of the host are passed through: the new VM can only run where and while they are free")
    return PlannedDomain(name, identity, etree.tostring(root, encoding="unicode"), tuple(warnings))


def _identify(root: etree._Element, name: str, identity: str) -> None:
    root.attrib.pop("id", "")
    for tag, text in (("uuid", identity), ("name", name)):
        element = root.find(tag)
        if element is None:
            element = etree.Element(tag)
            root.insert(0, element)
        element.text = text
    generation = root.find("genid")
    if generation is not None:
        generation.text = str(uuid.uuid4())
    for entry in root.iterfind("./sysinfo/system/entry[@name='uuid']"):
        entry.text = identity
    for alias in list(root.iter("alias")):
        # Those that a person gave begin with "ua-"; the others are libvirt's own.
        if not alias.get("name", "").startswith("ua-"):
            _remove(alias)


def _remove_labels(root: etree._Element) -> None:
    for label in list(root.iter("seclabel")):
        _remove(label)


def _nvram(root: etree._Element, path: str | None) -> None:
    element = root.find("./os/nvram")
    if element is None:
        return
    for source in element.findall("source"):
        element.remove(source)
    element.attrib.pop("type", "")
    element.text = path


def _disk(disk: etree._Element, disks: Mapping[str, NewDisk], exists: Callable[[str], bool]) -> list[str]:
    target = disk.find("target")
    name = target.get("dev", "") if target is not None else ""
    new = disks.get(name)
    if new is not None:
        put_on(disk, new.path, new.kind, new.format)
        return []
    source = disk.find("source")
    path = (source.get("file") or source.get("dev")) if source is not None else None
    readable = source is None or (path is not None and exists(path))
    if disk.get("device") in ("cdrom", "floppy"):
        if source is not None and not readable:
            disk.remove(source)
            return [f"{name}: {path or 'its medium'} is not here; the drive is empty"]
        return []
    if disk.find("readonly") is not None and source is not None and readable:
        return []
    _remove(disk)
    return [f"{name}: not part of this restore; the new VM does not have it"]


def _interface(interface: etree._Element) -> None:
    """Two VMs must share neither address nor name; libvirt makes new ones."""
    for tag in ("mac", "target"):
        for element in interface.findall(tag):
            interface.remove(element)
    for source in interface.findall("source"):
        source.attrib.pop("portid", "")
    for parameters in interface.iterfind("virtualport/parameters"):
        parameters.attrib.pop("interfaceid", "")


def _character_device(device: etree._Element, name: str) -> list[str]:
    source = device.find("source")
    device.attrib.pop("tty", "")
    if source is None:
        return []
    kind, path = device.get("type"), source.get("path")
    if kind == "pty" or (kind == "unix" and device.tag == "channel"):
        device.remove(source)
    elif kind in ("file", "unix") and path:
        source.set("path", f"{path}-{name}")
        return [f"{device.tag} goes to {path}-{name}"]
    return []


def _graphics(graphics: etree._Element) -> None:
    for attribute in ("port", "tlsPort", "websocket", "socket"):
        graphics.attrib.pop(attribute, "")
    for listen in graphics.findall("listen"):
        listen.attrib.pop("socket", "")
    if graphics.get("type") in ("vnc", "spice", "rdp"):
        graphics.set("autoport", "yes")


def _remove(element: etree._Element) -> None:
    parent = element.getparent()
    if parent is not None:
        parent.remove(element)


def define(connection: Connection, plan: PlannedDomain) -> Guest:
    """Raises `TargetExists` for a name that is taken, `LibvirtFailed`; then nothing is defined."""
    check_name(connection, plan.name)
    return connection.define(plan.xml, plan.name)


def check_name(connection: Connection, name: str) -> None:
    """Raises `TargetExists`."""
    with suppress(VmNotFound):
        connection.guest(name)
        raise TargetExists(target=f"VM {name}")
