"""kill -9 at any moment, and libvirtd killed in between: the next run, or release, goes on from what is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha.states import ReadMode, Reason
from tests.bed import Bed, SessionHost
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on

#: a process that does one run and stands still at a named place, telling so
VICTIM = """
import sys, threading, time
from pathlib import Path
from raksha.config import Settings
from raksha.journal import Journal
from raksha.states import Quiesce
from raksha.virt.capture import CaptureRequest
from raksha.virt.libvirt import commit, connection, overlay, overlay_file, trash
place, uri, state, vm, run = sys.argv[1:6]

def stop_here(*_, **__):
    print("here", flush=True)
    time.sleep(600)

def before(owner, name):
    setattr(owner, name, stop_here)

def after(owner, name):
    real = getattr(owner, name)
    def both(*arguments, **named):
        real(*arguments, **named)
        stop_here()
    setattr(owner, name, both)

def slow_merge():
    def commit(self, disk, base, top, *, relative=False):
        self._domain.blockCommit(disk, base, top, 1, 8 if relative else 0)  # 1 MiB/s
        stop_here()
    connection.Guest.commit = commit

{
    "while merging": slow_merge,
    "made one overlay": lambda: after(Journal, "add_layer"),
    "made, not noted": lambda: after(overlay_file, "make"),
    "before the snapshot": lambda: before(connection.Guest, "snapshot"),
    "after the snapshot": lambda: after(connection.Guest, "snapshot"),
    "while reading": lambda: after(overlay.OverlayPrepared, "capture"),
    "before the merge": lambda: before(connection.Guest, "commit"),
    "after the merge began": lambda: after(connection.Guest, "commit"),
    "before the merged layer is deleted": lambda: before(trash.Trash, "put"),
    "before the pivot": lambda: before(connection.Guest, "pivot"),
    "after the pivot": lambda: after(connection.Guest, "pivot"),
}[place]()
settings = Settings(libvirt_uri=uri, state_dir=Path(state), overlay_reserve_min=1 << 20, trash_hours=0)
engine = overlay.OverlayEngine(settings, Journal(settings.state_dir))
if "pivot" in place:
    engine.release(vm)
prepared = engine.prepare(CaptureRequest(vm, run, "job", quiesce=Quiesce.NEVER))
prepared.freeze(); prepared.snapshot(); prepared.thaw()
prepared.capture().finish()
"""

PLACES = [
    "made one overlay", "made, not noted", "before the snapshot", "after the snapshot", "while reading",
    "before the merge", "after the merge began", "before the merged layer is deleted",
    "before the pivot", "after the pivot",
]  # fmt: skip


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed) as made:
        yield made


def killed_at(kit: Kit, guest: Guest, place: str) -> None:
    """Start a run in another process, kill -9 it there."""
    arguments = [place, kit.settings.libvirt_uri, str(kit.settings.state_dir), guest.uuid, "deadbeef"]
    victim = subprocess.Popen([sys.executable, "-c", textwrap.dedent(VICTIM), *arguments], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    try:
        assert victim.stdout.readline() == b"here\n"
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        victim.stdout.close()


def servers_of(pid: int) -> list[int]:
    return [int(each.name) for each in Path("/proc").glob("[0-9]*") if _parent(each) == pid]


def _parent(process: Path) -> int | None:
    try:
        return int(process.joinpath("stat").read_text().rsplit(") ", 1)[1].split()[1])
    except OSError:
        return None


@pytest.mark.parametrize("place", PLACES)
def test_killed(kit: Kit, bed: Bed, place: str) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB), bed.qcow2("b", 4 * MIB)])
    definition = guest.machine.xml(inactive=True)
    guest.start()
    guest.write("vda", 0, 64 * KIB, 0x50)
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 1 * MIB, 0x51)
    killed_at(kit, guest, place)
    guest.write("vda", 2 * MIB, 8 * KIB, 0x52)
    second = kit.run(guest, first)  # asserts that it is what the guest had written
    assert kit.warnings == []
    guest.write("vdb", 2 * MIB, 8 * KIB, 0x53)
    third = kit.run(guest, second)
    assert (kit.disk(third).mode, kit.disk(third).reason) == (ReadMode.DELTA, None)
    assert len([name for name in guest.files() if ".raksha-" in name]) == 2, "nothing was left over"
    assert kit.journal.open_intents() == []
    kit.engine.release(guest.uuid)
    assert not [name for name in guest.files() if ".raksha-" in name]
    assert guest.machine.xml(inactive=True) == definition


def test_killed_while_merging(kit: Kit, bed: Bed) -> None:
    """QEMU goes on merging; the next run waits until it has ended."""
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    first = kit.run(guest)
    guest.write("vda", 0, 3 * MIB, 0x51)
    killed_at(kit, guest, "while merging")
    assert guest.machine.domain.blockJobInfo("vda"), "the merge is under way"
    guest.write("vda", 2 * MIB, 8 * KIB, 0x52)
    second = kit.run(guest, first)
    assert kit.warnings == []
    assert kit.disk(second).reason in (Reason.UNION_OF_LAYERS, Reason.TRACKER_OTHER_RUN)
    assert len(guest.sources()["vda"]) == 2
    assert len([name for name in guest.files() if ".raksha-" in name]) == 1


def test_killed_after_the_run_was_durable(kit: Kit, bed: Bed) -> None:
    """The vault has the second point; only its merge did not happen."""
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    second = kit.run(guest, first, durable=False)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    third = kit.run(guest, second)
    assert (kit.disk(third).mode, kit.disk(third).reason) == (ReadMode.DELTA, None), "no layer is sent twice"
    assert kit.points.sent[third]["vda"] <= 3 * 64 * KIB
    assert len(guest.sources()["vda"]) == 2


def test_second_point_lost_after_its_merge_began(kit: Kit, bed: Bed) -> None:
    """The merge into the VM's own file was cut off and the newest point deleted: the older parent is still exact."""
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    killed_at(kit, guest, "before the merge")
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    run = kit.run(guest, first)
    assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.DELTA, Reason.UNION_OF_LAYERS)


def test_servers_die_with_us(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    children = set(servers_of(os.getpid()))
    arguments = ["while reading", kit.settings.libvirt_uri, str(kit.settings.state_dir), guest.uuid, "deadbeef"]
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, *arguments], stdout=subprocess.PIPE)
    assert victim.stdout is not None and victim.stdout.readline() == b"here\n"
    servers = servers_of(victim.pid)
    assert len(servers) == 1 and children
    victim.kill()
    victim.wait()
    victim.stdout.close()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/cmdline").exists() and b"qemu-nbd" in cmdline(pid) for pid in servers):
        assert time.monotonic() < deadline, "qemu-nbd outlived its parent"
        time.sleep(0.05)


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_daemon_killed_while_reading(session_host: SessionHost, bed: Bed) -> None:
    """A new connection goes on; the capture that lost its daemon is still good, its merge is left to the next run."""
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    with kit_on(bed) as kit:
        first = kit.run(guest)
        guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
        request = kit.request(guest.uuid, first)
        capture = kit.capture(request)
        expected = guest.frozen_model()
        session_host.kill()
        try:
            kit.points.store(request.backupjobrun, capture)
            assert kit.points.images[request.backupjobrun] == expected
            warnings = capture.finish()
            assert len(warnings) == 1
        finally:
            session_host.start()
    points = kit.points
    with kit_on(bed) as kit:
        kit.points = points
        guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
        run = kit.run(guest, request.backupjobrun)
        assert (kit.disk(run).mode, kit.warnings) == (ReadMode.DELTA, [])
        assert len(guest.sources()["vda"]) == 2
