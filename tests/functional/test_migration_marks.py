"""A host that meets overlays of another one believes nothing that the files do not confirm.

Made on one host: a second state directory knows as little as another host does.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import Bed
from tests.functional.forked import ForkedLocal, Forker
from tests.functional.local_kit import REFUSED, Answer, assert_holds, wait_until
from tests.functional.overlay_kit import KIB, MIB, Guest

pytestmark = pytest.mark.bed

DELTA = ("incremental", "delta", None)
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def guest(bed: Bed) -> Guest:
    made = Guest(bed, [bed.raw("a", 4 * MIB), bed.qcow2("b", 4 * MIB)])
    made.start()
    made.write("vda", 0, 64 * KIB, 0x11)
    made.write("vdb", 0, 64 * KIB, 0x12)
    return made


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    made = Forker()
    yield made
    made.close()


@pytest.fixture
def local(bed: Bed, forker: Forker, tmp_path: Path) -> ForkedLocal:
    return ForkedLocal(bed.uri, bed.directory / "state", f"file://{tmp_path}/vault", forker=forker)


def stranger(local: ForkedLocal, name: str = "state2") -> ForkedLocal:
    """Another host with the same vault."""
    return ForkedLocal(local.uri, local.state.with_name(name), local.vault, forker=local.forker)


def rewrite(local: ForkedLocal, run: str, target: str, change: Change) -> Callable[[], object]:
    """Change the tracker of a disk copy in the vault. Returns what puts it back."""
    path = next(local.folder.glob(f"backupjobs/*/{run}/*/{target}/BackupMetadata"))
    before = path.read_bytes()
    document = json.loads(before)
    change(document["tracker"])
    path.write_text(json.dumps(document))
    return lambda: path.write_bytes(before)


def untouched(guest: Guest) -> object:
    """Definitions, and images to the byte."""
    live, inactive, _, content = guest.state()
    return live, inactive, content


def overlay(guest: Guest, target: str) -> str:
    return guest.sources()[target][0]


def assert_right(local: ForkedLocal, guest: Guest, answer: Answer, into: Path) -> None:
    assert_holds(local, answer.run, into, guest, guest.frozen_model())


LIES: dict[str, Change] = {
    "another file": lambda tracker: tracker.update(inode=tracker["inode"] + 1),
    "another path": lambda tracker: tracker.update(path=tracker["base_path"]),
    "a path that is none": lambda tracker: tracker.update(path="\0"),
    "another base": lambda tracker: tracker.update(base_inode=tracker["base_inode"] + 1),
    "a base elsewhere": lambda tracker: tracker.update(base_path=tracker["path"]),
    "a base of another format": lambda tracker: tracker.update(base_format="qcow2"),
    "another run": lambda tracker: tracker.update(run=tracker["run"][::-1]),
    "a run of the same beginning": lambda tracker: tracker.update(run=tracker["run"][:-1]),
    "a field of another type": lambda tracker: tracker.update(inode=str(tracker["inode"])),
    "a field that is not known": lambda tracker: tracker.update(more=1),
    "no field": lambda tracker: tracker.clear(),
    "another kind": lambda tracker: tracker.update(kind="bitmap"),
}


def test_overlays_that_the_vault_tells_otherwise(local: ForkedLocal, guest: Guest, tmp_path: Path) -> None:
    run = local.backup(guest).run
    other = stranger(local)
    before = untouched(guest)
    for what, change in LIES.items():
        undo = rewrite(local, run, "vda", change)
        answer = other("backup", guest.uuid, "--take-over")
        assert (answer.code, answer.error) == (REFUSED, "layer_unknown"), what
        assert untouched(guest) == before, what
        undo()
    guest.write("vdb", 1 * MIB, 4 * KIB, 0x13)
    answer = other.backup(guest)
    assert answer.how() == {"vda": DELTA, "vdb": DELTA}
    assert_right(other, guest, answer, tmp_path / "out")


def test_overlays_with_other_marks(local: ForkedLocal, guest: Guest, tmp_path: Path) -> None:
    local.backup(guest)
    other = stranger(local)
    path = overlay(guest, "vda")
    mark = os.getxattr(path, "user.raksha")
    for value in (mark[::-1], b"", None):
        os.removexattr(path, "user.raksha") if value is None else os.setxattr(path, "user.raksha", value)
        before = untouched(guest)
        assert other.refused("layer_unknown", "backup", guest.uuid, "--take-over", exit_code=REFUSED)
        assert untouched(guest) == before
    os.setxattr(path, "user.raksha", mark)
    assert_right(other, guest, other.backup(guest), tmp_path / "out")


def test_what_was_left_below_is_not_known(local: ForkedLocal, guest: Guest, tmp_path: Path) -> None:
    """Ours for certain, but somebody may have written below it, or has: the disk is compared."""
    local.backup(guest)
    os.removexattr(overlay(guest, "vda"), "user.raksha.base")
    os.utime(guest.sources()["vdb"][1])
    guest.write("vda", 1 * MIB, 4 * KIB, 0x13)
    other = stranger(local)
    answer = other.backup(guest, "--take-over")
    assert answer.how() == {
        "vda": ("incremental", "compare", "tracker_counts_from_another_run"),
        "vdb": ("incremental", "compare", "written_below_the_overlay"),
    }
    assert_right(other, guest, answer, tmp_path / "out")
    guest.write("vda", 1 * MIB, 8 * KIB, 0x14)
    answer = other.backup(guest)
    assert answer.how() == {"vda": DELTA, "vdb": DELTA}
    assert_right(other, guest, answer, tmp_path / "out")


@pytest.mark.system
def test_nothing_tells_of_writes_to_a_block_device(system_bed: Bed, forker: Forker, tmp_path: Path) -> None:
    local = ForkedLocal(system_bed.uri, system_bed.directory / "state", f"file://{tmp_path}/vault", forker=forker)
    guest = Guest(system_bed, [system_bed.loop("a", 4 * MIB)])
    guest.start()
    local.backup(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x13)
    other = stranger(local)
    for how in (("incremental", "compare", "tracker_counts_from_another_run"), DELTA):
        answer = other.backup(guest, "--take-over")
        assert answer.how() == {"vda": how}
        assert_right(other, guest, answer, tmp_path / "out")
    other.good("release", guest.uuid)


def test_killed_while_it_takes_over(local: ForkedLocal, guest: Guest, tmp_path: Path) -> None:
    """With one of two disks in the journal, and before the first."""
    local.backup(guest)
    for number, at in enumerate(("journal.begin", "journal.add_layer", "journal.add_layer.done", "journal.done")):
        other = stranger(local, f"killed{number}")
        environment = {"RAKSHA_CRASH_AT": f"{at}:1"}
        answer = other.during(lambda _pid: None, environment, "backup", guest.uuid, "--take-over", "--json")
        assert answer.code == -signal.SIGKILL, answer
    guest.write("vda", 1 * MIB, 4 * KIB, 0x13)
    answer = other.backup(guest)
    assert answer.how() == {"vda": DELTA, "vdb": DELTA}
    assert_right(other, guest, answer, tmp_path / "out")
    assert other.good("recover").json["vms"][0]["actions"] == []


def test_a_run_that_failed_lies_on_top(local: ForkedLocal, guest: Guest) -> None:
    """The vault does not know its layer, so it is not proven to be ours; where it was made it is."""
    local.backup(guest)
    killed = {"RAKSHA_CRASH_AT": "vault.put_file.BackupMap"}
    assert local.during(lambda _pid: None, killed, "backup", guest.uuid, "--json").code == -signal.SIGKILL
    before = untouched(guest)
    stranger(local).refused("layer_unknown", "backup", guest.uuid, "--take-over", exit_code=REFUSED)
    assert untouched(guest) == before
    assert local.backup(guest, "--take-over").how()["vda"] == ("incremental", "delta", "union_of_layers")


def test_at_rest_between_two_runs(local: ForkedLocal, guest: Guest, tmp_path: Path) -> None:
    """A point of the VM at rest has no layer of its own; the one that it lies on counts from it, too."""
    local.backup(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x13)
    guest.off()
    moved = stranger(local).backup(guest, "--take-over")
    assert moved.how() == {"vda": DELTA, "vdb": DELTA}
    assert_right(local, guest, moved, tmp_path / "out")
    guest.start()
    guest.write("vdb", 1 * MIB, 64 * KIB, 0x14)
    answer = stranger(local, "third").backup(guest, "--take-over")
    assert answer.how() == {"vda": DELTA, "vdb": DELTA}
    assert_right(local, guest, answer, tmp_path / "out")


def test_bitmaps_at_rest(local: ForkedLocal, bed: Bed, tmp_path: Path) -> None:
    guest = Guest(bed, [bed.qcow2("a", 4 * MIB)])
    guest.start()
    local.backup(guest, "--engine", "pull")
    guest.write("vda", 1 * MIB, 64 * KIB, 0x13)
    guest.off()
    answer = stranger(local).backup(guest, "--engine", "pull", "--take-over")
    assert answer.how() == {"vda": DELTA}
    assert_right(local, guest, answer, tmp_path / "out")
    again = stranger(local, "third").backup(guest, "--engine", "pull", "--take-over")
    assert again.how() == {"vda": ("incremental", "compare", "no_tracker")}, "no bitmap was begun with that point"
    assert_right(local, guest, again, tmp_path / "out")


def test_a_pull_run_that_failed(local: ForkedLocal, bed: Bed, tmp_path: Path) -> None:
    """Its bitmap is nobody's; the one of the last point counts on."""
    guest = Guest(bed, [bed.qcow2("a", 4 * MIB)])
    guest.start()
    pull = ("backup", guest.uuid, "--engine", "pull")
    local.good(*pull)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x13)
    killed = {"RAKSHA_CRASH_AT": "vault.put_file.BackupMap"}
    assert local.during(lambda _pid: None, killed, *pull, "--json").code == -signal.SIGKILL
    wait_until(lambda: guest.machine.domain.jobInfo()[0] == 0, "the guard ends the job")
    answer = stranger(local).good(*pull, "--take-over")
    assert answer.how() == {"vda": DELTA} and answer.disks()["vda"]["volume"]["read"] == 64 * KIB
    assert_right(local, guest, answer, tmp_path / "out")


def test_bitmaps_that_the_vault_tells_otherwise(local: ForkedLocal, bed: Bed, tmp_path: Path) -> None:
    """Whatever is wrong, the disk is compared: a younger bitmap would miss what was written before it."""
    bed.qcow2("base", 4 * MIB)
    guest = Guest(bed, [bed.qcow2("a", None, backing="base.qcow2")])
    guest.start()
    pull = ("--engine", "pull")
    guest.write("vda", 0, 64 * KIB, 0x11)
    local.backup(guest, *pull)
    younger = local.backup(guest, "--job", "another", *pull).run
    lies: dict[str, tuple[Change, str]] = {
        "a younger bitmap": (lambda it: it.update(name=f"raksha-{younger}"), "no_tracker"),
        "other images below": (lambda it: it.update(below="[]"), "backing_chain_changed"),
        "no field": (lambda it: it.clear(), "no_tracker"),
    }
    for number, (change, reason) in enumerate(lies.values()):
        run = local.backup(guest, "--take-over", *pull).run
        rewrite(local, run, "vda", change)
        guest.write("vda", 1 * MIB, 64 * KIB, 0x20 + number)
        answer = stranger(local, f"stranger{number}").backup(guest, "--take-over", *pull)
        assert answer.how() == {"vda": ("incremental", "compare", reason)}
        assert_right(local, guest, answer, tmp_path / "out")
    guest.write("vda", 2 * MIB, 64 * KIB, 0x30)
    answer = stranger(local, "last").backup(guest, "--take-over", *pull)
    assert answer.how() == {"vda": DELTA}
    assert_right(local, guest, answer, tmp_path / "out")
