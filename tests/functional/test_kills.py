"""Others die, or change the VM, while a command is at work on it: QEMU, libvirtd, both; its owner.

The command stands still at a crash point (RAKSHA_CRASH_SIGNAL=STOP) while that happens, then goes on. It must end by
itself, with its result or an error that has a name; nothing of the guest's is lost, and the next run is right.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt_qemu
import pytest

from raksha.virt.libvirt.domain_xml import parse_domain
from raksha.virt.libvirt.processes import qemu_of
from tests.bed import Bed, SessionHost, check_records
from tests.functional.crash_kit import KILLED, OVERLAY, World, alive, wanted_sample, world_on
from tests.functional.events import DEADLY, EVENTS, Events
from tests.functional.local_kit import ATTENTION, Answer
from tests.functional.overlay_kit import MIB

pytestmark = [pytest.mark.bed, pytest.mark.timeout(3600)]

#: where a backup and a release stand still
BACKUP = [
    "overlay.create", "libvirt.snapshotCreateXML", "libvirt.snapshotCreateXML.done", "vault.put.segment",
    "vault.put.run.json", "journal.run_durable", "libvirt.blockCommit", "libvirt.blockCommit.done", "trash.move",
]  # fmt: skip
PULL = [
    "libvirt.checkpointCreateXML", "libvirt.backupBegin", "libvirt.backupBegin.done", "libvirt.delete",
    "vault.put.segment", "vault.put.run.json", "journal.run_durable", "libvirt.abortJob", "libvirt.abortJob.done",
    "scratch.remove", "libvirt.delete:3",
]  # fmt: skip
RELEASE = ["libvirt.blockCommit", "libvirt.blockCommit.done", "libvirt.blockJobAbort", "libvirt.blockJobAbort.done"]
#: seconds from the call into libvirt to the death of libvirtd
DELAYS = [0.0, 0.005, 0.02, 0.05]
#: of these, how many the ordinary test run takes
SAMPLE = 8


@pytest.fixture
def world(bed: Bed, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with world_on(bed, tmp_path, getattr(request, "param", "overlay")) as made:
        made.backup()
        made.writes()
        yield made


class WorldEvents(Events):
    """Of a world's VM, whose disks are known to the byte."""

    def __init__(self, world: World, host: SessionHost) -> None:
        super().__init__(world.guest.machine, host, world.bed.directory)
        self.world = world

    def _look_at_disks(self) -> None:
        self.world.assert_disks_hold()

    def _resized(self) -> None:
        self.world.guest.model["vda"].extend(bytes(1 * MIB))


def stopped_at(world: World, point: str, event: Callable[[], None], delay: float | None, *command: str) -> Answer:
    """The command's answer, with something done while it stood at a point, or so many seconds after it went on."""

    def meanwhile(pid: int) -> None:
        while alive(pid):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                break
            time.sleep(0.005)
        else:
            pytest.fail(f"never came to {point}")
        if delay is None:
            event()
        os.kill(pid, signal.SIGCONT)
        if delay is not None:
            time.sleep(delay)
            event()

    world.begun, world.history = world.guest.frozen_model(), []
    environment = {"RAKSHA_CRASH_AT": point, "RAKSHA_CRASH_SIGNAL": "STOP"}
    return world.local.during(meanwhile, environment, *command, "--json")


def assert_clean_end(answer: Answer) -> None:
    """A result, or an error with a name; nothing that nobody thought of."""
    assert answer.code != KILLED and "Traceback" not in answer.err, answer
    if answer.code:
        assert answer.error not in ("error", "host_failed"), answer


def settles(world: World, events: Events, answer: Answer) -> None:
    assert_clean_end(answer)
    guest = world.guest
    if not guest.machine.running:
        end_lost_qemu(world)
        world.assert_disks_hold()
        guest.start()
    events.repair()
    world.write()
    world.adopt_new_points()
    end_stale_mirror(world)
    following = world.backup()
    assert_right_and_clean(world, following)
    again = world.backup()
    untracked = {"vdb"} if world.engine == "pull" else set()  # a raw file can have no bitmap
    modes = {target: disk["mode"] for target, disk in again.disks().items()}
    assert modes == {target: "compare" if target in untracked else "delta" for target in modes}, again.how()
    assert_right_and_clean(world, again)
    world.restart()


def end_lost_qemu(world: World) -> None:
    """libvirt, killed, may rarely not find its QEMU again. Nothing may be touched then; a person ends it."""
    patience = time.monotonic() + 6
    while (lost := qemu_of(world.guest.uuid)) and time.monotonic() < patience:
        time.sleep(0.05)  # it may be on its way out
    if lost:
        refused = world.local("backup", world.guest.uuid, *world.options)
        assert (refused.code, refused.error) == (ATTENTION, "orphan_qemu")
        for process in lost:
            os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while qemu_of(world.guest.uuid):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def end_stale_mirror(world: World) -> None:
    """libvirtd, killed inside a pivot, may not know the disk's file any more. Nothing may be touched then; a person
    lets the definition name what QEMU writes to, and powers the VM off, and on again."""
    machine = world.guest.machine
    before = machine.xml()
    if "<mirror" not in before or any(world.merging(target) for target in ("vda", "vdb")):
        return
    refused = world.local("backup", world.guest.uuid, *world.options)
    assert (refused.code, refused.error) == (ATTENTION, "stale_mirror"), refused
    assert machine.xml() == before
    world.pivoted_and_died = True
    world.write()
    inactive = machine.xml(inactive=True)
    told = json.loads(libvirt_qemu.qemuMonitorCommand(machine.domain, '{"execute": "query-block"}', 0))["return"]
    writes = {path_of(drive["inserted"]["file"]) for drive in told if "inserted" in drive}
    for disk in parse_domain(before).disks:
        if disk.top.path in writes:
            continue
        below = next((layer for layer in disk.layers if layer.path in writes), None)
        assert below is not None, (writes, disk)
        old = next(each for each in re.findall(r"<disk .*?</disk>", inactive, re.S) if disk.top.path in each)
        new = re.sub(r"<backingStore.*</backingStore>|<backingStore.*/>", "", old, flags=re.S)
        new = new.replace(disk.top.path, below.path).replace(f"type='{disk.top.format}'", f"type='{below.format}'")
        machine.connection.defineXML(inactive.replace(old, new))
    world.restart()


def path_of(told: str) -> str:
    """Of a node, as QEMU tells it."""
    if not told.startswith("json:"):
        return told
    node = json.loads(told.removeprefix("json:"))
    while "filename" not in node:
        node = node["file"]
    return str(node["filename"])


def assert_right_and_clean(world: World, answer: Answer) -> None:
    world.assert_nothing_left(orphans=orphans_told(world, answer))
    world.assert_right(answer.run)


def orphans_told(world: World, answer: Answer) -> set[str]:
    """Layers that were merged in a QEMU that is no more: they cannot be told from those that a VM was started below, so
    they stay, and each run names them. Only there may one stay."""
    used = {path for paths in world.overlays().values() for path in paths}
    left = {str(path) for path in world.bed.directory.iterdir() if OVERLAY in path.name and path.is_file()} - used
    assert not left or world.pivoted_and_died, left
    assert all(any(path in warning for warning in answer.warnings) for path in left), answer.warnings
    return left


def chosen(points: list[str], count: int) -> list[tuple[str, str]]:
    """Pairs of point and event: all, or so many that every point and every event come up."""
    pairs = [(point, event) for event in EVENTS for point in points]
    if not count:
        return pairs
    return [(points[number % len(points)], EVENTS[number % len(EVENTS)]) for number in range(max(count, len(EVENTS)))]


#: of the engine `pull`, half of them where there is a choice
DURING = [("overlay", *pair) for pair in chosen(BACKUP, wanted_sample(SAMPLE))]
DURING += [("pull", *pair) for pair in chosen(PULL, wanted_sample(SAMPLE))[:: 2 if wanted_sample(SAMPLE) else 1]]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "point", "event"), DURING, indirect=["world"])
def test_during_a_backup(session_host: SessionHost, world: World, point: str, event: str) -> None:
    events = WorldEvents(world, session_host)
    command = ("backup", world.guest.uuid, *world.options)
    answer = stopped_at(world, point, getattr(events, event), None, *command)
    settles(world, events, answer)


@pytest.mark.slow
@pytest.mark.parametrize(("point", "event"), chosen(RELEASE, wanted_sample(3))[: wanted_sample(3) or None])
def test_during_a_release(session_host: SessionHost, world: World, point: str, event: str) -> None:
    events = WorldEvents(world, session_host)
    world.pivoted_and_died = point == "libvirt.blockJobAbort.done" and event in DEADLY
    answer = stopped_at(world, point, getattr(events, event), None, "release", world.guest.uuid)
    settles(world, events, answer)


@pytest.mark.parametrize("delay", DELAYS if wanted_sample(SAMPLE) == 0 else DELAYS[1:2])
@pytest.mark.parametrize(
    ("command", "point"), [("backup", "libvirt.blockCommit"), ("release", "libvirt.blockJobAbort")]
)
def test_libvirtd_dies_inside_a_block_job(
    session_host: SessionHost, world: World, command: str, point: str, delay: float
) -> None:
    """A moment after the call was made: before, in the middle of it, or after it."""
    events = WorldEvents(world, session_host)
    options = world.options if command == "backup" else ()
    answer = stopped_at(world, point, events.kill_libvirtd, delay, command, world.guest.uuid, *options)
    settles(world, events, answer)


def test_libvirtd_dies_when_qemu_has_opened_an_overlay(session_host: SessionHost, world: World) -> None:
    """libvirt has QEMU open the overlays one by one before it takes the snapshot. If it dies in between, nobody has
    them closed any more, and a new libvirtd gives their names a second time."""
    events, domain = WorldEvents(world, session_host), world.guest.machine.domain
    number = 1 + max(int(each) for each in re.findall(r"index='(\d+)'", world.guest.machine.xml()))
    opened: list[Path] = []

    def open_and_die() -> None:
        used = [path for paths in world.overlays().values() for path in paths]
        (path,) = (path for path in world.bed.directory.glob("vm-a.raksha-*") if str(path) not in used)
        node = {"node-name": f"libvirt-{number}-storage", "driver": "file", "filename": str(path), "read-only": False}
        command = json.dumps({"execute": "blockdev-add", "arguments": node})
        assert json.loads(libvirt_qemu.qemuMonitorCommand(domain, command, 0))["return"] == {}
        opened.append(path)
        events.kill_libvirtd()

    answer = stopped_at(world, "libvirt.snapshotCreateXML", open_and_die, None, "backup", world.guest.uuid)
    assert answer.error == "capture_failed", answer
    # it is in use, so it stays, and each run says so; nothing else is in the way
    (path,) = opened
    for _ in range(2):
        world.write()
        following = world.backup()
        assert all(disk["mode"] == "delta" for disk in following.disks().values()), following.how()
        assert any(str(path) in warning and "has it open" in warning for warning in following.warnings), following
        world.assert_nothing_left(orphans={str(path)})
        world.assert_right(following.run)
    world.restart()
    assert_right_and_clean(world, world.backup())
    assert not path.exists()


@pytest.mark.slow
def test_a_guest_that_writes_is_killed_in_the_middle(session_host: SessionHost, bed: Bed, tmp_path: Path) -> None:
    """A real one, with its own acknowledgements: QEMU and libvirtd die while its disks are read and merged."""
    with world_on(bed, tmp_path) as world:
        bed.qcow2("base2")
        vm = bed.machine([bed.qcow2("c", None, backing="base2.qcow2"), bed.raw("d")], name="real", pause=0)
        vm.boot()
        world.local.good("backup", vm.uuid)
        for point in ("vault.put.segment", "libvirt.blockCommit.done"):
            acknowledged = vm.wait_for_records(30)

            def kill_both() -> None:
                pid = int(next((session_host.directory / "r/libvirt/qemu/run").glob(f"{vm.name}.pid")).read_text())
                session_host.kill()
                os.kill(pid, signal.SIGKILL)
                session_host.start()

            assert_clean_end(stopped_at(world, point, kill_both, None, "backup", vm.uuid))
            acknowledged = max(acknowledged, vm.last_ack())
            since = vm.mark()
            vm.boot()
            assert vm.verdict(since), "its records are not what it had written"
            assert vm.last_ack(since) == 0 or vm.last_ack(since) > acknowledged
            acknowledged = vm.wait_for_records(10)
            run = world.local.good("backup", vm.uuid).run
            into = tmp_path / f"out-{point}"
            into.mkdir()
            made = world.local.good("restore", run, "--vm", vm.uuid, "--into", into, "--format", "raw").json
            check_records([(Path(disk["target"]), "raw") for disk in made["disks"]], acknowledged)
        assert world.local.good("verify", "--data").json["findings"] == []
        world.local.good("release", vm.uuid)


def tear_the_merge(world: World, events: Events, owns: dict[str, bytes]) -> None:
    """QEMU dies when it has ended the merge of vda, and nothing of that has come to the file below: it had been in its
    memory, as happens for a moment (docs/safety.md)."""
    deadline = time.monotonic() + 30
    while world.merging("vda"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    events.kill_qemu()
    own = next(path for path in owns if path.endswith("vm-a.qcow2"))
    assert Path(own).read_bytes() != owns[own], "nothing was merged"
    with Path(own).open("r+b") as file:
        file.truncate(len(owns[own]))
        file.write(owns[own])


def own_files(world: World) -> dict[str, bytes]:
    return {paths[1]: Path(paths[1]).read_bytes() for paths in world.guest.sources().values()}


def test_a_merge_that_never_came_to_disk(session_host: SessionHost, world: World) -> None:
    """The run itself puts the layer back, so that the owner's next start has everything."""
    events, owns = WorldEvents(world, session_host), own_files(world)
    command = ("backup", world.guest.uuid, *world.options)
    answer = stopped_at(world, "libvirt.blockCommit.done", lambda: tear_the_merge(world, events, owns), None, *command)
    assert answer.code == 0, "the restore point was durable before"
    assert any("part of the chain again" in warning for warning in answer.warnings), answer.warnings
    settles(world, events, answer)


def test_a_torn_merge_below_a_vm_that_was_started(session_host: SessionHost, world: World) -> None:
    """Nobody of us was there: the VM runs without what the layer holds. Nothing is made worse, and a stop mends it."""
    events, owns = WorldEvents(world, session_host), own_files(world)
    world.begun = world.guest.frozen_model()
    crash = {"RAKSHA_CRASH_AT": "libvirt.blockCommit.done"}
    answer = world.local.during(lambda _: None, crash, "backup", world.guest.uuid, *world.options, "--json")
    assert answer.code == KILLED
    tear_the_merge(world, events, owns)
    world.guest.start()
    refused = world.local("backup", world.guest.uuid, *world.options)
    assert (refused.code, refused.error) == (ATTENTION, "merge_torn")
    world.guest.off()
    (told,) = world.local.good("recover", world.guest.uuid, "--dry-run").json["vms"]
    assert any("put the overlay back" in action for action in told["actions"])
    world.local.good("recover", world.guest.uuid)
    world.assert_disks_hold()
    world.guest.start()
    world.adopt_new_points()
    assert_right_and_clean(world, world.backup())
