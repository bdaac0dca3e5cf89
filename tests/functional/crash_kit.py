"""What the walks over crash points share: a VM that writes while a command runs, the kill, and what must hold after it.

The VM is a `Guest` of overlay_kit: its writes are made by the test, one after the other, so the truth of any moment is
known to the byte. A point taken while they went on must be one of those moments, the same for both disks.
"""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from raksha.journal import Journal
from raksha.virt.libvirt.domain_xml import parse_domain
from tests.bed import Bed
from tests.bed.machine import Machine
from tests.functional.forked import ForkedLocal, alive
from tests.functional.local_kit import Answer, two_disks
from tests.functional.overlay_kit import KIB, MIB, Guest
from tests.functional.pull_kit import bitmaps, lying

CLUSTER = 64 * KIB
KILLED = -9
#: of libvirt's tests and of ours, nothing below the file that the domain names is anything but one of these
OVERLAY = ".raksha-"


@dataclass(frozen=True, slots=True)
class Point:
    """A passing of a crash point."""

    name: str
    #: 1 for the first passing in a run
    number: int

    def __str__(self) -> str:
        return f"{self.name}:{self.number}"


def points_of(trace: Sequence[str]) -> list[Point]:
    """Every passing that leaves a state of its own: what was done is the same before the next thing is begun.

    What libvirt does goes on behind a call that has returned, so there both are kept.
    """
    passed: dict[str, int] = {}
    points = []
    for place, name in enumerate(trace):
        passed[name] = passed.get(name, 0) + 1
        last = place == len(trace) - 1
        after = name.endswith(".done") and name != "journal.done"  # which is before an outcome is noted
        if not after or name.startswith("libvirt.") or last:
            points.append(Point(name, passed[name]))
    return points


def sample(points: Sequence[Point], count: int, turn: int = 0) -> list[Point]:
    """`count` of them (0: all), evenly spread."""
    if not count or count >= len(points):
        return list(points)
    step = len(points) / count
    return [points[int(turn % step + number * step) % len(points)] for number in range(count)]


@dataclass
class World:
    """One VM with two disks, its vault, and the truth about both."""

    bed: Bed
    local: ForkedLocal
    guest: Guest
    place: Path
    #: arguments of every backup
    options: tuple[str, ...] = ()
    #: arguments of every command, where a test has some
    configured: tuple[str, ...] = ()
    engine: str = "overlay"
    #: QEMU went on without our layers, and is no more
    pivoted_and_died: bool = False
    #: of all writes; fixed, so that a walk can be repeated
    dice: random.Random = field(default_factory=lambda: random.Random(20))
    #: clusters written since the newest point that is known, by disk
    touched: dict[str, set[int]] = field(default_factory=lambda: {"vda": set(), "vdb": set()})
    #: what the disks held at each restore point
    truth: dict[str, dict[str, bytes]] = field(default_factory=dict)
    definition: str = ""
    #: what the disks held when the last command began, and what was written since
    begun: dict[str, bytes] = field(default_factory=dict)
    history: list[tuple[str, int, int, int]] = field(default_factory=list)

    # -- the guest ----------------------------------------------------------------------------------

    def write(self) -> None:
        """One acknowledged write of a few KiB."""
        target = self.dice.choice(("vda", "vdb"))
        offset = self.dice.randrange(0, 4 * MIB - 12 * KIB, 4 * KIB)
        length = self.dice.choice((4, 8, 12)) * KIB
        pattern = self.dice.randrange(1, 256)
        self.guest.write(target, offset, length, pattern)
        self.history.append((target, offset, length, pattern))
        self.touched[target].update(range(offset // CLUSTER, (offset + length - 1) // CLUSTER + 1))

    def writes(self, count: int = 3) -> None:
        for _ in range(count):
            self.write()

    def restart(self) -> None:
        """Pull the plug; all that was acknowledged must be there; start from the definition."""
        self.guest.off()
        self.assert_disks_hold()
        self.guest.start()

    def assert_disks_hold(self) -> None:
        """The chains that the definition names hold every acknowledged write. The VM is off."""
        domain = parse_domain(self.guest.machine.xml(inactive=True))
        for disk in domain.disks:
            copy = self.bed.directory / f"copy-{disk.target}"
            command = ["qemu-img", "convert", "-f", disk.top.format, "-O", "raw", disk.top.path, copy]
            subprocess.run(command, check=True, timeout=60)
            assert copy.read_bytes() == bytes(self.guest.model[disk.target]), f"{disk.target} lost a write"
            copy.unlink()

    def overlays(self) -> dict[str, list[str]]:
        """Layers of ours in the chain of each disk, newest first."""
        found = self.guest.sources(inactive=not self.guest.machine.running)
        return {target: [path for path in paths if OVERLAY in path] for target, paths in found.items()}

    def bitmaps(self) -> list[str]:
        """Names of those on vda, whose own file is the only one that can hold any."""
        if self.guest.machine.running:
            return bitmaps(self.guest.machine).get("vm-a.qcow2", [])
        return list(lying(self.bed.directory / "vm-a.qcow2"))

    def tracked(self) -> set[str]:
        """Disks of which it is known what was written since the newest point."""
        if self.engine == "pull":
            return {"vda"} if self.bitmaps() else set()
        # a merge that is under way is ended first: then that disk has no tracker any more
        return {target for target, layers in self.overlays().items() if layers and not self.merging(target)}

    def merging(self, target: str) -> bool:
        """A block job of this disk is under way."""
        machine = self.guest.machine
        return machine.running and bool(machine.domain.blockJobInfo(target))

    # -- commands -----------------------------------------------------------------------------------

    def backup(self, *arguments: str) -> Answer:
        """A backup that must succeed, and its point be what the guest holds."""
        answer = self.local.good("backup", self.guest.uuid, *self.options, *arguments)
        self.known(answer.run, self.guest.frozen_model())
        return answer

    def known(self, run: str, truth: dict[str, bytes]) -> None:
        self.truth[run] = truth
        if self.guest.machine.running:  # else its overlay stays, and goes on counting from where it did
            for clusters in self.touched.values():
                clusters.clear()

    def traced(self, *command: str) -> list[Point]:
        """All points of a command that runs to its end."""
        trace = self.place / f"trace-{uuid4().hex}"
        answer = self.busy({"RAKSHA_CRASH_TRACE": str(trace)}, *command)
        assert answer.code == 0, answer
        return points_of(trace.read_text().split())

    def killed_at(self, point: Point, *command: str) -> bool:
        """Whether the command came to that point, and died there."""
        answer = self.busy({"RAKSHA_CRASH_AT": str(point)}, *command)
        assert answer.code in (KILLED, 0), answer
        return answer.code == KILLED

    def busy(self, environment: dict[str, str], *command: str) -> Answer:
        """A command while the guest, if it runs, writes."""

        def meanwhile(pid: int) -> None:
            while alive(pid):
                if self.guest.machine.running:
                    self.write()
                time.sleep(0.02)

        self.begun, self.history = self.guest.frozen_model(), []
        return self.local.during(meanwhile, environment, *command, "--json")

    # -- what must hold -----------------------------------------------------------------------------

    def adopt_new_points(self) -> None:
        """A command that was killed may have made its point: then it holds one moment of its time."""
        for run in self.local.runs():
            if run in self.truth:
                continue
            restored = self.restored(run)
            assert restored in self._moments(), f"{run} is of no moment while it was taken"
            self.truth[run] = restored

    def _moments(self) -> Iterator[dict[str, bytes]]:
        disks = {target: bytearray(content) for target, content in self.begun.items()}
        yield {target: bytes(content) for target, content in disks.items()}
        for target, offset, length, pattern in self.history:
            disks[target][offset : offset + length] = bytes([pattern]) * length
            yield {name: bytes(content) for name, content in disks.items()}

    def restored(self, run: str) -> dict[str, bytes]:
        into = self.place / uuid4().hex
        into.mkdir()
        answer = self.local.good("restore", run, "--vm", self.guest.uuid, "--into", into, "--format", "raw")
        content = {disk["disk"]: Path(disk["target"]).read_bytes() for disk in answer.json["disks"]}
        for path in into.iterdir():
            path.unlink()
        into.rmdir()
        return content

    def assert_right(self, run: str) -> None:
        """It restores to the byte, and the whole vault verifies."""
        assert self.restored(run) == self.truth[run], f"{run} is not what the guest had"
        self.assert_vault_whole()

    def assert_vault_whole(self) -> None:
        verified = self.local.good("verify", "--data").json
        assert verified["findings"] == []
        assert set(self.local.runs()) == set(self.truth)

    def assert_nothing_left(self, layers: int = 1, orphans: Collection[str] = ()) -> None:
        """Nothing of ours but `layers` overlays a disk (with the engine `pull`, bitmaps on vda) and those `orphans`."""
        expected = 0 if self.engine == "pull" else layers
        used = self.overlays()
        assert {len(paths) for paths in used.values()} == {expected}, used
        assert_nothing_left(self.guest.machine, self.local, self.bed.directory, orphans)
        if self.engine != "pull":
            return
        machine = self.guest.machine
        if machine.running:
            wanted = {"vm-a.qcow2": layers} if layers else {}
            assert {name: len(found) for name, found in bitmaps(machine).items()} == wanted
        elif not layers:
            assert self.bitmaps() == []

    def assert_increment(self, answer: Answer, touched: dict[str, set[int]]) -> None:
        """Both disks were read by their trackers: not a byte more than was written since the point before."""
        for target, disk in answer.disks().items():
            if self.engine == "pull" and target == "vdb":
                assert (disk["kind"], disk["mode"], disk["reason"]) == ("incremental", "compare", "no_bitmap_possible")
                continue
            assert (disk["kind"], disk["mode"]) == ("incremental", "delta"), disk
            assert disk["reason"] in (None, "union_of_layers"), disk
            assert disk["volume"]["read"] <= len(touched[target]) * CLUSTER, (disk, len(touched[target]))

    def prune(self, keep: int = 1) -> None:
        """Keeps the vault small; what it leaves must be what the points need. The next day, to the directory store."""
        directory = self.local.vault.startswith("file://")
        for path in self.local.folder.rglob("*") if directory else ():
            os.utime(path, (0, 0))
        self.local.good("prune", "--keep-last", str(keep))
        kept = set(self.local.runs())
        self.truth = {run: truth for run, truth in self.truth.items() if run in kept}
        folders = {path.name for path in self.local.folder.glob("backupjobs/*/*-*-*/")} if directory else set()
        assert folders <= kept, "objects of restore points that are gone"


def assert_nothing_left(machine: Machine, local: ForkedLocal, directory: Path, orphans: Collection[str]) -> None:
    """Between runs: no file of ours in the folder of the disks but overlays that are in use, and those `orphans`; no
    job, no checkpoint, no open intent, no server, scratch or temporary file."""
    domain = parse_domain(machine.xml(inactive=not machine.running))
    used = {layer.path for disk in domain.disks for layer in disk.layers if OVERLAY in layer.path}
    files = {str(path) for path in directory.iterdir() if OVERLAY in path.name and path.is_file()}
    assert files == used.union(orphans), "stray overlays"
    assert machine.domain.listAllCheckpoints() == []
    if machine.running:
        assert machine.domain.jobInfo()[0] == 0, "a backup job goes on"
        assert not any(machine.domain.blockJobInfo(disk.target) for disk in domain.disks), "a block job goes on"
    journal = Journal(local.state)
    try:
        assert journal.open_intents() == []
        assert {layer.file.path for layer in journal.layers(machine.uuid)} == files
        trash = {str(path) for path in directory.glob(".raksha-trash/*")}
        assert {each.path for each in journal.trash()} == trash
    finally:
        journal.close()
    for folder in ("scratch", "spool"):
        assert list(local.state.glob(f"{folder}/*")) == []
    assert leftover_sockets(local.forker.pids) == []


def leftover_sockets(pids: set[int]) -> list[Path]:
    """Directories of servers of these commands, which have all ended: what is locked belongs to somebody else's process
    that got the same number since."""
    found = [*Path("/run").glob("raksha-nbd-*"), *Path("/tmp").glob("raksha-nbd-*")]
    return [path for path in found if int(path.name.split("-")[2]) in pids and not is_locked(path)]


def is_locked(directory: Path) -> bool:
    try:
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return True  # gone just now, so it was somebody's
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(held)
    return False


@contextmanager
def world_on(bed: Bed, place: Path, engine: str = "overlay") -> Iterator[World]:
    # QEMU, another user, must reach the scratch files below the state directory
    local = ForkedLocal(bed.uri, bed.directory / "state", f"file://{place}/vault")
    try:
        guest = two_disks(bed)
        world = World(bed, local, guest, place, ("--job", "daily", "--engine", engine), engine=engine)
        world.definition = guest.machine.xml(inactive=True)
        yield world
        local.good("release", guest.uuid)  # no fence may keep the disks from being removed
    finally:
        local.forker.close()


def wanted_sample(default: int) -> int:
    """How many points of each walk: RAKSHA_CRASH_SAMPLE, 0 for all."""
    return int(os.environ.get("RAKSHA_CRASH_SAMPLE", default))
