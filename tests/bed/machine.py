"""One guest: its definition, its serial console, its agent."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import libvirt
import libvirt_qemu

from tests.bed.daemon import Host
from tests.bed.disks import Disk
from tests.bed.image import BedError, GuestImage

#: seconds; many times of what it takes on two cores without KVM
BOOT = 60


class Machine:
    """A defined domain. Everything is asked of libvirt anew, so that a restarted daemon does no harm."""

    def __init__(self, host: Host, name: str, serial: Path, xml: str | None = None) -> None:
        """Define it, or find the one that is there under this name."""
        self.host = host
        self.name = name
        #: the file that has all the guest ever printed
        self.serial = serial
        self._connection: libvirt.virConnect | None = None
        domain = self.connection.defineXML(xml) if xml else self.connection.lookupByName(name)
        self.uuid: str = domain.UUIDString()

    @property
    def connection(self) -> libvirt.virConnect:
        """An own connection to the host, renewed if it broke (`isAlive` learns of that too late)."""
        if self._connection is not None:
            try:
                self._connection.getLibVersion()
            except libvirt.libvirtError:
                self.close()
        if self._connection is None:
            self._connection = self.host.connect()
        return self._connection

    @property
    def domain(self) -> libvirt.virDomain:
        return self.connection.lookupByUUIDString(self.uuid)

    def xml(self, inactive: bool = False) -> str:
        flags = libvirt.VIR_DOMAIN_XML_SECURE | (libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0)
        return str(self.domain.XMLDesc(flags))

    @property
    def running(self) -> bool:
        return bool(self.domain.isActive())

    def start(self, paused: bool = False) -> None:
        self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def boot(self) -> None:
        """Start, and wait until the guest's own program runs and its agent answers."""
        since = self.mark()
        self.start()
        self.wait_for(r"READY \w+", since=since, timeout=BOOT)
        if "org.qemu.guest_agent.0" in self.xml():
            self.wait_for_agent()

    def wait_for_agent(self) -> None:
        """Also wanted after a restart of the daemon, which has to connect to it anew."""
        deadline = time.monotonic() + BOOT
        while True:
            try:
                self.agent("guest-ping")
            except libvirt.libvirtError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def shut_down(self, timeout: float = 30) -> None:
        """Ask the guest to shut down, and wait until it has."""
        self.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        self.wait_until_off(timeout)

    def wait_until_off(self, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                raise BedError(f"{self.name} did not shut down in {timeout} s")
            time.sleep(0.1)

    def power_off(self) -> None:
        """As if the plug was pulled. Does nothing if it is off."""
        if self.running:
            self.domain.destroy()

    def remove(self) -> None:
        """Off and undefined, whatever state it is in. Its disks stay."""
        try:
            domain = self.domain
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return
            raise
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(
            libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # the serial console

    def log(self, since: int = 0) -> str:
        """What the guest printed after the first `since` bytes."""
        if not self.serial.exists():
            return ""
        return self.serial.read_bytes()[since:].decode(errors="replace").replace("\r", "")

    def mark(self) -> int:
        """The present length of the log, for `since`."""
        return self.serial.stat().st_size if self.serial.exists() else 0

    def wait_for(self, pattern: str, since: int = 0, timeout: float = 30) -> re.Match[str]:
        """Wait until a whole line of the log has a match of a regular expression. Raises `BedError`."""
        wanted = re.compile(f"(?:{pattern})[^\n]*\n")
        deadline = time.monotonic() + timeout
        while not (found := wanted.search(self.log(since))):
            if time.monotonic() > deadline:
                raise BedError(f"{self.name} did not print {pattern!r} in {timeout} s:\n{self.log(since)[-1500:]}")
            time.sleep(0.05)
        return found

    def last_ack(self, since: int = 0) -> int:
        """The last record that the guest said is on all its disks; 0 if there is none."""
        found = re.findall(r"ACK (\d+)\n", self.log(since))
        return int(found[-1]) if found else 0

    def wait_for_records(self, more: int = 50, timeout: float = 60) -> int:
        """Wait until that many more records than now are acknowledged; returns the last one."""
        wanted = self.last_ack() + more
        deadline = time.monotonic() + timeout
        while (last := self.last_ack()) < wanted:
            if time.monotonic() > deadline:
                tail = self.log()[-800:]
                raise BedError(f"{self.name} is at record {last}, not {wanted}, after {timeout} s:\n{tail}")
            time.sleep(0.05)
        return last

    def verdict(self, since: int = 0, timeout: float = BOOT) -> bool:
        """What the guest found on its disks when it booted: is every record right?"""
        return self.wait_for(r"VERDICT (good|bad)", since, timeout)[1] == "good"

    # the guest agent

    def agent(self, command: str, **arguments: object) -> Any:
        """Answer of the guest agent. Raises `libvirt.libvirtError`."""
        request = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(libvirt_qemu.qemuAgentCommand(self.domain, request, 20, 0))["return"]

    def run(self, *command: str, timeout: float = 30) -> str:
        """Run a program inside the guest and return its output. Raises `BedError` if it fails."""
        pid = self.agent("guest-exec", path=command[0], arg=command[1:], **{"capture-output": True})["pid"]
        deadline = time.monotonic() + timeout
        while not (status := self.agent("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > deadline:
                raise BedError(f"{command} did not end in {timeout} s")
            time.sleep(0.1)
        output = base64.b64decode(status.get("out-data", "")).decode()
        if status.get("exitcode"):
            raise BedError(f"{command}: {output}{base64.b64decode(status.get('err-data', '')).decode()}")
        return output


def domain_xml(
    *, name: str, kind: str, image: GuestImage, cmdline: str, disks: Sequence[Disk], serial: Path, machine: str,
    memory: int, agent: bool, firmware: str, devices: str,
) -> str:  # fmt: skip
    """A small domain that boots the bed's kernel. `memory` in MiB; `firmware` is XML inside <os>."""
    channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>" if agent else ""
    return f"""<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>{firmware}
    <kernel>{image.kernel}</kernel>
    <initrd>{image.initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <clock offset='utc'/>
  <on_crash>destroy</on_crash>
  <devices>
    {"".join(map(_disk_xml, _with_targets(disks)))}
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{serial}' append='on'/></serial>
    {channel}{devices}
    <memballoon model='none'/>
  </devices>
</domain>"""


def _with_targets(disks: Sequence[Disk]) -> list[tuple[str, Disk]]:
    taken = {disk.target for disk in disks}
    free = iter(name for name in (f"vd{letter}" for letter in "abcdefgh") if name not in taken)
    return [(disk.target or next(free), disk) for disk in disks]


def _disk_xml(named: tuple[str, Disk]) -> str:
    target, disk = named
    path = quoteattr(str(disk.path))
    kind, source = {
        "file": ("file", f"<source file={path}/>"),
        "block": ("block", f"<source dev={path}/>"),
        "nbd": ("network", f"<source protocol='nbd'><host transport='unix' socket={path}/></source>"),
        "rbd": ("network", f"<source protocol='rbd' name={path}>{disk.where}</source>"),
    }[disk.kind]
    bus = {"vd": "virtio", "sd": "sata", "hd": "ide", "fd": "fdc"}[target[:2]]
    device = {"hd": "cdrom", "fd": "floppy"}.get(target[:2], "disk")
    return (
        f"<disk type='{kind}' device='{device}'><driver name='qemu' type='{disk.format}'/>{source}"
        f"<target dev='{target}' bus='{bus}'/>{disk.extra}</disk>\n    "
    )
