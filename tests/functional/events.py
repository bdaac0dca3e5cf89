"""What befalls a VM while a command is at work on it, and what its owner does afterwards."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import libvirt

from raksha.virt.libvirt.domain_xml import parse_domain
from tests.bed import SessionHost
from tests.bed.machine import Machine
from tests.functional.forked import alive
from tests.functional.overlay_kit import MIB


class Events:
    """What befalls a VM. Each leaves a guest that can be started, if it does not run."""

    #: bytes, of vda
    size = 5 * MIB

    def __init__(self, machine: Machine, host: SessionHost, directory: Path) -> None:
        self.machine, self.host = machine, host
        self.foreign = directory / "foreign.qcow2"

    @property
    def domain(self) -> libvirt.virDomain:
        return self.machine.domain

    def kill_qemu(self) -> None:
        pid = int(next((self.host.directory / "r/libvirt/qemu/run").glob(f"{self.domain.name()}.pid")).read_text())
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while alive(pid) or self.domain.isActive():
            assert time.monotonic() < deadline, "libvirt does not notice"
            time.sleep(0.02)

    def kill_libvirtd(self) -> None:
        self.host.kill()
        self.host.start()

    def kill_both(self) -> None:
        pid = int(next((self.host.directory / "r/libvirt/qemu/run").glob(f"{self.domain.name()}.pid")).read_text())
        self.host.kill()
        os.kill(pid, signal.SIGKILL)
        self.host.start()

    def restart_libvirtd(self) -> None:
        self.host.stop()
        self.host.start()

    def destroy(self) -> None:
        self.domain.destroy()

    def destroy_and_start(self) -> None:
        self.domain.destroy()
        self._look_at_disks()
        self.domain.create()

    def reset(self) -> None:
        self.domain.reset()

    def suspend_and_resume(self) -> None:
        self.domain.suspend()
        self.domain.resume()

    def resize_a_disk(self) -> None:
        with suppress(libvirt.libvirtError):  # not while a block job has the disk
            self.domain.blockResize("vda", self.size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
            self._resized()

    def detach_a_disk(self) -> None:
        """From the definition; the guest, which has no operating system, would not let it go."""
        self.detached = self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        disk = self.detached.partition("<target dev='vdb'")
        begin, end = disk[0].rindex("<disk "), self.detached.index("</disk>", len(disk[0])) + len("</disk>")
        self.domain.detachDeviceFlags(self.detached[begin:end], libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        self.disk = self.detached[begin:end]

    def foreign_snapshot(self) -> None:
        xml = f"""<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='{self.foreign}'/></disk>
            <disk name='vdb' snapshot='no'/></disks></domainsnapshot>"""
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        with suppress(libvirt.libvirtError):  # not while a block job has the disk
            self.domain.snapshotCreateXML(xml, flags)

    def _look_at_disks(self) -> None:
        """The VM is off for a moment."""

    def _resized(self) -> None:
        """vda has its new size."""

    def repair(self) -> None:
        """What the owner does afterwards."""
        if hasattr(self, "disk") and "dev='vdb'" not in self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE):
            self._attach_again()
        if self.foreign.exists():
            self._commit_foreign()

    def _attach_again(self) -> None:
        live = self.domain.XMLDesc() if self.domain.isActive() else self.detached
        part = live.partition("<target dev='vdb'")[0]
        source = part[part.rindex("<disk ") :].split("<source file='")[1].split("'")[0]
        old = self.disk.split("<source file='")[1].split("'")[0]
        self.domain.attachDeviceFlags(self._now(old, source), libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def _now(self, old: str, source: str) -> str:
        """The disk as the running VM has it; libvirt reads what is below from the headers."""
        head, _, tail = self.disk.replace(old, source, 1).partition("<backingStore")
        kind = "qcow2" if source.endswith(".qcow2") else "raw"
        text = f"{head}<target{tail.rpartition('<target')[2]}" if tail else head
        return text.replace("type='raw'", f"type='{kind}'").replace("type='qcow2'", f"type='{kind}'")

    def _commit_foreign(self) -> None:
        domain = self.domain
        was_running = domain.isActive()
        if not was_running:
            domain.create()
        disk = parse_domain(self.machine.xml()).disk("vda")
        assert disk is not None and disk.top.path == str(self.foreign)
        below = disk.layers[1].path
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        domain.blockCommit("vda", below, None, 0, flags)
        deadline = time.monotonic() + 30
        while True:
            try:
                domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
                break
            except libvirt.libvirtError as error:
                # it may have copied everything and not be ready yet
                assert error.get_error_code() == libvirt.VIR_ERR_BLOCK_COPY_ACTIVE, error
                assert time.monotonic() < deadline
                time.sleep(0.05)
        self.foreign.unlink()


#: after these there is another QEMU, or none
DEADLY = ("kill_qemu", "kill_both", "destroy", "destroy_and_start")
EVENTS = [name for name in vars(Events) if not name.startswith("_") and name not in ("domain", "repair", "size")]
