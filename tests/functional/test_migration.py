"""Live migration on shared storage: backups go on incrementally over there, and the old host keeps its hands off."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
import pytest

from tests.bed import Bed, check_records
from tests.bed.machine import Machine
from tests.bed.namespace import NamespaceHost
from tests.functional.forked import ForkedLocal, Forker
from tests.functional.local_kit import (
    ATTENTION,
    REFUSED,
    Answer,
    Local,
    assert_holds,
    ended,
    restored,
    tree,
    wait_until,
)
from tests.functional.overlay_kit import KIB, MIB, Guest
from tests.functional.pull_kit import bitmaps

pytestmark = pytest.mark.system

DELTA = ("incremental", "delta", None)


#: without the flag that both hosts see the same files
COPY = libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE | libvirt.VIR_MIGRATE_NON_SHARED_DISK


class Apart(Local):
    """The command line of a host that does not see the other one's processes, as on two machines."""

    def command(self, verb: str, *arguments: object) -> list[str]:
        return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *super().command(verb, *arguments)]


@dataclass
class Inside(Local):
    """The command line of a host, which sees that host's own files."""

    host: NamespaceHost | None = None

    def command(self, verb: str, *arguments: object) -> list[str]:
        assert self.host is not None
        return self.host.within(*super().command(verb, *arguments))


@dataclass
class Pair:
    """Two hosts with shared storage and one vault."""

    bed: Bed
    hosts: tuple[NamespaceHost, NamespaceHost]
    #: each host's command line, with a journal of its own
    locals: tuple[Local, Local]
    #: restore points, each with the last record that was acknowledged before
    points: list[tuple[str, int]] = field(default_factory=list)

    def where(self, machine: Machine) -> int:
        return self.hosts.index(machine.host)  # type: ignore[arg-type]

    def move(self, machine: Machine, **options: object) -> None:
        here = self.where(machine)
        self.hosts[here].migrate(machine, self.hosts[1 - here], **options)  # type: ignore[arg-type]

    def away(self, machine: Machine) -> Local:
        """The command line of the host where the guest is not; it sees no process of the other one."""
        local = self.locals[1 - self.where(machine)]
        return Apart(local.uri, local.state, local.vault)

    def backup(self, machine: Machine, engine: str) -> Answer:
        """From where it is now, of a guest that writes its records."""
        acknowledged = machine.wait_for_records(20)
        local = self.locals[self.where(machine)]
        options = ("--engine", engine, "--quiesce", "never", "--take-over", "--job", engine)
        answer = local.good("backup", machine.name, *options)
        self.points.append((answer.run, acknowledged))
        return answer


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[NamespaceHost, NamespaceHost]]:
    made = (NamespaceHost("here.test"), NamespaceHost("there.test"))
    try:
        made[0].start()
        connection = made[0].connect()
        connection.getDomainCapabilities(None, "x86_64", None, "qemu")
        connection.close()
        # What libvirt has learnt of QEMU takes it seconds.
        shutil.copytree(made[0].directory / "cache", made[1].directory / "cache", dirs_exist_ok=True)
        made[1].start()
        yield made
    finally:
        for host in made:
            host.close()


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    made = Forker()
    yield made
    made.close()


@pytest.fixture
def pair(hosts: tuple[NamespaceHost, NamespaceHost], forker: Forker, tmp_path: Path) -> Iterator[Pair]:
    with Bed(hosts[0]) as bed:
        here, there = (
            ForkedLocal(host.uri, bed.directory / f"state{number}", f"file://{tmp_path}/vault", forker=forker)
            for number, host in enumerate(hosts)
        )
        yield Pair(bed, hosts, (here, there))


@pytest.mark.slow
def test_records(pair: Pair, tmp_path: Path) -> None:
    """A guest that never stops writing: each engine goes on where the other host has stopped, with every record."""
    pair.bed.qcow2("base", 8 * MIB)
    vm = pair.bed.machine([pair.bed.qcow2("a", 8 * MIB), pair.bed.qcow2("b", None, backing="base.qcow2")])
    vm.boot()
    for engine in ("pull", "overlay"):
        pair.backup(vm, engine)
        pair.move(vm)
        answer = pair.backup(vm, engine)
        assert answer.how() == {"vda": DELTA, "vdb": DELTA}, engine
        assert_point_holds(pair, vm, tmp_path / "out")
    pair.locals[0].good("release", vm.name)
    assert not [path.name for path in pair.bed.directory.iterdir() if ".raksha-" in path.name]
    vm.wait_for_records(5)
    vm.power_off()
    check_records([(pair.bed.directory / name, "qcow2") for name in ("a.qcow2", "b.qcow2")], vm.last_ack())


def assert_point_holds(pair: Pair, vm: Machine, into: Path) -> None:
    """The newest one, by what it and all that it builds on hold."""
    run, acknowledged = pair.points[-1]
    paths = restored(pair.locals[0], run, into, vm.uuid)
    check_records([(path, "raw") for path in paths.values()], acknowledged)


@pytest.mark.slow
def test_overlays_there_and_back(pair: Pair, tmp_path: Path) -> None:
    guest = Guest(pair.bed, [pair.bed.raw("a", 4 * MIB), pair.bed.qcow2("b", 4 * MIB)])
    definition = guest.machine.xml(inactive=True)
    guest.start()
    guest.write("vda", 0, 64 * KIB, 0x11)
    pair.locals[0].backup(guest)
    for journey in (1, 0):
        pair.move(guest.machine)
        assert_hands_off(pair, guest, attention=True)
        guest.write("vda", 1 * MIB, 64 * KIB, 0x20 + journey)
        answer = pair.locals[journey].backup(guest, "--take-over")
        assert answer.how() == {"vda": DELTA, "vdb": DELTA} and answer.disks()["vda"]["volume"]["read"] == 64 * KIB
        assert [".raksha-" in text and "taken over" in text for text in answer.warnings] == [True, True]
        assert_holds(pair.locals[journey], answer.run, tmp_path / "out", guest, guest.frozen_model())
        assert [len(paths) for paths in guest.sources().values()] == [2, 2], "the other host's layers were merged"
        assert_hands_off(pair, guest, attention=False)
    pair.locals[0].good("release", guest.uuid)
    assert guest.machine.xml(inactive=True) == definition
    guest.off()
    assert (pair.bed.directory / "a.raw").read_bytes() == bytes(guest.model["vda"])


def assert_hands_off(pair: Pair, guest: Guest, *, attention: bool) -> None:
    """Where the guest is not, nobody touches its files, even without a look at the processes of where it is."""
    before = sorted(guest.files())
    answer = pair.away(guest.machine)("recover")
    if attention:
        assert (answer.code, answer.json["vms"][0]["trouble"]["code"]) == (ATTENTION, "vm_gone"), answer
    else:
        assert answer.code == 0, "its layers were merged over there, and their files are gone"
    assert sorted(guest.files()) == before


def test_bitmaps_there_and_back(pair: Pair, tmp_path: Path) -> None:
    guest = Guest(pair.bed, [pair.bed.qcow2("a", 4 * MIB)])
    guest.start()
    guest.write("vda", 0, 64 * KIB, 0x11)
    pair.locals[0].backup(guest, "--engine", "pull")
    for journey in (1, 0):
        pair.move(guest.machine)
        guest.write("vda", 1 * MIB, 64 * KIB, 0x20 + journey)
        answer = pair.locals[journey].backup(guest, "--engine", "pull", "--take-over")
        assert answer.how() == {"vda": DELTA} and answer.disks()["vda"]["volume"]["read"] == 64 * KIB
        assert answer.warnings == [] and bitmaps(guest.machine) == {"a.qcow2": [f"raksha-{answer.run}"]}
        assert_holds(pair.locals[journey], answer.run, tmp_path / "out", guest, guest.frozen_model())
        assert pair.away(guest.machine)("recover").code == 0


READ = "vault.put_file.BackupMap"


def stopped_at(point: str, local: Local, guest: Guest, engine: str) -> subprocess.Popen[str]:
    """A backup that stands still there; at `READ` its view is frozen, and partly read."""
    environment = {"RAKSHA_CRASH_AT": point, "RAKSHA_CRASH_SIGNAL": "STOP"}
    slow = Local(local.uri, local.state, local.vault, environment)
    process = slow.start("backup", guest.uuid, "--engine", engine, "--json")
    state = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "the backup stands still")
    return process


def test_moved_while_an_overlay_is_read(pair: Pair, tmp_path: Path) -> None:
    """What is frozen stays so, wherever the guest goes on: the point is good, and the next one builds on it."""
    here, there = pair.locals
    guest = Guest(pair.bed, [pair.bed.raw("a", 4 * MIB), pair.bed.qcow2("b", 4 * MIB)])
    guest.start()
    guest.write("vda", 0, 64 * KIB, 0x11)
    here.backup(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x12)
    truth = guest.frozen_model()
    process = stopped_at(READ, here, guest, "overlay")
    guest.write("vda", 1 * MIB, 32 * KIB, 0x13)
    pair.move(guest.machine)
    guest.write("vdb", 2 * MIB, 64 * KIB, 0x14)
    subprocess.run(["kill", "-CONT", str(process.pid)], check=True)
    answer = ended(process)
    assert answer.code == 0 and any("has left this host" in text for text in answer.warnings), answer
    assert_holds(there, answer.run, tmp_path / "out", guest, truth)
    following = there.backup(guest, "--take-over")
    assert following.how() == {"vda": DELTA, "vdb": DELTA}
    assert following.disks()["vda"]["volume"]["read"] == 64 * KIB
    assert_holds(there, following.run, tmp_path / "out", guest, guest.frozen_model())
    assert [len(paths) for paths in guest.sources().values()] == [2, 2], "both layers of the other host were merged"


def test_moved_before_the_snapshot(pair: Pair, tmp_path: Path) -> None:
    """The run fails. The empty layer that it had made is told of by the old host."""
    here, there = pair.locals
    guest = Guest(pair.bed, [pair.bed.raw("a", 4 * MIB)])
    guest.start()
    here.backup(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x12)
    process = stopped_at("libvirt.snapshotCreateXML", here, guest, "overlay")
    pair.move(guest.machine)
    subprocess.run(["kill", "-CONT", str(process.pid)], check=True)
    answer = ended(process)
    assert (answer.code, answer.error) == (1, "capture_failed"), answer
    following = there.backup(guest, "--take-over")
    assert following.how() == {"vda": DELTA} and following.disks()["vda"]["volume"]["read"] == 64 * KIB
    assert_holds(there, following.run, tmp_path / "out", guest, guest.frozen_model())
    (lying,) = {path for path in guest.files() if "a.raksha-" in path} - {Path(guest.sources()["vda"][0]).name}
    told = here("recover").json["vms"][0]["trouble"]["message"]
    assert lying in told


def test_moved_while_a_bitmap_is_read(pair: Pair, tmp_path: Path) -> None:
    """libvirt lets a migration wait for the backup job (30 seconds; then it refuses the migration)."""
    here, there = pair.locals
    guest = Guest(pair.bed, [pair.bed.qcow2("a", 4 * MIB)])
    guest.start()
    guest.write("vda", 0, 64 * KIB, 0x11)
    here.backup(guest, "--engine", "pull")
    process = stopped_at(READ, here, guest, "pull")
    guest.write("vda", 1 * MIB, 64 * KIB, 0x12)
    migration = threading.Thread(target=pair.move, args=(guest.machine,))
    migration.start()
    migration.join(1)
    assert migration.is_alive() and pair.where(guest.machine) == 0
    subprocess.run(["kill", "-CONT", str(process.pid)], check=True)
    assert ended(process).code == 0
    migration.join(60)
    assert pair.where(guest.machine) == 1
    guest.write("vda", 2 * MIB, 64 * KIB, 0x13)
    answer = there.backup(guest, "--engine", "pull", "--take-over")
    assert answer.how() == {"vda": DELTA} and answer.disks()["vda"]["volume"]["read"] == 128 * KIB
    assert_holds(there, answer.run, tmp_path / "out", guest, guest.frozen_model())


@pytest.mark.parametrize("engine", ["overlay", "pull"])
def test_storage_is_copied(pair: Pair, tmp_path: Path, engine: str) -> None:
    """Overlays come out as something else, and are refused until they are merged. QEMU moves bitmaps with the data."""
    here, there = pair.locals
    theirs = pair.bed.directory / "theirs"
    images = pair.bed.directory / "images"
    theirs.mkdir()
    images.mkdir()
    guest = Guest(pair.bed, [pair.bed.qcow2("images/a", 4 * MIB)])
    guest.start()
    guest.write("vda", 0, 64 * KIB, 0x11)
    here.backup(guest, "--engine", engine)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x12)
    for path in images.iterdir():
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", theirs / path.name, str(4 * MIB)], check=True)
    assert pair.hosts[1].run("mount", "--bind", theirs, images).returncode == 0
    place = pair.hosts[1].directory / "nbd"
    pair.move(guest.machine, flags=COPY, **{libvirt.VIR_MIGRATE_PARAM_DISKS_URI: f"unix://{place}"})
    place.unlink(missing_ok=True)
    guest.write("vda", 2 * MIB, 64 * KIB, 0x13)
    there = Inside(there.uri, there.state, there.vault, host=pair.hosts[1])
    command = ("backup", guest.uuid, "--engine", engine, "--take-over")
    how = DELTA
    if engine == "overlay":
        before = tree(theirs)
        there.refused("layer_unknown", *command, exit_code=REFUSED)
        assert tree(theirs) == before
        assert there("recover").code == 0
        words = ["virsh", "-c", there.uri, "blockcommit", guest.machine.name, "vda", "--active", "--pivot"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        how = ("incremental", "compare", "no_tracker")
    answer = there.good(*command)
    assert answer.how() == {"vda": how}
    assert_holds(there, answer.run, tmp_path / "out", guest, guest.frozen_model())
    guest.off()
    assert pair.hosts[1].run("umount", images).returncode == 0


def test_a_definition_is_left_behind(pair: Pair, tmp_path: Path) -> None:
    """The old host still knows the guest, as one that is shut off. Its files are not the old host's any more."""
    here, there = pair.locals
    guest = Guest(pair.bed, [pair.bed.raw("a", 4 * MIB), pair.bed.qcow2("b", 4 * MIB)])
    guest.start()
    guest.write("vda", 0, 64 * KIB, 0x11)
    here.backup(guest)
    pair.move(guest.machine, flags=libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNSAFE)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x12)
    away, overlays = pair.away(guest.machine), [path for path in guest.files() if ".raksha-" in path]
    assert away.refused("vm_busy", "backup", guest.uuid).json["error"]["message"].endswith("that is not known here.")
    assert "lock" in away.refused("image_tool_failed", "release", guest.uuid).json["error"]["message"]
    away.good("recover")
    assert guest.files().issuperset(overlays)
    answer = there.backup(guest, "--take-over")
    assert answer.how() == {"vda": DELTA, "vdb": DELTA}
    assert_holds(there, answer.run, tmp_path / "out", guest, guest.frozen_model())
    before = sorted(guest.files())
    away.refused("disk_unsupported", "release", guest.uuid)
    away.refused("disk_unsupported", "backup", guest.uuid, "--vault", f"file://{tmp_path}/another")
    away.good("recover")
    assert sorted(guest.files()) == before
    guest.write("vdb", 1 * MIB, 64 * KIB, 0x13)
    answer = there.backup(guest)
    assert answer.how() == {"vda": DELTA, "vdb": DELTA}
