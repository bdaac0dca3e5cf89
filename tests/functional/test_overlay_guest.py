"""Real guests: what they said is on disk is in every restore point, and their file systems stand still when asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from raksha.errors import QuiesceFailed
from raksha.states import Consistency, Quiesce, ReadMode
from raksha.virt.capture import CaptureRequest, Parent
from raksha.virt.group import freeze_together
from tests.bed import Bed, check_records
from tests.bed.machine import Machine
from tests.functional.overlay_kit import MIB, Kit, kit_on

pytestmark = pytest.mark.bed


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed) as made:
        yield made


def request(vm: Machine, kit: Kit, parent: str | None = None, quiesce: Quiesce = Quiesce.NEVER) -> CaptureRequest:
    images = kit.points.images.get(parent or "", {})
    since = {target: Parent(parent or "", len(image)) for target, image in images.items()}
    return CaptureRequest(vm.uuid, os.urandom(8).hex(), "job", since=since, quiesce=quiesce)


def check_point(kit: Kit, bed: Bed, run: str, acknowledged: int) -> None:
    files = []
    for target, image in kit.points.images[run].items():
        files.append(bed.directory / f"{run}-{target}.raw")
        files[-1].write_bytes(image)
    check_records(files, acknowledged)


def test_records_under_load(kit: Kit, bed: Bed) -> None:
    """A raw disk and a qcow2 on a backing image stop at the same record, in the full and in every increment."""
    bed.qcow2("base", 8 * MIB)
    vm = bed.machine([bed.raw("a", 8 * MIB), bed.qcow2("b", None, backing="base.qcow2")], pause=0)
    vm.boot()
    parent = None
    for number in range(4):
        vm.wait_for_records(40)
        order = request(vm, kit, parent)
        prepared = kit.engine.prepare(order)
        acknowledged = vm.last_ack()
        capture = freeze_together([prepared], 10.0).captures[0]
        kit.points.store(order.backupjobrun, capture)
        capture.check()
        if number == 2:
            capture.abandon()  # a failed run in the middle
            continue
        assert capture.finish() == []
        assert kit.disk(order.backupjobrun).mode is (ReadMode.DELTA if parent else ReadMode.FULL)
        check_point(kit, bed, order.backupjobrun, acknowledged)
        parent = order.backupjobrun
    since = vm.last_ack()
    kit.engine.release(vm.uuid)
    vm.wait_for_records(20)
    vm.power_off()
    assert vm.last_ack() > since
    check_records([bed.directory / "a.raw", (bed.directory / "b.qcow2", "qcow2")], vm.last_ack())


@pytest.mark.slow
def test_quiesced(kit: Kit, bed: Bed) -> None:
    """File systems are frozen during the snapshot, and thawed soon after; two VMs form one group."""
    vms = [bed.machine([bed.raw(name, 24 * MIB)], name=name, mode="fs") for name in ("one", "two")]
    for vm in vms:
        vm.boot()
    for vm in vms:
        vm.wait_for_records(5)
    orders = [request(vm, kit, quiesce=Quiesce.REQUIRE) for vm in vms]
    marks = [vm.mark() for vm in vms]
    group = freeze_together([kit.engine.prepare(order) for order in orders], 10.0)
    assert group.skew_seconds < 1.0
    for vm, mark, order, capture in zip(vms, marks, orders, group.captures, strict=True):
        assert capture.consistency is Consistency.QUIESCED
        assert capture.frozen_seconds is not None and capture.frozen_seconds < 5
        vm.wait_for("HOOK freeze", since=mark)
        vm.wait_for("HOOK thaw", since=mark)
        assert vm.agent("guest-fsfreeze-status") == "thawed"
        vm.wait_for_records(3)
        kit.points.store(order.backupjobrun, capture)
        capture.check()
        assert capture.finish() == []
        image = bed.directory / "frozen.raw"
        image.write_bytes(kit.points.images[order.backupjobrun]["vda"])
        # A frozen file system needs no replay of its journal.
        state = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
        assert "needs_recovery" not in state
        image.unlink()
    assert kit.journal.open_intents() == []


@pytest.mark.slow
def test_slow_freeze(bed: Bed) -> None:
    """An agent that does not answer in time: no quiesced point, and the guest does not stay frozen."""
    with kit_on(bed, agent_timeout=1, freeze_deadline=3.0) as kit:
        vm = bed.machine([bed.raw("a", 24 * MIB)], mode="fs", freeze_delay=4)
        vm.boot()
        vm.wait_for_records(2)
        with pytest.raises(QuiesceFailed):
            freeze_together([kit.engine.prepare(request(vm, kit, quiesce=Quiesce.REQUIRE))], 10.0)
        assert not [path for path in bed.directory.iterdir() if ".raksha-" in path.name]
        thawed(vm, 20)
        capture = freeze_together([kit.engine.prepare(request(vm, kit, quiesce=Quiesce.AUTO))], 20.0).captures[0]
        assert capture.consistency is Consistency.CRASH
        capture.abandon()
        thawed(vm, 20)
        vm.wait_for_records(2)


def thawed(vm: Machine, within: float) -> None:
    deadline = time.monotonic() + within
    while True:
        try:
            if vm.agent("guest-fsfreeze-status") == "thawed":
                return
        except libvirt.libvirtError:
            pass
        assert time.monotonic() < deadline, "the guest stayed frozen"
        time.sleep(0.1)


VICTIM = """
import sys, time
from pathlib import Path
from raksha.config import Settings
from raksha.journal import Journal
from raksha.states import Quiesce
from raksha.virt.capture import CaptureRequest
from raksha.virt.libvirt.overlay import OverlayEngine
uri, state, vm = sys.argv[1:4]
settings = Settings(libvirt_uri=uri, state_dir=Path(state), overlay_reserve_min=1 << 20, freeze_deadline=4.0)
engine = OverlayEngine(settings, Journal(settings.state_dir))
prepared = engine.prepare(CaptureRequest(vm, "deadbeef", "job", quiesce=Quiesce.REQUIRE))
prepared.freeze()
print("frozen", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_while_frozen(kit: Kit, bed: Bed, how: signal.Signals) -> None:
    """Dead: thawed at once. Hanging: thawed at the deadline."""
    vm = bed.machine([bed.raw("a", 24 * MIB)], mode="fs")
    vm.boot()
    vm.wait_for_records(3)
    arguments = [kit.settings.libvirt_uri, str(kit.settings.state_dir), vm.uuid]
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, *arguments], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    try:
        assert victim.stdout.readline() == b"frozen\n"
        assert vm.agent("guest-fsfreeze-status") == "frozen"
        acknowledged = vm.last_ack()
        time.sleep(0.5)
        assert vm.last_ack() <= acknowledged + 1, "a frozen file system takes no writes"
        os.kill(victim.pid, how)
        thawed(vm, 3.0 if how is signal.SIGKILL else 8.0)
    finally:
        victim.kill()
        victim.wait()
        victim.stdout.close()
    vm.wait_for_records(3)
    order = request(vm, kit, quiesce=Quiesce.REQUIRE)
    capture = freeze_together([kit.engine.prepare(order)], 10.0).captures[0]
    assert capture.consistency is Consistency.QUIESCED
    assert capture.finish() == []
    left = [path.name for path in bed.directory.iterdir() if ".raksha-" in path.name]
    assert len(left) == 1, "the overlay of the killed run is gone"


@pytest.mark.slow
def test_nothing_to_freeze(kit: Kit, bed: Bed) -> None:
    """A guest without a file system on its disks is not called quiesced."""
    vm = bed.machine([bed.raw("a", 8 * MIB)])
    vm.boot()
    with pytest.raises(QuiesceFailed, match="no file system"):
        freeze_together([kit.engine.prepare(request(vm, kit, quiesce=Quiesce.REQUIRE))], 10.0)
    capture = freeze_together([kit.engine.prepare(request(vm, kit, quiesce=Quiesce.AUTO))], 10.0).captures[0]
    assert (capture.consistency, capture.frozen_seconds) == (Consistency.CRASH, None)
    capture.abandon()


@pytest.mark.slow
def test_one_member_fails(kit: Kit, bed: Bed) -> None:
    """The group is captured as a whole or not at all; everybody is thawed."""
    good = bed.machine([bed.raw("a", 24 * MIB)], name="good", mode="fs")
    bad = bed.machine([bed.raw("b", 24 * MIB)], name="bad", mode="fs")
    for vm in (good, bad):
        vm.boot()
        vm.wait_for_records(2)
    prepared = [kit.engine.prepare(request(vm, kit, quiesce=Quiesce.REQUIRE)) for vm in (good, bad)]
    bad.power_off()
    with pytest.raises(Exception, match=r"not running|freeze|changed"):
        freeze_together(prepared, 10.0)
    assert good.agent("guest-fsfreeze-status") == "thawed"
    assert not [path for path in bed.directory.iterdir() if ".raksha-" in path.name]
    assert kit.journal.open_intents() == []
    capture = freeze_together([kit.engine.prepare(request(good, kit, quiesce=Quiesce.REQUIRE))], 10.0).captures[0]
    capture.abandon()


def test_machine_with_uefi(kit: Kit, bed: Bed) -> None:
    vm = bed.machine([bed.raw("a", 8 * MIB)], uefi=True, machine="q35")
    vm.start()
    nvram = Path(bed.directory / "vm.nvram")
    capture = freeze_together([kit.engine.prepare(request(vm, kit))], 10.0).captures[0]
    assert capture.machine.nvram == nvram.read_bytes() and len(capture.machine.nvram) > 100_000
    assert capture.machine.live_xml is not None and ".raksha-" not in capture.machine.domain_xml
    capture.abandon()


@pytest.mark.system
def test_no_room_for_the_overlay(bed: Bed) -> None:
    """The guest is paused and loses nothing; release brings it back to its own files, and it goes on."""
    small = bed.directory / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m,mode=755", "raksha-test", small], check=True)
    try:
        bed.host.give(small)
        with kit_on(bed, overlay_dir=small, overlay_reserve_min=MIB) as kit:
            vm = bed.machine([bed.raw("a", 16 * MIB), bed.raw("b", 16 * MIB)], pause=0)
            vm.boot()
            capture = freeze_together([kit.engine.prepare(request(vm, kit))], 10.0).captures[0]
            assert capture.finish() == []
            deadline = time.monotonic() + 60
            while vm.domain.state() != [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            kit.engine.release(vm.uuid)
            assert list(small.iterdir()) == []
            vm.wait_for_records(20)
            vm.power_off()
            check_records([bed.directory / "a.raw", bed.directory / "b.raw"], vm.last_ack())
    finally:
        subprocess.run(["umount", small], check=True)
