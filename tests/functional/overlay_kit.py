"""What the tests of the overlay engine share: a guest without an operating system, whose writes the test makes itself.

The guest's disks are written through QEMU's own block devices, as a driver inside would do, and a model in memory
keeps what must be on them. So every restore point can be compared bit for bit, and a test takes a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

import libvirt_qemu
from msgspec.structs import replace

from raksha.config import Settings
from raksha.journal import Journal
from raksha.states import Quiesce, ReadMode
from raksha.types import ExtentKind
from raksha.virt.capture import Capture, CaptureRequest, DiskCapture, Parent
from raksha.virt.libvirt.domain_xml import parse_domain
from raksha.virt.libvirt.overlay import OverlayEngine
from tests.bed import Bed
from tests.bed.disks import Disk
from tests.bed.machine import Machine, _disk_xml, _with_targets

KIB = 1024
MIB = 1024 * KIB


def settings(bed: Bed, **changes: object) -> Settings:
    state = bed.directory / "state"
    base = Settings(
        libvirt_uri=bed.uri,
        state_dir=state,
        overlay_reserve_min=MIB,
        overlay_watermark=0,
        commit_timeout=30.0,
        workers=2,
        trash_hours=0,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


class Guest:
    """A running QEMU without a kernel. `model` is what its disks must hold."""

    def __init__(
        self, bed: Bed, disks: list[Disk], *, name: str = "vm", devices: str = "", discard: bool = False
    ) -> None:
        self.bed = bed
        named = _with_targets(disks)
        xml = f"""<domain type='qemu'><name>{bed.directory.name}-{name}</name><memory unit='MiB'>32</memory>
            <vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><on_crash>destroy</on_crash><devices>
            {"".join(map(_disk_xml, named))}<controller type='usb' model='none'/>{devices}
            <memballoon model='none'/></devices></domain>"""
        if discard:
            xml = xml.replace("<driver ", "<driver discard='unmap' ")
        serial = bed.directory / f"{name}.log"
        self.machine = Machine(bed.host, f"{bed.directory.name}-{name}", serial=serial, xml=xml)
        bed._stack.callback(self.machine.close)
        bed._stack.callback(self.machine.remove)
        self.model = {target: bytearray(4 * MIB) for target, disk in named if not disk.extra}

    @property
    def uuid(self) -> str:
        return self.machine.uuid

    def start(self, *, paused: bool = False) -> None:
        self.machine.start(paused=paused)

    def off(self) -> None:
        self.machine.power_off()

    def write(self, target: str, offset: int, length: int, pattern: int) -> None:
        self._io(target, f"write -P {pattern} {offset} {length}")
        self.model[target][offset : offset + length] = bytes([pattern]) * length

    def zero(self, target: str, offset: int, length: int, *, how: str = "write -z -u") -> None:
        """`how`: write -z, write -z -u (may unmap) or discard."""
        self._io(target, f"{how} {offset} {length}")
        self.model[target][offset : offset + length] = bytes(length)

    def _io(self, target: str, command: str) -> None:
        domain = parse_domain(self.machine.xml())
        number = [disk.target for disk in domain.disks if disk.bus == "virtio"].index(target)
        device = f"/machine/peripheral/virtio-disk{number}/virtio-backend"
        libvirt_qemu.qemuMonitorCommand(self.machine.domain, f'qemu-io -d {device} "{command}"', 1)

    def frozen_model(self) -> dict[str, bytes]:
        return {target: bytes(content) for target, content in self.model.items()}

    def sources(self, *, inactive: bool = False) -> dict[str, list[str]]:
        """Paths of each disk's layers, the active one first."""
        domain = parse_domain(self.machine.xml(inactive))
        return {disk.target: [layer.path for layer in disk.layers] for disk in domain.disks}

    def files(self) -> set[str]:
        return {path.name for path in self.bed.directory.iterdir()}

    def state(self) -> tuple[str, str, str, dict[str, str]]:
        """Everything that a refusal must leave as it is."""
        live = self.machine.xml() if self.machine.running else ""
        content = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.bed.directory.iterdir()
            if path.is_file() and path.suffix in (".raw", ".qcow2", ".img")
        }
        return live, self.machine.xml(inactive=True), str(sorted(self.files() - {"state"})), content


class Taken:
    """What a test may ask about one captured disk."""

    def __init__(self, disk: DiskCapture) -> None:
        self.mode, self.reason, self.parent, self.size = disk.mode, disk.reason, disk.parent, disk.size
        self.facts, self.base_image = disk.facts, disk.base_image
        self.extents_seen = list(disk.extents())


class Points:
    """Restore points by run, put together from what captures list, as a vault would."""

    def __init__(self) -> None:
        self.images: dict[str, dict[str, bytes]] = {}
        self.captures: dict[str, dict[str, Taken]] = {}
        #: bytes named as data, zeroes excluded
        self.sent: dict[str, dict[str, int]] = {}

    def store(self, run: str, capture: Capture) -> None:
        self.captures[run] = {disk.target: Taken(disk) for disk in capture.disks}
        self.sent[run] = {}
        self.images[run] = {disk.target: self._assemble(run, disk) for disk in capture.disks}

    def _assemble(self, run: str, disk: DiskCapture) -> bytes:
        image = bytearray(disk.size)
        if disk.mode is ReadMode.DELTA:
            image[:] = self.images[disk.parent or ""][disk.target]
        reader, end, sent = disk.open(), 0, 0
        for extent in self.captures[run][disk.target].extents_seen:
            assert extent.start >= end and extent.length > 0, "extents are in order and do not overlap"
            end = extent.end
            zero = extent.kind is ExtentKind.ZERO
            assert not (zero and disk.mode is not ReadMode.DELTA)
            data = bytes(extent.length) if zero else reader.pread(extent.start, extent.length)
            image[extent.start : extent.end] = data
            sent += 0 if zero else extent.length
        reader.close()
        self.sent[run][disk.target] = sent
        return bytes(image)


class Kit:
    """An engine on a bed, and the life of runs on it."""

    def __init__(self, bed: Bed, **changes: object) -> None:
        self.bed = bed
        self.settings = settings(bed, **changes)
        self.journal = Journal(self.settings.state_dir)
        self.engine = OverlayEngine(self.settings, self.journal)
        self.points = Points()
        self.warnings: list[str] = []
        self.last: Capture | None = None

    def close(self) -> None:
        self.engine.close()
        self.journal.close()

    def request(self, vm: str, parent: str | None = None, *, job: str = "daily", **more: object) -> CaptureRequest:
        images = self.points.images.get(parent or "", {})
        since: Mapping[str, Parent] = {target: Parent(parent or "", len(image)) for target, image in images.items()}
        return CaptureRequest(
            vm=vm,
            backupjobrun=str(uuid4()),
            backupjob=job,
            since=since,
            quiesce=Quiesce.NEVER,
            **more,  # type: ignore[arg-type]
        )

    def capture(self, request: CaptureRequest) -> Capture:
        prepared = self.engine.prepare(request)
        try:
            prepared.freeze()
            prepared.snapshot()
            prepared.thaw()
            return prepared.capture()
        except BaseException:
            prepared.cancel()
            raise

    def run(self, guest: Guest, parent: str | None = None, *, durable: bool = True, **more: object) -> str:
        """A whole run; what was captured must be what the guest had written. Returns its id."""
        request = self.request(guest.uuid, parent, **more)
        self.last = capture = self.capture(request)
        expected = guest.frozen_model()
        try:
            for number, target in enumerate(guest.model):
                if guest.machine.running:  # after the snapshot: not in this point
                    guest.write(target, 3 * MIB + number * 4096, 4096, len(self.points.images) + 1)
            self.points.store(request.backupjobrun, capture)
            capture.check()
        except BaseException:
            capture.abandon()
            raise
        for target, image in self.points.images[request.backupjobrun].items():
            assert image == bytes(expected[target]), f"{target} is not what the guest had written"
        if durable:
            self.warnings = capture.finish()
        else:
            capture.abandon()
        return request.backupjobrun

    def disk(self, run: str, target: str = "vda") -> Taken:
        return self.points.captures[run][target]


@contextmanager
def kit_on(bed: Bed, **changes: object) -> Iterator[Kit]:
    kit = Kit(bed, **changes)
    try:
        yield kit
    finally:
        kit.close()
