"""The engine `overlay` on a VM of Nova, where somebody asks for it by name: Nova must never meet an overlay of ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raksha.errors import CommitFailed
from raksha.states import ReadMode, Reason
from raksha.virt.libvirt.commit import Committer
from raksha.virt.libvirt.host_recovery import recover
from tests.bed import Bed
from tests.bed.disks import as_raw
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on
from tests.functional.test_overlay_crash import killed_at

INSTANCE = "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>"


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed) as made:
        yield made


@pytest.fixture
def guest(bed: Bed) -> Guest:
    """As Nova makes it: a boot disk on a base image, and a volume in a file."""
    bed.qcow2("base", 4 * MIB)
    made = Guest(bed, [bed.qcow2("a", None, backing="base.qcow2"), bed.raw("b", 4 * MIB)])
    xml = made.machine.xml(inactive=True)
    made.machine.connection.defineXML(xml.replace("<memory ", INSTANCE + "<memory ", 1))
    made.start()
    made.write("vda", 64 * KIB, 200 * KIB, 0x11)
    made.write("vdb", 0, 100 * KIB, 0x22)
    return made


def untouched(kit: Kit, guest: Guest) -> None:
    """Nothing of ours is in its chains, its definitions, its folder or the journal."""
    for inactive in (False, True):
        tops = {target: layers[0].rpartition("/")[2] for target, layers in guest.sources(inactive=inactive).items()}
        assert tops == {"vda": "a.qcow2", "vdb": "b.raw"}
    assert not [name for name in guest.files() if ".raksha-" in name]
    assert kit.journal.layers(guest.uuid) == [] and kit.journal.open_intents() == []


def holds(guest: Guest, bed: Bed) -> None:
    """After Nova started it again, from its own records, it has what it had written."""
    guest.off()
    for disk, target in (("a.qcow2", "vda"), ("b.raw", "vdb")):
        with as_raw(bed.directory / disk, disk.partition(".")[2]) as raw:
            assert raw.read_bytes() == bytes(guest.model[target]), target


def test_overlays_are_gone_before_the_run_is(kit: Kit, guest: Guest, bed: Bed) -> None:
    request = kit.request(guest.uuid)
    capture = kit.capture(request)
    guest.write("vda", 2 * MIB, 64 * KIB, 0x33)
    assert ".raksha-" in guest.sources()["vda"][0]
    kit.points.store(request.backupjobrun, capture)
    capture.check()
    untouched(kit, guest)
    assert [disk.tracker for disk in capture.disks] == [None, None]
    assert capture.finish() == []
    untouched(kit, guest)
    holds(guest, bed)


@pytest.mark.parametrize("durable", [True, False])
def test_each_run_compares_and_says_why(kit: Kit, guest: Guest, *, durable: bool) -> None:
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 10 * KIB, 0x34)
    second = kit.run(guest, first, durable=durable)
    disk = kit.disk(second)
    assert (disk.mode, disk.reason, disk.parent) == (ReadMode.COMPARE, Reason.NO_TRACKER, first)
    untouched(kit, guest)
    guest.off()
    third = kit.run(guest, first)
    assert (kit.disk(third).mode, kit.disk(third).reason) == (ReadMode.COMPARE, Reason.SHUT_OFF)


@pytest.mark.parametrize("end", ["abandon", "let_go"])
def test_a_run_that_is_given_up_leaves_none(kit: Kit, guest: Guest, bed: Bed, end: str) -> None:
    capture = kit.capture(kit.request(guest.uuid))
    guest.write("vda", 2 * MIB, 64 * KIB, 0x35)
    getattr(capture, end)()
    untouched(kit, guest)
    holds(guest, bed)


@pytest.mark.parametrize("place", ["after the snapshot", "while reading"])
def test_what_a_killed_agent_left_is_merged_when_it_is_back(kit: Kit, guest: Guest, bed: Bed, place: str) -> None:
    killed_at(kit, guest, place)
    guest.write("vdb", 2 * MIB, 64 * KIB, 0x36)
    assert ".raksha-" in guest.sources()["vdb"][0]
    arguments = kit.engine.connection, kit.journal, kit.settings, [guest.uuid]
    (told,) = recover(*arguments, dry_run=True)
    assert any("Nova" in action for action in told.actions) and ".raksha-" in guest.sources()["vdb"][0]
    (found,) = recover(*arguments, dry_run=False)
    assert found.trouble is None
    untouched(kit, guest)
    holds(guest, bed)


def test_a_merge_that_fails_is_told_and_tried_again(
    kit: Kit, guest: Guest, bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = kit.capture(kit.request(guest.uuid))
    guest.write("vda", 2 * MIB, 64 * KIB, 0x37)

    def busy(self: Committer, target: str, layers: object) -> list[str]:
        raise CommitFailed(vm="vm", disk=target, detail="not now")

    with monkeypatch.context() as patch:
        patch.setattr(Committer, "pivot", busy)
        capture.check()
    assert ".raksha-" in guest.sources()["vda"][0]
    told = capture.finish()
    assert len(told) == 1 and "not now" in told[0]
    untouched(kit, guest)
    holds(guest, bed)
