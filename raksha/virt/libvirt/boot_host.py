"""What this host can do for a VM that is booted for a test, as libvirt tells it."""

from __future__ import annotations

from raksha.virt.libvirt.boot_xml import BootHost, kind_of
from raksha.virt.libvirt.connection import Connection
from raksha.virt.libvirt.domain_xml import parse_xml


def boot_host(connection: Connection, definition: str) -> BootHost:
    """For machines such as the definition has. Raises `MetadataInvalid`."""
    arch, machine = kind_of(definition)
    found = connection.abilities(arch, machine)
    told = found.get("kvm") or found.get("qemu")
    if told is None:
        return BootHost(kvm=False)
    loaders = (element.text or "" for element in parse_xml(told).iterfind("./os/loader/value"))
    return BootHost(kvm="kvm" in found, loaders=frozenset(loaders))
