"""Recovery goes by what it sees. Every state of docs/safety.md that can be made with real parts is made here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha.errors import ChainUnexpected, DefinitionsDisagree, QemuOrphaned, StaleMirror
from raksha.journal import LayerState
from raksha.states import ReadMode, Reason
from raksha.virt.libvirt import connection, trash
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.own_source import own_sources
from raksha.virt.libvirt.recover import look, reconcile
from tests.bed import Bed, SessionHost
from tests.functional.local_kit import Local
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed) as made:
        yield made


@pytest.fixture
def guest(bed: Bed) -> Guest:
    made = Guest(bed, [bed.raw("a", 4 * MIB), bed.qcow2("b", 4 * MIB)])
    made.start()
    made.write("vda", 0, 64 * KIB, 0x11)
    return made


def recover(kit: Kit, guest: Guest) -> list[str]:
    return reconcile(kit.engine.connection.guest(guest.uuid), kit.journal, kit.settings)


def overlays(guest: Guest) -> set[str]:
    return {name for name in guest.files() if ".raksha-" in name and name != ".raksha-trash"}


def define_below(guest: Guest, target: str = "vda") -> str:
    """What somebody does who defines the VM anew from his own records. Returns the overlay."""
    overlay, own = guest.sources(inactive=True)[target]
    layer = Layer(own, "file", "raw" if own.endswith(".raw") else "qcow2")
    guest.machine.connection.defineXML(own_sources(guest.machine.xml(inactive=True), {target: layer}))
    return overlay


def assert_cold_boot_holds(kit: Kit, guest: Guest) -> None:
    """The next start has everything that was ever written."""
    guest.off()
    guest.start()
    kit.run(guest)  # compares with the model


def test_nothing_to_recover_changes_nothing(kit: Kit, guest: Guest) -> None:
    kit.run(guest)
    before = guest.state()
    seen, plan = look(kit.engine.connection.guest(guest.uuid), kit.journal)
    assert [disk.target for disk in seen.disks] == ["vda", "vdb"] and (plan.actions, plan.troubles) == ((), ())
    assert recover(kit, guest) == []
    assert guest.state() == before


def test_defined_anew_while_it_runs(kit: Kit, guest: Guest) -> None:
    """The next cold boot would lose what is in the overlay: it is taken back before that."""
    kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    overlay = define_below(guest)
    notes = recover(kit, guest)
    assert any("vda" in note and "merged" in note for note in notes)
    assert guest.sources()["vda"] == guest.sources(inactive=True)["vda"] == [str(guest.bed.directory / "a.raw")]
    assert not Path(overlay).exists() and len(guest.sources()["vdb"]) == 2, "the other disk stays as it is"
    assert_cold_boot_holds(kit, guest)


def test_snapshot_that_the_definition_did_not_follow(kit: Kit, guest: Guest) -> None:
    """On top of a retained overlay: only the new one is taken back, and the tracker goes on."""
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    kept = guest.machine.xml(inactive=True)
    kit.run(guest, first, durable=False)
    guest.write("vda", 2 * MIB, 64 * KIB, 0x52)
    guest.machine.connection.defineXML(kept)
    recover(kit, guest)
    assert [len(chain) for chain in guest.sources().values()] == [2, 2]
    assert guest.sources() == guest.sources(inactive=True)
    run = kit.run(guest, first)
    assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.DELTA, None)


def test_defined_anew_while_it_is_off(kit: Kit, guest: Guest) -> None:
    """It was not started below, so the overlay has everything: the definition gets it back."""
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    guest.off()
    overlay = define_below(guest)
    notes = recover(kit, guest)
    assert any(overlay in note for note in notes)
    guest.start()
    assert guest.sources()["vda"][0] == overlay
    run = kit.run(guest, first)
    assert kit.disk(run).mode is ReadMode.DELTA, "the tracker is whole"


def test_started_below_and_off_again(kit: Kit, guest: Guest) -> None:
    """Both have something that the other has not: neither is touched, the person is told."""
    first = kit.run(guest)
    before = guest.frozen_model()
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    guest.off()
    overlay = define_below(guest)
    guest.model["vda"][:] = before["vda"]
    guest.model["vda"][3 * MIB : 3 * MIB + 4096] = bytes(4096)  # written right after the snapshot
    guest.start()
    guest.write("vda", 2 * MIB, 64 * KIB, 0x52)
    guest.off()
    notes = recover(kit, guest)
    assert [note for note in notes if overlay in note and "started below" in note]
    assert Path(overlay).exists() and guest.sources(inactive=True)["vda"][0].endswith("a.raw")
    run = kit.run(guest, first)
    assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.COMPARE, Reason.RESTARTED_BELOW)


def test_a_definition_that_says_something_else(kit: Kit, guest: Guest) -> None:
    """Neither the overlay nor what lies below: a person has to say which is right."""
    kit.run(guest)
    other = guest.bed.raw("other", 4 * MIB)
    trap = own_sources(guest.machine.xml(True), {"vda": Layer(str(other.path), "file", "raw")})
    kept = guest.machine.xml(True)
    guest.machine.connection.defineXML(trap)
    before = guest.state()
    with pytest.raises(DefinitionsDisagree) as raised:
        kit.engine.prepare(kit.request(guest.uuid))
    assert str(other.path) in raised.value.advice() and raised.value.exit_code == 7
    assert guest.state() == before
    guest.machine.connection.defineXML(kept)
    kit.run(guest)


def test_merge_that_the_definition_did_not_follow(kit: Kit, guest: Guest) -> None:
    """libvirtd died between the end of a merge and the writing of the definition."""
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    request = kit.request(guest.uuid, first)
    capture = kit.capture(request)
    stale = guest.machine.xml(inactive=True)
    kit.points.store(request.backupjobrun, capture)
    assert capture.finish() == []
    guest.machine.connection.defineXML(stale)
    assert len(guest.sources(inactive=True)["vda"]) == 3
    recover(kit, guest)
    assert_cold_boot_holds(kit, guest)


@pytest.mark.slow
def test_merge_that_the_definition_of_a_vm_that_is_off_did_not_follow(
    kit: Kit, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    request = kit.request(guest.uuid, first)
    capture = kit.capture(request)
    stale = guest.machine.xml(inactive=True)
    merged = guest.sources()["vda"][1]
    kit.points.store(request.backupjobrun, capture)
    monkeypatch.setattr(trash.Trash, "put", lambda _self, layer: f"{layer.file.path} stays")
    assert len(capture.finish()) == 2
    monkeypatch.undo()
    guest.off()
    guest.machine.connection.defineXML(stale)
    assert guest.sources(inactive=True)["vda"][1] == merged and Path(merged).exists()
    recover(kit, guest)
    assert not Path(merged).exists() and len(overlays(guest)) == 2
    guest.start()
    run = kit.run(guest, request.backupjobrun)
    assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.DELTA, None)


def libvirt_loses(host: SessionHost, guest: Guest) -> int:
    """libvirtd forgets that the VM runs. Returns the id of its QEMU, which does."""
    place = host.directory / "r/libvirt/qemu/run"
    pid = int((place / f"{guest.machine.name}.pid").read_text())
    host.kill()
    (place / f"{guest.machine.name}.xml").unlink()
    host.start()
    assert not guest.machine.running and Path(f"/proc/{pid}").exists()
    return pid


@pytest.mark.slow
def test_orphaned_qemu(session_host: SessionHost, bed: Bed, guest: Guest) -> None:
    """libvirt says shut off, but QEMU writes on: nothing is done but to say so, until it is gone."""
    with kit_on(bed) as kit:
        first = kit.run(guest)
        guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    pid = libvirt_loses(session_host, guest)
    with kit_on(bed) as kit:
        kit.points.images[first] = {}
        before = guest.state()
        for attempt in (lambda: kit.engine.prepare(kit.request(guest.uuid)), lambda: kit.engine.release(guest.uuid)):
            with pytest.raises(QemuOrphaned) as raised:
                attempt()
            assert raised.value.fields["pid"] == pid and str(pid) in raised.value.advice()
            assert overlays(guest) <= {Path(path).name for path in raised.value.fields["files"].split(", ")}
        assert guest.state() == before
        local = Local(bed.uri, kit.settings.state_dir, "file:///nowhere")
        answer = local("recover", guest.uuid)
        assert answer.code == 7 and answer.json["vms"][0]["trouble"]["code"] == "orphan_qemu"
        os.kill(pid, signal.SIGTERM)  # writes out what it holds
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            time.sleep(0.05)
        recover(kit, guest)
        guest.start()
        kit.run(guest)


def test_stale_mirror(kit: Kit, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror without a job: libvirtd died inside the pivot (once in 26 tries, so it is put into the definition
    here). No backup, no release, nothing touched; after a power cycle all is well."""
    kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    live_xml = connection.Guest.live_xml
    mirror = "<mirror type='file' ready='pivot'><format type='raw'/><source file='/somewhere'/></mirror>"

    def wedged(self: connection.Guest) -> str:
        return live_xml(self).replace("<target dev='vda'", mirror + "<target dev='vda'")

    before = guest.state()
    monkeypatch.setattr(connection.Guest, "live_xml", wedged)
    for attempt in (lambda: kit.engine.prepare(kit.request(guest.uuid)), lambda: kit.engine.release(guest.uuid)):
        with pytest.raises(StaleMirror) as raised:
            attempt()
        assert guest.sources()["vda"][0] in raised.value.advice(), "what QEMU has open is told"
    monkeypatch.undo()
    assert guest.state() == before
    assert_cold_boot_holds(kit, guest)


@pytest.mark.parametrize("mark", ["inode and attribute", "attribute", "header"])
def test_marks_that_do_not_agree(kit: Kit, guest: Guest, mark: str) -> None:
    """A merged overlay is put away only if it is certainly ours."""
    kit.run(guest)
    capture = kit.capture(kit.request(guest.uuid))
    overlay = Path(guest.sources()["vda"][1])
    capture.abandon()
    layer = next(each for each in kit.journal.layers(guest.uuid) if each.file.path == str(overlay))
    kit.engine.release(guest.uuid)
    assert not overlay.exists()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, "4M"], check=True)
    if mark == "header":
        os.setxattr(overlay, "user.raksha", layer.run.encode())
    if mark == "attribute":
        status = overlay.stat()
        from msgspec.structs import replace

        layer = replace(layer, file=replace(layer.file, inode=status.st_ino, device=status.st_dev))
        subprocess.run(
            ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", layer.base.file.path, "-F", "raw", overlay], check=True
        )
        os.setxattr(overlay, "user.raksha", b"another run")
    content = overlay.read_bytes()
    kit.journal.add_layer(layer)
    kit.journal.set_layers([str(overlay)], LayerState.MERGED)
    notes = recover(kit, guest)
    assert any(str(overlay) in note and "left alone" in note for note in notes), notes
    assert overlay.read_bytes() == content


def test_an_overlay_that_the_journal_forgot_is_not_ours(kit: Kit, guest: Guest) -> None:
    kit.run(guest)
    overlay = guest.sources()["vda"][0]
    kit.journal.forget_layers([overlay])
    before = guest.state()
    recover(kit, guest)
    with pytest.raises(Exception, match="does not know"):
        kit.engine.prepare(kit.request(guest.uuid))
    assert guest.state() == before


VICTIM = """
import sys, time
from pathlib import Path
from raksha.config import Settings
from raksha.journal import Journal
from raksha.states import Quiesce
from raksha.virt.capture import CaptureRequest
from raksha.virt.libvirt import connection, overlay
uri, state, vm, run = sys.argv[1:]
real = connection.Guest.snapshot
def snapshot(self, xml):
    real(self, xml)
    print("here", flush=True)
    time.sleep(600)
connection.Guest.snapshot = snapshot
settings = Settings(libvirt_uri=uri, state_dir=Path(state), overlay_reserve_min=1 << 20, trash_hours=0)
prepared = overlay.OverlayEngine(settings, Journal(settings.state_dir)).prepare(
    CaptureRequest(vm, run, "job", quiesce=Quiesce.NEVER))
prepared.freeze(); prepared.snapshot()
"""


def killed_after_snapshot(kit: Kit, guest: Guest, run: str = "deadbeef") -> None:
    words = [sys.executable, "-c", VICTIM, kit.settings.libvirt_uri, str(kit.settings.state_dir), guest.uuid, run]
    victim = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    assert victim.stdout.readline() == b"here\n"
    victim.kill()
    victim.communicate()


@pytest.mark.parametrize("then", ["runs on", "is switched off"])
def test_snapshot_that_nobody_noted(kit: Kit, guest: Guest, then: str) -> None:
    """It is adopted, never a second one made on top for the same run, and the VM boots from it."""
    killed_after_snapshot(kit, guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    if then == "is switched off":
        guest.off()
    recover(kit, guest)
    assert {layer.state for layer in kit.journal.layers(guest.uuid)} == {LayerState.CHAINED}
    assert [len(chain) for chain in guest.sources(inactive=True).values()] == [2, 2]
    assert kit.journal.open_intents() == []
    if then == "is switched off":
        guest.start()
    first = kit.run(guest)
    guest.write("vda", 2 * MIB, 64 * KIB, 0x52)
    run = kit.run(guest, first)
    assert (kit.disk(run).mode, kit.disk(run).reason) == (ReadMode.DELTA, None)


def test_snapshot_that_only_the_running_vm_had(kit: Kit, guest: Guest) -> None:
    """libvirtd and Raksha die at once, then the VM: what was written is in an overlay that nothing names."""
    definition = guest.machine.xml(inactive=True)
    killed_after_snapshot(kit, guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    guest.off()
    guest.machine.connection.defineXML(definition)
    recover(kit, guest)
    guest.start()
    kit.run(guest)


@pytest.mark.slow
@pytest.mark.bed
def test_a_guest_that_was_left_frozen(kit: Kit, bed: Bed) -> None:
    """The host went down with Raksha and its watchdog between freeze and thaw, and the VM was resumed as it was."""
    vm = bed.machine([bed.raw("a", 24 * MIB)], mode="fs")
    vm.boot()
    vm.wait_for_records(2)
    kit.journal.begin("freeze", vm=vm.uuid)
    vm.domain.fsFreeze()
    assert vm.agent("guest-fsfreeze-status") == "frozen"
    local = Local(bed.uri, kit.settings.state_dir, "file:///nowhere")
    dry = local.good("recover", "--dry-run", vm.uuid).json["vms"][0]
    assert any("thaw" in action for action in dry["actions"]) and vm.agent("guest-fsfreeze-status") == "frozen"
    local.good("recover")
    assert vm.agent("guest-fsfreeze-status") == "thawed" and kit.journal.open_intents() == []
    vm.wait_for_records(2)


def test_recover_command(kit: Kit, guest: Guest, bed: Bed) -> None:
    local = Local(bed.uri, kit.settings.state_dir, "file:///nowhere")
    assert local.good("recover").json == {"vms": []}
    kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    overlay = define_below(guest)
    before = guest.state()
    dry = local.good("recover", "--dry-run").json["vms"][0]
    assert (dry["uuid"], dry["power"], dry["trouble"]) == (guest.uuid, "running", None)
    assert dry["disks"][0]["live"][0] == overlay and dry["disks"][0]["inactive"][0].endswith("a.raw")
    assert len(dry["actions"]) == 1 and overlay in dry["actions"][0]
    assert guest.state() == before
    told = local("recover", guest.machine.name, json=False)
    assert told.code == 0 and overlay in told.out and "merged" in told.out
    assert guest.sources()["vda"] == guest.sources(inactive=True)["vda"]
    assert local.good("recover").json["vms"][0]["actions"] == []
    assert local("recover", "nobody").code == 3


def test_vm_that_is_gone(kit: Kit, guest: Guest, bed: Bed) -> None:
    """Undefined by its owner: overlays hold what it wrote, so they stay, and are named until they are gone."""
    local = Local(bed.uri, kit.settings.state_dir, "file:///nowhere")
    kit.run(guest)
    files = [Path(chain[0]) for chain in guest.sources().values()]
    guest.machine.remove()
    answer = local("recover")
    vm = answer.json["vms"][0]
    assert answer.code == 7 and vm["trouble"]["code"] == "vm_gone" and vm["name"] is None
    assert all(path.exists() and str(path) in vm["trouble"]["message"] for path in files)
    for path in files:
        path.unlink()
    assert local("recover").code == 0
    assert local.good("recover").json == {"vms": []}


def test_chain_that_is_not_what_it_was(kit: Kit, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge whose outcome is not what it must be is no reason to delete anything."""
    first = kit.run(guest)
    capture = kit.capture(kit.request(guest.uuid, first))
    names = {name for name in overlays(guest) if "-vda." in name}
    inactive_xml = connection.Guest.inactive_xml

    def stale(self: connection.Guest, *, secrets: bool = False) -> str:
        return inactive_xml(self, secrets=secrets).replace("a.raksha-", "b.raksha-")

    real_settle = connection.Guest.commit

    def commit(self: connection.Guest, *arguments: object, **named: object) -> None:
        real_settle(self, *arguments, **named)  # type: ignore[arg-type]
        monkeypatch.setattr(connection.Guest, "inactive_xml", stale)

    monkeypatch.setattr(connection.Guest, "commit", commit)
    warnings = capture.finish()
    monkeypatch.undo()
    assert any(ChainUnexpected.message.split("{")[0] in warning for warning in warnings)
    assert {name for name in overlays(guest) if "-vda." in name} == names and len(names) == 2
    kit.run(guest, first)
    assert len(overlays(guest)) == 2
