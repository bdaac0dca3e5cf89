"""Overlays that nothing needs: put away for a while, never deleted while somebody refers to them."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from raksha.virt.libvirt.recover import reconcile
from tests.bed import Bed
from tests.functional.local_kit import small_file_system
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed, trash_hours=1.0) as made:
        yield made


@pytest.fixture
def guest(bed: Bed) -> Guest:
    made = Guest(bed, [bed.raw("a", 4 * MIB)])
    made.start()
    return made


def trash(guest: Guest) -> list[Path]:
    return sorted((guest.bed.directory / ".raksha-trash").glob("*"))


def recover(kit: Kit, guest: Guest) -> list[str]:
    return reconcile(kit.engine.connection.guest(guest.uuid), kit.journal, kit.settings)


def let_hours_pass(kit: Kit) -> None:
    with kit.journal._transaction("test") as db:
        db.execute("UPDATE trash SET since = since - 3601")


def test_a_merged_overlay_stays_for_a_while(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    held = Path(guest.sources()["vda"][0])
    kit.run(guest, first)
    (kept,) = trash(guest)
    assert kept.name.endswith(held.name) and not held.exists()
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    # It has what the VM wrote between the two runs, should somebody miss it.
    found = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P 0x51 {MIB} {64 * KIB}", kept],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "verification failed" not in found.stdout and "error" not in found.stderr.lower(), found
    recover(kit, guest)
    assert trash(guest) == [kept]
    let_hours_pass(kit)
    recover(kit, guest)
    assert not kept.parent.exists() and kit.journal.trash() == []


def test_release_leaves_no_trash(kit: Kit, guest: Guest) -> None:
    before = guest.files()
    first = kit.run(guest)
    kit.run(guest, first)
    assert trash(guest)
    kit.engine.release(guest.uuid)
    assert guest.files() - {"state"} == before - {"state"} and kit.journal.trash() == []


def test_somebody_refers_to_it(kit: Kit, guest: Guest, bed: Bed) -> None:
    """Another VM was made on our overlay: it stays, and is named, as long as that VM is there."""
    first = kit.run(guest)
    overlay = Path(guest.sources()["vda"][0])
    guest.off()
    clone = bed.qcow2("clone", 4 * MIB, backing=overlay)
    other = Guest(bed, [clone], name="clone")
    guest.start()
    run = kit.run(guest, first)
    assert any(overlay.name in warning and other.machine.name in warning for warning in kit.warnings)
    assert overlay.exists() and trash(guest) == []
    other.machine.remove()
    kit.run(guest, run)
    assert not overlay.exists() and len(trash(guest)) == 2


def test_somebody_has_it_open(kit: Kit, guest: Guest) -> None:
    first = kit.run(guest)
    overlay = Path(guest.sources()["vda"][0])
    with overlay.open("rb"):
        kit.run(guest, first)
        assert any("has it open" in warning for warning in kit.warnings) and overlay.exists()
    recover(kit, guest)
    assert not overlay.exists() and len(trash(guest)) == 1
    with trash(guest)[0].open("rb"):
        let_hours_pass(kit)
        assert any("has it open" in note for note in recover(kit, guest))
        assert len(trash(guest)) == 1
    recover(kit, guest)
    assert trash(guest) == []


def test_killed_between_the_note_and_the_move(kit: Kit, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kit.run(guest)
    overlay = Path(guest.sources()["vda"][0])
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".raksha-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    kit.run(guest, first)
    assert overlay.exists() and any(overlay.name in warning for warning in kit.warnings)
    monkeypatch.undo()
    recover(kit, guest)
    assert not overlay.exists() and len(trash(guest)) == 1
    let_hours_pass(kit)
    recover(kit, guest)
    assert kit.journal.trash() == [] and trash(guest) == []


@pytest.mark.system
def test_trash_gives_way_when_space_is_short(bed: Bed, tmp_path: Path) -> None:
    with small_file_system(bed.directory / "small", 24 * MIB) as place:
        bed.host.give(place)
        with kit_on(bed, trash_hours=1.0, overlay_dir=place) as kit:
            guest = Guest(bed, [bed.raw("a", 4 * MIB)])
            guest.start()
            first = kit.run(guest)
            guest.write("vda", 0, 3 * MIB, 0x51)
            second = kit.run(guest, first)
            assert len(list((place / ".raksha-trash").iterdir())) == 1
            kit.engine._settings = replace(kit.settings, overlay_reserve_min=22 * MIB)
            kit.run(guest, second)
            names = [path.name for path in (place / ".raksha-trash").iterdir()]
            assert len(names) == 1 and second[:8] in names[0], "the older one had to go"
            kit.engine.release(guest.uuid)
        assert list(place.iterdir()) == []
