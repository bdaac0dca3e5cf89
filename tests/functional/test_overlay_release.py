"""Release: the VM is back on its own files with everything it wrote, and nothing of Raksha is left."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.own_source import own_sources
from tests.bed import Bed
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed) as made:
        yield made


@pytest.fixture
def guest(bed: Bed) -> Guest:
    bed.qcow2("base", 4 * MIB)
    return Guest(bed, [bed.raw("a", 4 * MIB), bed.qcow2("b", None, backing="base.qcow2")])


def content(path: Path, form: str) -> bytes:
    """What a guest sees on an image that nobody writes."""
    raw = path.with_name("content.raw")
    subprocess.run(["qemu-img", "convert", "-U", "-f", form, "-O", "raw", path, raw], check=True)
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def without_trace(kit: Kit, guest: Guest, before: tuple[str, set[str]]) -> None:
    definition, files = before
    assert guest.machine.xml(inactive=True) == definition
    assert guest.files() - {"state"} == files - {"state"}
    assert kit.journal.layers(guest.uuid) == [] and kit.journal.open_intents() == []
    for path in guest.bed.directory.iterdir():
        assert "user.raksha" not in os.listxattr(path)
    if guest.machine.running:
        assert guest.sources() == {"vda": [f"{guest.bed.directory}/a.raw"], "vdb": guest.sources()["vdb"]}
        assert [Path(path).name for path in guest.sources()["vdb"]] == ["b.qcow2", "base.qcow2"]
    guest.off()
    assert content(guest.bed.directory / "a.raw", "raw") == bytes(guest.model["vda"])
    assert content(guest.bed.directory / "b.qcow2", "qcow2") == bytes(guest.model["vdb"])
    guest.start()  # and it can be started


@pytest.mark.parametrize("paused", [False, True])
def test_active(kit: Kit, guest: Guest, paused: bool) -> None:
    before = guest.machine.xml(inactive=True), guest.files()
    guest.start(paused=paused)
    live = guest.sources()
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    kit.run(guest, first, durable=False)  # two layers
    guest.write("vdb", 1 * MIB, 8 * KIB, 0x52)
    done = kit.engine.release(guest.uuid)
    assert [line.split(":")[0] for line in done] == ["vda", "vdb"]
    assert guest.sources() == live
    without_trace(kit, guest, before)


def test_shut_off(kit: Kit, guest: Guest) -> None:
    before = guest.machine.xml(inactive=True), guest.files()
    guest.start()
    first = kit.run(guest)
    guest.write("vda", 512 * KIB, 8 * KIB, 0x51)
    kit.run(guest, first, durable=False)
    guest.write("vdb", 1 * MIB, 8 * KIB, 0x52)
    guest.zero("vda", 0, 64 * KIB)
    guest.off()
    assert len(kit.engine.release(guest.uuid)) == 2
    without_trace(kit, guest, before)


def test_shut_off_and_used_by_somebody(kit: Kit, guest: Guest) -> None:
    """QEMU's locks guard the merge."""
    guest.start()
    kit.run(guest)
    guest.off()
    before = guest.state()
    overlay = guest.sources()["vda"][0]
    user = subprocess.Popen(["qemu-io", "-f", "qcow2", overlay], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert user.stdout is not None
        assert user.stdout.read(8) == b"qemu-io>", "it has the image open"
        with pytest.raises(Exception, match="lock"):
            kit.engine.release(guest.uuid)
        assert guest.state() == before
    finally:
        user.kill()
        user.communicate()
    kit.engine.release(guest.uuid)
    assert [Path(path).name for path in guest.sources()["vda"]] == ["a.raw"]


def test_nothing_to_release(kit: Kit, guest: Guest) -> None:
    before = guest.machine.xml(inactive=True), guest.files()
    assert kit.engine.release(guest.uuid) == []
    without_trace(kit, guest, before)


def test_restarted_below(kit: Kit, guest: Guest) -> None:
    """The orphan may hold the only copy of something: it is left, and named."""
    guest.start()
    kit.run(guest)
    overlay, own = guest.sources()["vda"]
    guest.off()
    guest.machine.connection.defineXML(own_sources(guest.machine.xml(True), {"vda": Layer(own, "file", "raw")}))
    guest.start()
    done = kit.engine.release(guest.uuid)
    assert any(overlay in line and "below" in line for line in done)
    assert Path(overlay).exists() and guest.sources()["vda"] == [own]
    assert [Path(path).name for path in guest.sources()["vdb"]] == ["b.qcow2", "base.qcow2"]


def test_aborted_by_somebody(kit: Kit, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block job that a third party aborts leaves chain and layers; the next release does it."""
    guest.start()
    kit.run(guest)
    guest.write("vda", 512 * KIB, 1 * MIB, 0x51)
    from raksha.virt.libvirt import connection

    pivot = connection.Guest.pivot

    def interfere(self: connection.Guest, disk: str) -> None:
        guest.machine.domain.blockJobAbort(disk, 0)
        pivot(self, disk)

    monkeypatch.setattr(connection.Guest, "pivot", interfere)
    chain = guest.sources()
    with pytest.raises(Exception, match=r"pivot|merged"):
        kit.engine.release(guest.uuid)
    assert guest.sources() == chain
    monkeypatch.undo()
    kit.engine.release(guest.uuid)
    assert len(guest.sources()["vda"]) == 1
    guest.off()
    assert content(guest.bed.directory / "a.raw", "raw") == bytes(guest.model["vda"])


def test_guest_is_running_afterwards(kit: Kit, guest: Guest) -> None:
    guest.start()
    kit.run(guest)
    kit.engine.release(guest.machine.name)
    assert guest.machine.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    run = kit.run(guest)
    guest.write("vda", 0, 4 * KIB, 0x51)
    assert kit.disk(kit.run(guest, run)).reason is None, "it can be protected again"
