"""Damage in a vault: it is named, what it hits is named, nothing wrong is handed out, and the rest goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bed import Bed
from tests.functional.local_kit import DAMAGED, Local, Story, assert_holds, restored, two_disks
from tests.functional.overlay_kit import KIB, MIB

pytestmark = pytest.mark.bed


@pytest.fixture
def local(bed: Bed, tmp_path: Path) -> Local:
    return Local(bed.uri, tmp_path / "state", f"file://{tmp_path}/vault")


@pytest.fixture
def story(bed: Bed, local: Local, tmp_path: Path) -> Story:
    """Three points of a VM that is shut off; vdb has new data at each, vda is the same throughout."""
    guest = two_disks(bed, start=False)
    told = Story(local, guest, tmp_path / "out")
    disk = bed.directory / "vm-b.raw"
    for number in range(3):
        content = bytearray(guest.model["vdb"])
        content[number * MIB : number * MIB + 300 * KIB] = random.Random(number).randbytes(300 * KIB)
        disk.write_bytes(content)
        guest.model["vdb"][:] = content
        told.backup()
    return told


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


def assert_lost(local: Local, run: str, disk: str, name: str, into: Path) -> None:
    """Neither a restore nor an export gives this disk, and both name the object; the directory stays as it was."""
    into.mkdir(exist_ok=True)
    for words in (
        ["restore", run, "--disk", disk, "--to", into / "x.raw"],
        ["restore", run, "--into", into],
        ["export", run, "--disk", disk, "--into", into / "tree"],
        ["export", run, "--disk", disk, "--into", into / "tree", "--flatten"],
    ):
        answer = local(*map(str, words))
        assert answer.code == DAMAGED, answer
        assert name in answer.json["error"]["message"], answer
        assert list(into.iterdir()) == [], "nothing is left of it"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "cut", "missing"])
def test_a_damaged_segment(story: Story, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    local, runs = story.local, list(story.truth)
    own = set(local.segments())
    middle = segment_of(local, runs[1])
    assert middle in own
    damage(middle)
    name = f"backupjobs_segments/{middle.parent.name}/{middle.name}"

    answer = local("verify", "--data")
    assert answer.code == DAMAGED
    (finding,) = [each for each in answer.json["findings"] if each["object"] == name]
    hit = {(key["backupjobrun"], key["resource"]) for key in finding["hits"]}
    assert hit == {(runs[1], "vdb"), (runs[2], "vdb")}, "that point, and the one that builds on it"
    shown = local("verify", "--data", json=False)
    assert shown.code == DAMAGED and name in shown.out and f"hits {runs[2]}" in shown.out
    quick = local("verify")
    assert quick.code == (0 if damage is flip else DAMAGED), "without --data only presence and size are looked at"

    assert local("verify", runs[0], "--data").code == 0
    assert_holds(local, runs[0], story.into, story.guest, story.truth[runs[0]])
    for run in runs[1:]:
        assert_lost(local, run, "vdb", name, tmp_path / "lost")
        good = restored(local, run, story.into, story.guest.uuid, "--disk", "vda")
        assert good["vda"].read_bytes() == story.truth[run]["vda"], "the other disk is as good as ever"
    if damage is not flip:  # a point that is not whole cannot come to stand alone
        before = set(local.segments())
        local.refused("object_missing" if damage is Path.unlink else "object_truncated", "delete", runs[0])
        assert before <= set(local.segments()) and local.runs() == runs, "nothing goes while anything is in doubt"
    local.good("delete", *runs[1:])
    story.forget(*runs[1:])
    point = story.backup()
    assert point.how()["vdb"][0] == "incremental"
    story.assert_all_hold()


@pytest.mark.parametrize("damage", [cut, Path.unlink], ids=["cut", "missing"])
def test_a_full_does_not_build_on_what_is_lost(story: Story, damage: Callable[[Path], None]) -> None:
    """A full shares segments with older points only if they are there; so it makes the disk safe again."""
    local, runs = story.local, list(story.truth)
    whole = story.backup("--full").run
    runs.append(whole)
    damage(segment_of(local, whole))
    assert local("verify", whole).code == DAMAGED
    point = story.backup("--full")
    assert_holds(local, point.run, story.into, story.guest, story.truth[point.run])
    assert local("verify", point.run, "--data").code == 0
    again = story.backup("--full")
    assert again.disks()["vdb"]["volume"]["sent"] < 500 * KIB, "what is there is still not sent again"
    local.good("delete", *runs)
    story.forget(*runs)
    story.assert_all_hold()


def segment_of(local: Local, run: str) -> Path:
    """A segment with data that this run has stored itself: the largest of its claim."""
    mine = [path for path in local.segments() if path.name.endswith(f"-{run}.1")]
    tables = {path for path in mine if path.stat().st_size <= 128 * KIB or path.stat().st_size % (64 * KIB) == 0}
    return max(set(mine) - tables, key=lambda path: path.stat().st_size)


def test_a_missing_parent(story: Story, tmp_path: Path) -> None:
    local, runs = story.local, list(story.truth)
    (metadata,) = local.folder.glob(f"backupjobs/*/{runs[0]}/*/vdb/BackupMetadata")
    metadata.unlink()
    for run in runs[1:]:
        assert_lost(local, run, "vdb", runs[0], tmp_path / "lost")
    answer = local("verify")
    assert answer.code == DAMAGED
    hit = {key["backupjobrun"] for each in answer.json["findings"] for key in each["hits"]}
    assert hit == set(runs)
    before = set(local.segments())
    local.refused("parent_missing", "prune", "--keep-last", "1", exit_code=DAMAGED)
    assert before <= set(local.segments()) and local.runs() == runs, "nothing goes while anything is in doubt"
    point = story.backup()
    assert point.how()["vdb"] == ("full", "full", "parent_damaged")
    assert point.how()["vda"][0] == "incremental"
    assert_holds(local, point.run, story.into, story.guest, story.truth[point.run])


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["flipped", "missing"])
def test_a_damaged_map(story: Story, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    local, runs = story.local, list(story.truth)
    (path,) = local.folder.glob(f"backupjobs/*/{runs[1]}/*/vdb/BackupMap-*")
    damage(path)
    assert_lost(local, runs[2], "vdb", path.name, tmp_path / "lost")
    answer = local("verify")
    assert answer.code == DAMAGED and path.name in answer.out
    assert_holds(local, runs[0], story.into, story.guest, story.truth[runs[0]])


@pytest.mark.slow
def test_an_unreadable_point_hides_no_other(story: Story) -> None:
    local, runs = story.local, list(story.truth)
    (document,) = local.folder.glob(f"backupjobs/*/{runs[1]}/run.json")
    good = document.read_bytes()
    document.write_bytes(good[:100])
    answer = local("list")
    assert answer.code == DAMAGED
    assert [run["backupjobrun"] for run in answer.json["runs"]] == [runs[0], runs[2]]
    assert [each["object"] for each in answer.json["damaged"]] == [str(document.relative_to(local.folder))]
    shown = local("list", json=False)
    assert shown.code == DAMAGED and runs[2] in shown.out and runs[1] in shown.err
    local.refused("metadata_invalid", "show", runs[1], exit_code=DAMAGED)
    local.refused("metadata_invalid", "show", "latest", exit_code=DAMAGED)
    local.refused("metadata_invalid", "prune", "--keep-last", "1", exit_code=DAMAGED)
    verified = local("verify")
    assert verified.code == DAMAGED and len(verified.json["findings"]) == 1
    for run in (runs[0], runs[2]):
        assert_holds(local, run, story.into, story.guest, story.truth[run])
    point = story.backup()
    assert any(runs[1] in warning for warning in point.warnings)
    assert_holds(local, point.run, story.into, story.guest, story.truth[point.run])
    document.write_bytes(good)
    story.assert_all_hold()
    document.write_bytes(good[:100])
    local.good("delete", runs[1])
    story.forget(runs[1])
    local.good("prune", "--keep-last", "9")
    story.assert_all_hold()


def test_a_lost_point_takes_nothing_along(story: Story) -> None:
    """Somebody deletes a run.json by hand: those that build on that point keep its disk copies."""
    local, runs = story.local, list(story.truth)
    (document,) = local.folder.glob(f"backupjobs/*/{runs[0]}/run.json")
    document.unlink()
    story.forget(runs[0])
    local.good("prune", "--keep-last", "9")
    story.assert_all_hold()
    local.good("prune", "--keep-last", "1")
    story.forget(runs[1])
    story.assert_all_hold()


def test_a_missing_machine(story: Story) -> None:
    local, runs = story.local, list(story.truth)
    (document,) = local.folder.glob(f"backupjobs/*/{runs[2]}/*/VMMetadata")
    document.unlink()
    answer = local("verify")
    assert answer.code == DAMAGED
    (finding,) = answer.json["findings"]
    assert finding["object"] == str(document.relative_to(local.folder))
    assert {key["backupjobrun"] for key in finding["hits"]} == {runs[2]}
    assert_holds(local, runs[2], story.into, story.guest, story.truth[runs[2]])


def test_a_hostile_name_leaves_no_directory(story: Story, tmp_path: Path) -> None:
    """A vault may have been written by somebody else: names in it are words, not paths, and no terminal obeys them."""
    local, runs = story.local, list(story.truth)
    (document,) = local.folder.glob(f"backupjobs/*/{runs[2]}/run.json")
    name = story.guest.machine.name
    document.write_text(document.read_text().replace(f'"name": "{name}"', '"name": "../../evil\\u001b[31m"'))
    into = tmp_path / "a" / "b"
    into.mkdir(parents=True)
    answer = local.good("restore", runs[2], "--vm", story.guest.uuid, "--into", into)
    targets = {Path(disk["target"]).resolve().parent for disk in answer.json["disks"]}
    assert targets == {into.resolve()}
    assert sorted(path for path in tmp_path.glob("*evil*")) == [] == sorted((tmp_path / "a").glob("*evil*"))
    shown = local("list", json=False)
    assert shown.code == 0 and "\x1b" not in shown.out and "evil" in shown.out
