"""A server as its hypervisor has it: the guest agent inside, and libvirt around it."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
from lxml import etree

from tests.openstack.cloud.daemons import CloudError
from tests.openstack.cloud.layout import DATA, LIBVIRT_URI
from tests.openstack.cloud.rest import Cloud

#: seconds; without KVM GRUB alone takes some
_BOOT = 180


class Guest:
    """Asked of libvirt anew each time: Nova defines the domain again whenever it starts it."""

    def __init__(self, admin: Cloud, server: str) -> None:
        self.server = server
        shown = admin.nova.get(f"/servers/{server}")["server"]
        self.domain_name: str = shown["OS-EXT-SRV-ATTR:instance_name"]
        self._connection = libvirt.open(LIBVIRT_URI)

    @property
    def domain(self) -> libvirt.virDomain:
        return self._connection.lookupByUUIDString(self.server)

    @property
    def folder(self) -> Path:
        """Where Nova has its disk and console."""
        return DATA / "nova/instances" / self.server

    def disks(self) -> dict[str, str]:
        """The source of each disk, by its name in the guest: a path, or POOL/IMAGE of Ceph."""
        tree = etree.fromstring(self.domain.XMLDesc())
        found = {}
        for disk in tree.iterfind("devices/disk"):
            source = disk.find("source")
            assert source is not None
            found[disk.find("target").get("dev")] = source.get("file") or source.get("dev") or source.get("name")
        return found

    def agent(self, command: str, **arguments: object) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(libvirt_qemu.qemuAgentCommand(self.domain, request, 20, 0))["return"]

    def wait_until_ready(self) -> None:
        """Until its agent answers."""
        deadline = time.monotonic() + _BOOT
        while True:
            try:
                self.agent("guest-ping")
            except libvirt.libvirtError as error:
                if time.monotonic() > deadline:
                    console = (self.folder / "console.log").read_text(errors="replace")[-2000:]
                    raise CloudError(f"{self.domain_name} does not answer: {error}\n{console}") from error
                time.sleep(0.5)
            else:
                return

    def shell(self, script: str, timeout: float = 60) -> str:
        """Output of a script that the guest runs. Raises `CloudError` if it fails."""
        pid = self.agent("guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True})["pid"]
        deadline = time.monotonic() + timeout
        while not (status := self.agent("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > deadline:
                raise CloudError(f"not done in {timeout} s: {script}")
            time.sleep(0.1)
        output = base64.b64decode(status.get("out-data", "")).decode()
        if status.get("exitcode"):
            raise CloudError(f"{script}: {output}{base64.b64decode(status.get('err-data', '')).decode()}")
        return output

    def close(self) -> None:
        self._connection.close()
