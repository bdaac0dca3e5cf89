"""The definition by which a VM of a restore point is booted for a test: as it was captured, or, where its disks were
taken from storage, one that follows from what the cloud knew of the server. It is only read (`boot_xml`), never used
as it is.
"""

from __future__ import annotations

from lxml import etree

from raksha.server import Server
from raksha.vault.metadata import VMMetadata


def definition_of(machine: VMMetadata) -> str | None:
    """None: there is no machine, only a volume."""
    if machine.domain_xml:
        return machine.domain_xml
    return None if machine.server is None else _of_server(machine.server)


def _of_server(server: Server) -> str:
    root = etree.Element("domain")
    etree.SubElement(root, "memory", unit="MiB").text = str(server.flavor.ram)
    etree.SubElement(root, "vcpu").text = str(server.flavor.vcpus)
    built = server.image_properties
    system = etree.SubElement(root, "os")
    efi = built.get("hw_firmware_type") == "uefi"
    if efi:
        system.set("firmware", "efi")
    # Nova's own default is `pc`; what needs UEFI is made for `q35`
    machine = built.get("hw_machine_type") or ("q35" if efi else "pc")
    etree.SubElement(system, "type", arch=built.get("hw_architecture", "x86_64"), machine=machine)
    features = etree.SubElement(root, "features")
    for name in ("acpi", "apic"):
        etree.SubElement(features, name)
    devices = etree.SubElement(root, "devices")
    bus = built.get("hw_disk_bus", "virtio")
    if bus == "scsi":
        etree.SubElement(devices, "controller", type="scsi", index="0", model=built.get("hw_scsi_model", "lsilogic"))
    for volume in sorted(server.volumes, key=lambda each: (each.boot_index is None, each.boot_index or 0)):
        if volume.target:
            disk = etree.SubElement(devices, "disk", device="disk")
            etree.SubElement(disk, "target", dev=volume.target, bus=bus)
    return etree.tostring(root, encoding="unicode")
