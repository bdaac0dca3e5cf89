"""`qemu:///system`: raw block devices, files that libvirt hands to QEMU's user, overlays in the state directory."""

from __future__ import annotations

import io
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha.states import ReadMode, Reason
from tests.bed import Bed
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on

pytestmark = pytest.mark.system


@pytest.fixture
def kit(system_bed: Bed) -> Iterator[Kit]:
    with kit_on(system_bed) as made:
        yield made


def test_block_device(kit: Kit, system_bed: Bed) -> None:
    device = system_bed.loop("a", 4 * MIB)
    guest = Guest(system_bed, [device, system_bed.raw("b", 4 * MIB)])
    definition = guest.machine.xml(inactive=True)
    guest.start()
    guest.write("vda", 0, 64 * KIB, 0x51)
    first = kit.run(guest)
    overlay = kit.settings.state_dir / "overlays"
    made = next(overlay.iterdir())
    assert guest.sources()["vda"] == [str(made), str(device.path)]
    assert stat.S_IMODE(made.stat().st_mode) == 0o600 and stat.S_IMODE(overlay.stat().st_mode) == 0o711
    guest.write("vda", 1 * MIB, 64 * KIB, 0x52)
    second = kit.run(guest, first)
    assert kit.disk(second).mode is ReadMode.DELTA and kit.warnings == []
    assert kit.disk(second).facts["kind"] == "block"
    guest.off()
    guest.start()
    third = kit.run(guest, second)
    assert kit.disk(third).mode is ReadMode.DELTA and kit.warnings == []
    kit.engine.release(guest.uuid)
    assert guest.sources()["vda"] == [str(device.path)] and guest.machine.xml(inactive=True) == definition
    assert list(overlay.iterdir()) == []
    guest.off()
    assert device.path.read_bytes() == bytes(guest.model["vda"])


def test_block_device_shut_off(kit: Kit, system_bed: Bed) -> None:
    device = system_bed.loop("a", 4 * MIB)
    guest = Guest(system_bed, [device])
    definition = guest.machine.xml(inactive=True)
    guest.start()
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x52)
    guest.off()
    second = kit.run(guest, first)
    assert kit.disk(second).mode is ReadMode.DELTA
    kit.engine.release(guest.uuid)
    assert guest.machine.xml(inactive=True) == definition
    assert device.path.read_bytes() == bytes(guest.model["vda"])
    third = kit.run(guest, second)
    assert (kit.disk(third).mode, kit.disk(third).reason) == (ReadMode.COMPARE, Reason.SHUT_OFF)


def test_files_handed_over(kit: Kit, system_bed: Bed) -> None:
    """libvirt gives files to QEMU's user while they are in use; whoever owned them gets them back."""
    system_bed.qcow2("base", 4 * MIB)
    guest = Guest(system_bed, [system_bed.qcow2("a", None, backing="base.qcow2")])
    path = system_bed.directory / "a.qcow2"
    owner = (path.stat().st_uid, path.stat().st_gid, stat.S_IMODE(path.stat().st_mode))
    guest.start()
    run = kit.run(guest)
    for number in range(2):
        guest.write("vda", number * 64 * KIB, 64 * KIB, 0x52)
        run = kit.run(guest, run)
        assert kit.disk(run).mode is ReadMode.DELTA and kit.warnings == []
    overlay = next(each for each in system_bed.directory.iterdir() if ".raksha-" in each.name)
    assert stat.S_IMODE(overlay.stat().st_mode) == 0o600
    kit.engine.release(guest.uuid)
    guest.off()
    assert (path.stat().st_uid, path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == owner
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)


def test_emulated_tpm(kit: Kit, system_bed: Bed) -> None:
    """A guest that sealed its disk needs the state of its TPM."""
    tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"
    guest = Guest(system_bed, [system_bed.raw("a", 4 * MIB)], devices=tpm)
    guest.start()
    capture = kit.capture(kit.request(guest.uuid))
    capture.abandon()
    state = Path("/var/lib/libvirt/swtpm") / guest.uuid
    expected = {str(path.relative_to(state)): path.read_bytes() for path in state.rglob("tpm2*") if path.is_file()}
    assert expected, "swtpm keeps its state there"
    with tarfile.open(fileobj=io.BytesIO(capture.machine.files["tpm.tar"])) as archive:
        found = {
            member.name.removeprefix("./"): content.read()
            for member in archive.getmembers()
            if (content := archive.extractfile(member)) is not None
        }
    assert {name: found.get(name) for name in expected} == expected
