"""What the tests of the engine `pull` share: the overlay engine's kit with the other engine, and looks inside."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt_qemu

from raksha.virt.libvirt import image
from raksha.virt.libvirt.pull import PullEngine
from tests.bed import Bed
from tests.bed.machine import Machine
from tests.functional.overlay_kit import Guest, Kit


class PullKit(Kit):
    """`Kit` with the engine `pull`; `overlay` is the other one on the same journal."""

    def __init__(self, bed: Bed, **changes: object) -> None:
        super().__init__(bed, **changes)
        self.overlay = self.engine
        self.engine = PullEngine(self.settings, self.journal)  # type: ignore[assignment]

    def close(self) -> None:
        self.overlay.close()
        super().close()

    def reconnect(self) -> None:
        """After the daemon was restarted."""
        self.engine.close()
        self.engine = PullEngine(self.settings, self.journal)  # type: ignore[assignment]

    @contextmanager
    def other_engine(self) -> Iterator[None]:
        pull, self.engine = self.engine, self.overlay
        try:
            yield
        finally:
            self.engine = pull

    def assert_nothing_left(self, machine: Machine) -> None:
        """What must be true between any two runs, however the last one ended."""
        assert machine.domain.listAllCheckpoints() == [], "libvirt knows a checkpoint: Nova could not delete the server"
        assert not machine.running or machine.domain.jobInfo()[0] == 0, "a backup job is left"
        scratch = self.settings.state_dir / "scratch"
        assert not scratch.exists() or list(scratch.iterdir()) == [], "scratch files or sockets are left"
        assert self.journal.open_intents(machine.uuid) == []


@contextmanager
def pull_kit_on(bed: Bed, **changes: object) -> Iterator[PullKit]:
    kit = PullKit(bed, **changes)
    try:
        yield kit
    finally:
        kit.close()


def bitmaps(machine: Machine) -> dict[str, list[str]]:
    """Names of the bitmaps that a running QEMU keeps, by file name of the layer; files without any are left out."""
    answer = libvirt_qemu.qemuMonitorCommand(machine.domain, '{"execute": "query-named-block-nodes"}', 0)
    found = {}
    for node in json.loads(answer)["return"]:
        names = sorted(each["name"] for each in node.get("dirty-bitmaps", []) if each.get("persistent"))
        if names:
            found[_file_of(node["image"]["filename"])] = names
    return found


def _file_of(name: str) -> str:
    if name.startswith("json:"):
        name = json.loads(name.removeprefix("json:"))["file"]["filename"]
    return Path(name).name


def lying(path: Path) -> dict[str, frozenset[str]]:
    """Bitmaps in an image file, with their flags."""
    return image.bitmaps(str(path))


def kill_qemu(guest: Guest) -> None:
    """kill -9, and wait until libvirt has noticed. What the guest wrote it had flushed."""
    for target in guest.model:
        guest._io(target, "flush")
    name = guest.machine.name
    pid = int(next(guest.bed.host.directory.rglob(f"{name}.pid")).read_text())
    os.kill(pid, signal.SIGKILL)
    guest.machine.wait_until_off()
