"""The VMs whose disks are backed up: shut off, or running idle with a disk that is written to by us."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt_qemu

from tests.bed import Bed
from tests.bed.daemon import SessionHost
from tests.bed.disks import Disk
from tests.bed.machine import Machine

_DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend"


@contextmanager
def a_bed() -> Iterator[Bed]:
    """A private libvirtd and a bed on it."""
    host = SessionHost()
    try:
        host.start()
        with Bed(host) as bed:
            yield bed
    finally:
        host.close()


def idle(bed: Bed, name: str, *disks: Path, boot: bool = False) -> Machine:
    """A VM with raw disks, which can discard."""
    given = [Disk(bed.host.give(disk), "raw") for disk in disks]
    machine = bed.machine(given, name=name, mode="idle", agent=False)
    if boot:
        xml = machine.xml(inactive=True).replace("type='raw'", "type='raw' discard='unmap'")
        machine.connection.defineXML(xml)
        machine.boot()
    return machine


def change(bed: Bed, machine: Machine, size: int, seed: int, block: int, count: int) -> int:
    """Write blocks anywhere into a running VM's first disk, of bytes that do not compress; returns how many bytes."""
    source = random.Random(seed)
    pattern = bed.directory / "pattern"
    pattern.touch()
    bed.host.give(pattern)
    for at in source.sample(range(size // block), count):
        pattern.write_bytes(source.randbytes(block))
        qemu_io(machine, f"write -q -s {pattern} {at * block} {block}")
    return block * count


def qemu_io(machine: Machine, command: str) -> None:
    """What a guest could ask of its first disk."""
    asked = f'qemu-io -d {_DEVICE} "{command}"'
    said = libvirt_qemu.qemuMonitorCommand(machine.domain, asked, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
    if said.strip():
        raise RuntimeError(f"QEMU did not do {command}: {said}")
