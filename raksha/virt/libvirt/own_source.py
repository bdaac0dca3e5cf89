"""Domain XML as it is without our overlays: each disk on the VM's own file again. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from lxml import etree

from raksha.virt.libvirt.domain_xml import Layer, parse_xml

_ATTRIBUTE = {"file": "file", "block": "dev"}


def own_sources(xml: str, bases: Mapping[str, Layer]) -> str:
    """The definition with the disks (by target) put back on their own files, otherwise unchanged."""
    if not bases:
        return xml
    root = parse_xml(xml)
    for disk in root.iterfind("./devices/disk"):
        target = disk.find("target")
        base = bases.get(target.get("dev", "")) if target is not None else None
        if base is not None:
            put_on(disk, base.path, base.kind, base.format)
    return etree.tostring(root, encoding="unicode")


def put_on(disk: etree._Element, path: str, kind: str, form: str) -> None:
    """Make a `<disk>` element name this file (or block device) and nothing below it."""
    disk.set("type", kind)
    for residue in disk.findall("backingStore") + disk.findall("mirror"):
        disk.remove(residue)
    driver = disk.find("driver")
    if driver is None:
        driver = etree.Element("driver", name="qemu")
        disk.insert(0, driver)
    driver.set("type", form)
    source = disk.find("source")
    if source is None:
        source = etree.Element("source")
        driver.addnext(source)
    for attribute in ("file", "dev", "dir", "protocol", "name", "pool", "volume", "index", "mode", "startupPolicy"):
        if attribute in source.attrib:
            del source.attrib[attribute]
    for child in list(source):
        source.remove(child)
    source.set(_ATTRIBUTE[kind], path)
