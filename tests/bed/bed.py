"""A place for one test: makes disks and guests on a host, and takes them away again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.etree import ElementTree

from tests.bed.daemon import Host
from tests.bed.disks import Disk, failing_server, loop_device, make_qcow2, make_raw
from tests.bed.image import BedError, GuestImage, guest_image
from tests.bed.machine import Machine, domain_xml

MIB = 1024 * 1024
UEFI = """
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{nvram}</nvram>"""


class Bed:
    """Disks and guests in a directory of their own. A context manager; at its end nothing is left.

    Names of guests must be unique on the host: the bed puts its own in front.
    """

    def __init__(self, host: Host, prefix: str = "t") -> None:
        self.host = host
        self.uri = host.uri
        #: files of this bed; readable and writable for the host's guests
        self.directory = Path(tempfile.mkdtemp(prefix=prefix, dir=host.directory))
        self.directory.chmod(0o755)
        host.give(self.directory)
        self._loops: dict[Path, Path] = {}
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def keep(self) -> None:
        """Leave everything where it is."""
        self._stack.pop_all()

    # disks

    def qcow2(
        self, name: str, size: int | None = 32 * MIB, backing: Path | str | None = None, backing_format: str = "qcow2"
    ) -> Disk:
        """An image `NAME.qcow2` in the bed's directory; see `make_qcow2`."""
        path = self.directory / f"{name}.qcow2"
        make_qcow2(path, size, backing, backing_format)
        return Disk(self.host.give(path), "qcow2")

    def raw(self, name: str, size: int = 16 * MIB) -> Disk:
        """A sparse file `NAME.raw`."""
        path = self.directory / f"{name}.raw"
        make_raw(path, size)
        return Disk(self.host.give(path), "raw")

    def loop(self, name: str, size: int = 16 * MIB) -> Disk:
        """A raw block device, until the bed's end. Needs root, and `qemu:///system` to be used by a guest."""
        path = self.raw(name, size).path
        device = self._stack.enter_context(loop_device(path))
        self._loops[device] = path
        return Disk(device, "raw", kind="block")

    def loop_file(self, disk: Disk) -> Path:
        """The file below a disk from `loop`."""
        return self._loops[disk.path]

    def failing(self, name: str, size: int = 16 * MIB) -> tuple[Disk, Path]:
        """A network disk, and the file that makes all reads from it fail while it exists."""
        path = self.raw(name, size).path
        socket = self.directory / f"{name}.sock"
        trigger = self._stack.enter_context(failing_server(path, socket))
        self.host.give(socket)
        return Disk(socket, "raw", kind="nbd"), trigger

    # guests

    def machine(
        self, disks: Sequence[Disk], *, name: str = "vm", mode: str = "oracle", span: int = 0, pause: int = 2000,
        freeze_delay: int = 0, machine: str = "pc", memory: int | None = None, agent: bool = True, uefi: bool = False,
        devices: str = "",
    ) -> Machine:  # fmt: skip
        """A defined guest, not started. README.md tells the modes; `memory` in MiB (None: what it needs), `pause` in
        microseconds."""
        full_name = f"{self.directory.name}-{name}"
        serial = self.host.give(self._touched(f"{name}.log"))
        cmdline = f"console=ttyS0 quiet panic=1 raksha.mode={mode} raksha.span={span} raksha.pause={pause}"
        xml = domain_xml(
            name=full_name, kind=self.host.domain_type(), image=self.image(), disks=disks, serial=serial,
            cmdline=f"{cmdline} raksha.freeze_delay={freeze_delay}", machine=machine, agent=agent,
            memory=memory or (256 if uefi else 128),
            firmware=UEFI.format(nvram=self.directory / f"{name}.nvram") if uefi else "", devices=devices,
        )  # fmt: skip
        return self._tracked(Machine(self.host, full_name, serial, xml))

    def adopt(self, name: str) -> Machine:
        """A guest that somebody else defined on the host, such as a restored one; removed with the others."""
        connection = self.host.connect()
        try:
            xml = connection.lookupByName(name).XMLDesc()
        finally:
            connection.close()
        serial = ElementTree.fromstring(xml).find("devices/serial/source")
        if serial is None:
            raise BedError(f"{name} has no serial console")
        return self._tracked(Machine(self.host, name, Path(serial.attrib["path"])))

    def _tracked(self, machine: Machine) -> Machine:
        self._stack.callback(machine.close)
        self._stack.callback(machine.remove)
        return machine

    def image(self) -> GuestImage:
        """The guest image, where this host's guests can read it."""
        image = guest_image()
        copies = GuestImage(self.host.directory / "vmlinuz", self.host.directory / image.initrd.name)
        for source, copy in ((image.kernel, copies.kernel), (image.initrd, copies.initrd)):
            if not copy.exists():
                shutil.copyfile(source, copy)
                copy.chmod(0o644)
        return copies

    def _touched(self, name: str) -> Path:
        path = self.directory / name
        path.touch()
        return path
