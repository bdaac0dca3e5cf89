"""What goes wrong around the engine `pull`: a run fails cleanly or goes on, nothing is left, the next run is exact."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from raksha.errors import CaptureFailed, DiskUnsupported, RakshaError
from raksha.journal import BitmapState
from raksha.states import ReadMode, Reason
from raksha.virt.capture import Capture
from raksha.virt.libvirt.pull_xml import bitmap_name
from tests.bed import Bed, SessionHost
from tests.functional.overlay_kit import KIB, MIB, Guest
from tests.functional.pull_kit import PullKit, bitmaps, kill_qemu, lying, pull_kit_on


@pytest.fixture
def kit(bed: Bed) -> Iterator[PullKit]:
    with pull_kit_on(bed) as made:
        yield made


@pytest.fixture
def guest(bed: Bed) -> Guest:
    made = Guest(bed, [bed.qcow2("a", 4 * MIB), bed.raw("b", 4 * MIB)], discard=True)
    made.start()
    made.write("vda", 0, 200 * KIB, 0x11)
    made.write("vdb", 0, 100 * KIB, 0x22)
    return made


def how(kit: PullKit, run: str) -> tuple[ReadMode, Reason | None]:
    disk = kit.disk(run)
    return disk.mode, disk.reason


# between two runs


def test_restarted_domain(kit: PullKit, guest: Guest) -> None:
    run = kit.run(guest)
    for number in range(2):
        guest.write("vda", (512 + number * 64) * KIB, 8 * KIB, 0x51)
        guest.off()
        guest.start()
        guest.write("vda", (1024 + number * 64) * KIB, 8 * KIB, 0x52)
        run = kit.run(guest, run)
        assert how(kit, run) == (ReadMode.DELTA, None) and kit.warnings == []
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(run)]}


def test_redefined_domain(kit: PullKit, guest: Guest) -> None:
    """What Nova does at a hard reboot: destroy, undefine, define and start anew."""
    first = kit.run(guest)
    definition = guest.machine.xml(inactive=True)
    guest.off()
    guest.machine.domain.undefine()
    guest.machine.connection.defineXML(definition)
    guest.start()
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    assert how(kit, kit.run(guest, first)) == (ReadMode.DELTA, None)


def test_killed_qemu(kit: PullKit, guest: Guest, bed: Bed) -> None:
    first = kit.run(guest)
    guest.off()
    guest.start()
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    kill_qemu(guest)
    assert lying(bed.directory / "a.qcow2") == {bitmap_name(first): {"auto", "in-use"}}
    assert how(kit, kit.run(guest, first, durable=False)) == (ReadMode.COMPARE, Reason.BITMAP_INCONSISTENT)
    guest.start()
    second = kit.run(guest, first)
    assert how(kit, second) == (ReadMode.COMPARE, Reason.BITMAP_INCONSISTENT)
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(second)]}, "the dead bitmap is gone"
    guest.write("vda", 2 * MIB, 8 * KIB, 0x53)
    assert how(kit, kit.run(guest, second)) == (ReadMode.DELTA, None)


def test_killed_qemu_that_had_never_written_its_bitmap(kit: PullKit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    kill_qemu(guest)
    guest.start()
    second = kit.run(guest, first)
    assert how(kit, second) == (ReadMode.COMPARE, Reason.BITMAP_LOST)
    assert how(kit, kit.run(guest, second)) == (ReadMode.DELTA, None)


def test_bitmap_removed_by_somebody(kit: PullKit, guest: Guest, bed: Bed) -> None:
    first = kit.run(guest)
    guest.off()
    image = bed.directory / "a.qcow2"
    subprocess.run(["qemu-img", "bitmap", "--remove", "-f", "qcow2", image, bitmap_name(first)], check=True)
    assert how(kit, kit.run(guest, first, durable=False)) == (ReadMode.COMPARE, Reason.BITMAP_LOST)
    guest.start()
    assert how(kit, kit.run(guest, first)) == (ReadMode.COMPARE, Reason.BITMAP_LOST)


def test_older_copy_of_an_image_put_back(kit: PullKit, guest: Guest, bed: Bed) -> None:
    """Its bitmap is whole and as old as its content, but a run was made of the VM at rest in between."""
    image, copy = bed.directory / "a.qcow2", bed.directory / "copy"
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    guest.off()
    shutil.copyfile(image, copy)
    before = bytes(guest.model["vda"])
    guest.start()
    guest.write("vda", 2 * MIB, 64 * KIB, 0x53)
    guest.off()
    second = kit.run(guest, first)
    assert how(kit, second) == (ReadMode.DELTA, None)
    shutil.copyfile(copy, image)
    guest.model["vda"][:] = before
    third = kit.run(guest, second)
    assert how(kit, third) == (ReadMode.DELTA, None)
    guest.start()
    guest.write("vda", 512 * KIB, 8 * KIB, 0x54)
    fourth = kit.run(guest, third)
    assert how(kit, fourth) == (ReadMode.DELTA, None)
    guest.off()
    shutil.copyfile(copy, image)
    guest.model["vda"][:] = before
    guest.start()
    assert how(kit, kit.run(guest, fourth)) == (ReadMode.COMPARE, Reason.BITMAP_LOST)


def test_another_image_below(kit: PullKit, bed: Bed) -> None:
    """A bitmap says nothing about what lies below its image."""
    for name, pattern in (("one", 0x61), ("other", 0x62)):
        image = bed.qcow2(name, 4 * MIB).path
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 0 1M", image], check=True, stdout=-3)
    guest = Guest(bed, [bed.qcow2("a", None, backing="one.qcow2")])
    guest.model["vda"][:MIB] = b"\x61" * MIB
    guest.start()
    first = kit.run(guest)
    guest.off()
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "other.qcow2", "-F", "qcow2", "a.qcow2"]
    subprocess.run(rebase, check=True, cwd=bed.directory)
    guest.model["vda"][:MIB] = b"\x62" * MIB
    guest.start()
    assert how(kit, kit.run(guest, first)) == (ReadMode.COMPARE, Reason.BACKING_CHANGED)


def test_snapshot_of_somebody_else(kit: PullKit, guest: Guest, bed: Bed) -> None:
    """libvirt takes the bitmap along, but what lies below it is no longer what it was made on."""
    first = kit.run(guest)
    overlay = bed.directory / "theirs.qcow2"
    guest.machine.domain.snapshotCreateXML(
        f"<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='{overlay}'/></disk>"
        "<disk name='vdb' snapshot='no'/></disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
    )
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    second = kit.run(guest, first)
    assert how(kit, second) == (ReadMode.COMPARE, Reason.BACKING_CHANGED)
    assert bitmaps(guest.machine) == {"theirs.qcow2": [bitmap_name(second)]}, "the older one went from both layers"
    guest.write("vda", 2 * MIB, 8 * KIB, 0x53)
    guest.off()
    third = kit.run(guest, second)
    assert how(kit, third) == (ReadMode.DELTA, None)
    guest.start()
    assert how(kit, kit.run(guest, third)) == (ReadMode.DELTA, None)


def test_restarted_libvirtd(kit: PullKit, guest: Guest, session_host: SessionHost) -> None:
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    session_host.kill()
    session_host.start()
    kit.reconnect()
    second = kit.run(guest, first)
    assert how(kit, second) == (ReadMode.DELTA, None)
    kit.assert_nothing_left(guest.machine)


def test_bitmap_exists_already(kit: PullKit, guest: Guest) -> None:
    """A run that is tried again under its own name, after the journal was lost, heals itself."""
    first = kit.run(guest)
    request = kit.request(guest.uuid, first)
    capture = kit.capture(request)
    kit.points.store(request.backupjobrun, capture)
    capture.finish()
    kit.journal.forget_bitmap(guest.uuid, "vda", bitmap_name(request.backupjobrun))
    guest.write("vda", 2 * MIB, 8 * KIB, 0x54)
    expected = guest.frozen_model()
    again = kit.capture(request)
    kit.points.store(request.backupjobrun, again)
    assert kit.points.images[request.backupjobrun] == expected
    assert again.finish() == []
    guest.write("vda", 3 * MIB, 8 * KIB, 0x55)
    third = kit.run(guest, request.backupjobrun)
    assert how(kit, third) == (ReadMode.DELTA, None), "it counts from the second attempt"


def test_checkpoint_that_libvirt_cannot_delete(kit: PullKit, guest: Guest) -> None:
    """Its bitmap is gone: libvirt refuses to delete such a checkpoint, and Nova to delete such a server."""
    first = kit.run(guest)
    domain = guest.machine.domain
    name = bitmap_name(first)
    disks = "<disks><disk name='vda' checkpoint='bitmap'/></disks>"
    xml = f"<domaincheckpoint><name>{name}</name><creationTime>1</creationTime>{disks}</domaincheckpoint>"
    domain.checkpointCreateXML(xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
    domain.checkpointLookupByName(name).delete(0)
    domain.checkpointCreateXML(xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
    second = kit.run(guest, first)
    assert how(kit, second) == (ReadMode.COMPARE, Reason.BITMAP_LOST)
    kit.assert_nothing_left(guest.machine)
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(second)]}


# in mid-backup


def under_way(kit: PullKit, guest: Guest, parent: str | None) -> tuple[str, Capture]:
    request = kit.request(guest.uuid, parent)
    return request.backupjobrun, kit.capture(request)


@pytest.mark.parametrize("end", ["destroyed", "crashed"])
def test_guest_ends_while_it_is_read(kit: PullKit, guest: Guest, end: str) -> None:
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    run, capture = under_way(kit, guest, first)
    reader = capture.disks[0].open()
    assert reader.pread(1 * MIB, 8 * KIB) == b"\x52" * (8 * KIB)
    if end == "destroyed":
        guest.off()
    else:
        kill_qemu(guest)
    with pytest.raises(CaptureFailed, match="shut off, crashed"):
        reader.pread(0, 4096)
    with pytest.raises(CaptureFailed, match="shut off, crashed"):
        kit.points.store(run, capture)
    with pytest.raises(CaptureFailed, match="shut off, crashed"):
        capture.check()
    capture.abandon()
    kit.assert_nothing_left(guest.machine)
    guest.start()
    second = kit.run(guest, first)
    # A bitmap that was never written to the image goes with a QEMU that crashes.
    lost = (ReadMode.COMPARE, Reason.BITMAP_LOST)
    assert how(kit, second) == (lost if end == "crashed" else (ReadMode.DELTA, None))
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(second)]}, "that of the failed run is gone, too"
    kit.assert_nothing_left(guest.machine)


def test_guest_ends_after_it_was_read(kit: PullKit, guest: Guest) -> None:
    first = kit.run(guest)
    run, capture = under_way(kit, guest, first)
    expected = guest.frozen_model()
    kit.points.store(run, capture)
    capture.check()
    guest.off()
    assert capture.finish() == []
    assert kit.points.images[run] == expected
    kit.assert_nothing_left(guest.machine)
    guest.start()
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    second = kit.run(guest, run)
    assert how(kit, second) == (ReadMode.DELTA, None)
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(second)]}, "that of the first run went as well"


def test_restarted_while_it_is_read(kit: PullKit, guest: Guest) -> None:
    """Another QEMU, the same VM: what was begun is gone."""
    first = kit.run(guest)
    _, capture = under_way(kit, guest, first)
    guest.off()
    guest.start()
    with pytest.raises(CaptureFailed):
        capture.check()
    capture.abandon()
    kit.assert_nothing_left(guest.machine)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    assert how(kit, kit.run(guest, first)) == (ReadMode.DELTA, None)


def test_undefined_while_it_is_read(kit: PullKit, guest: Guest) -> None:
    _, capture = under_way(kit, guest, None)
    guest.off()
    guest.machine.domain.undefine()
    with pytest.raises(RakshaError):
        capture.check()
    capture.abandon()
    scratch = kit.settings.state_dir / "scratch"
    assert list(scratch.iterdir()) == [] and kit.journal.open_intents() == []


def test_libvirtd_killed_while_it_is_read(kit: PullKit, guest: Guest, session_host: SessionHost) -> None:
    """QEMU goes on serving; the run takes a new connection and comes to its end."""
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    run, capture = under_way(kit, guest, first)
    expected = guest.frozen_model()
    session_host.kill()
    session_host.start()
    kit.points.store(run, capture)
    capture.check()
    assert capture.finish() == []
    assert kit.points.images[run] == expected
    kit.reconnect()
    kit.assert_nothing_left(guest.machine)
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(run)]}
    guest.write("vda", 1 * MIB, 8 * KIB, 0x53)
    assert how(kit, kit.run(guest, run)) == (ReadMode.DELTA, None)


def test_libvirtd_away_when_the_run_is_given_up(kit: PullKit, guest: Guest, session_host: SessionHost) -> None:
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    _, capture = under_way(kit, guest, first)
    session_host.kill()
    capture.abandon()
    session_host.start()
    kit.reconnect()
    second = kit.run(guest, first)
    assert how(kit, second) == (ReadMode.DELTA, None)
    kit.assert_nothing_left(guest.machine)
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(second)]}


# a process that is killed

VICTIM = """
import sys, time
from pathlib import Path
from raksha.config import Settings
from raksha.journal import Journal
from raksha.states import Quiesce
from raksha.virt.capture import CaptureRequest, Parent
from raksha.virt.libvirt import checkpoint, connection, pull, pull_capture, pull_place
place, uri, state, vm, run, parent = sys.argv[1:7]

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

{
    "place made": lambda: after(pull_place, "make"),
    "checkpoints told": lambda: after(connection.Guest, "checkpoint_redefine"),
    "before the backup": lambda: before(connection.Guest, "backup_begin"),
    "after the backup began": lambda: after(connection.Guest, "backup_begin"),
    "while reading": lambda: after(pull.PullPrepared, "capture"),
    "before the job ends": lambda: before(connection.Guest, "abort_domain_job"),
    "after the job ended": lambda: after(connection.Guest, "abort_domain_job"),
    "before the checkpoints are forgotten": lambda: before(connection.Guest, "checkpoint_delete"),
    "in the middle of removing": lambda: before(Journal, "forget_bitmap"),
}[place]()
settings = Settings(libvirt_uri=uri, state_dir=Path(state), overlay_reserve_min=1 << 20)
engine = pull.PullEngine(settings, Journal(settings.state_dir))
since = {target: Parent(parent, 4 << 20) for target in ("vda", "vdb")}
prepared = engine.prepare(CaptureRequest(vm, run, "daily", since=since, quiesce=Quiesce.NEVER))
prepared.freeze(); prepared.snapshot(); prepared.thaw()
prepared.capture().finish()
"""

PLACES = [
    "place made", "checkpoints told", "before the backup", "after the backup began", "while reading",
    "before the checkpoints are forgotten", "before the job ends", "after the job ended", "in the middle of removing",
]  # fmt: skip


def killed_at(kit: PullKit, guest: Guest, place: str, run: str, parent: str) -> None:
    arguments = [place, kit.settings.libvirt_uri, str(kit.settings.state_dir), guest.uuid, run, parent]
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, *arguments], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    try:
        assert victim.stdout.readline() == b"here\n"
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        victim.stdout.close()


@pytest.mark.parametrize("place", PLACES)
def test_killed(kit: PullKit, guest: Guest, place: str) -> None:
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    killed_at(kit, guest, place, "01234567-0123-0123-0123-0123456789ab", first)
    guest.write("vda", 2 * MIB, 8 * KIB, 0x53)
    second = kit.run(guest, first)
    kit.assert_nothing_left(guest.machine)
    assert kit.warnings == []
    # Only where the victim was about to tidy up had it taken its run for durable.
    tidied = place == "in the middle of removing"
    assert how(kit, second) == ((ReadMode.COMPARE, Reason.BITMAP_LOST) if tidied else (ReadMode.DELTA, None))
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(second)]}
    guest.write("vda", 3 * MIB, 8 * KIB, 0x54)
    assert how(kit, kit.run(guest, second)) == (ReadMode.DELTA, None)


def test_killed_while_reading_leaves_no_job(kit: PullKit, guest: Guest) -> None:
    """The guard ends it at once: a guest that writes on would fill the scratch files."""
    killed_at(kit, guest, "while reading", "01234567-0123-0123-0123-0123456789ab", "none")
    deadline = time.monotonic() + 10
    scratch = kit.settings.state_dir / "scratch"
    while guest.machine.domain.jobInfo()[0] or list(scratch.iterdir()):
        assert time.monotonic() < deadline, "the backup job goes on"
        time.sleep(0.05)
    kit.engine.release(guest.uuid)
    assert bitmaps(guest.machine) == {}
    kit.assert_nothing_left(guest.machine)


def test_killed_after_the_run_was_durable(kit: PullKit, guest: Guest) -> None:
    """The vault has the run as the newest point: its bitmap counts, though nobody had come to note that."""
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 8 * KIB, 0x52)
    run, capture = under_way(kit, guest, first)
    kit.points.store(run, capture)
    capture.abandon = lambda: None  # type: ignore[method-assign]
    bitmap = next(each for each in kit.journal.bitmaps(guest.uuid) if each.run == run)
    assert bitmap.state is BitmapState.PLANNED
    capture._close()  # type: ignore[attr-defined]
    guest.write("vda", 2 * MIB, 8 * KIB, 0x53)
    second = kit.run(guest, run)
    assert how(kit, second) == (ReadMode.DELTA, None)
    assert bitmaps(guest.machine) == {"a.qcow2": [bitmap_name(second)]}


def test_left_in_the_scratch_directory(kit: PullKit, guest: Guest) -> None:
    """Whatever lies where a run wants its files is not ours to delete."""
    from raksha.virt.libvirt.pull_place import place_of

    request = kit.request(guest.uuid)
    place = place_of(kit.settings, request.backupjobrun, guest.uuid)
    place.directory.mkdir(parents=True)
    Path(place.directory, "theirs").touch()
    with pytest.raises(CaptureFailed, match="cannot be prepared"):
        kit.capture(request)
    assert Path(place.directory, "theirs").exists()


@pytest.mark.parametrize("nova", [True, False])
def test_disk_that_the_definition_has_lost(kit: PullKit, guest: Guest, *, nova: bool) -> None:
    """What Nova leaves behind when libvirt does not let it detach a disk that is read: the guest has it still."""
    machine = guest.machine
    instance = (
        "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>" if nova else ""
    )
    definition = etree.fromstring(machine.xml(inactive=True).replace("<memory ", instance + "<memory ", 1))
    lost = definition.findall("devices/disk")[-1]
    lost.getparent().remove(lost)
    machine.connection.defineXML(etree.tostring(definition, encoding="unicode"))
    if not nova:
        with pytest.raises(DiskUnsupported, match="running VM only"):
            kit.run(guest)
        return
    first = kit.run(guest)
    assert set(kit.points.captures[first]) == set(guest.model) and len(guest.model) > 1
