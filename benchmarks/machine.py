"""The VMs whose disks are backed up: one that is shut off, one that runs idle and whose disk is written to by us."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import libvirt_qemu

from tests.bed import Bed
from tests.bed.daemon import SessionHost
from tests.bed.disks import Disk
from tests.bed.machine import Machine

BLOCK = 64 * 1024
BLOCKS = 256
_DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend"


@dataclass(frozen=True, slots=True)
class Vms:
    uri: str
    off: str
    running: str
    bed: Bed
    machine: Machine
    #: bytes
    size: int

    def change(self, seed: int) -> None:
        """Write 16 MiB into the running VM's disk: blocks anywhere, of bytes that do not compress."""
        source = random.Random(seed)
        pattern = self.bed.directory / "pattern"
        pattern.touch()
        self.bed.host.give(pattern)
        domain = self.machine.domain
        for block in source.sample(range(self.size // BLOCK), BLOCKS):
            pattern.write_bytes(source.randbytes(BLOCK))
            command = f'qemu-io -d {_DEVICE} "write -q -s {pattern} {block * BLOCK} {BLOCK}"'
            said = libvirt_qemu.qemuMonitorCommand(domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
            if said.strip():
                raise RuntimeError(f"QEMU did not write: {said}")


@contextmanager
def vms(disk: Path, copy: Path) -> Iterator[Vms]:
    """Two VMs on a private libvirtd: `disk` belongs to the one that is off, `copy` to the one that runs."""
    host = SessionHost()
    host.start()
    try:
        with Bed(host) as bed:
            off = bed.machine([Disk(host.give(disk), "raw")], name="off", mode="idle", agent=False)
            running = bed.machine([Disk(host.give(copy), "raw")], name="running", mode="idle", agent=False)
            running.boot()
            yield Vms(bed.uri, off.name, running.name, bed, running, disk.stat().st_size)
    finally:
        host.close()
