"""Deleting restore points: what stays is whole, what nobody needs is gone, and the next backup is right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.bed import Bed
from tests.functional.local_kit import Local, Story, nothing_changes, tree, two_disks, write_noise
from tests.functional.overlay_kit import KIB, MIB, Guest

pytestmark = pytest.mark.bed


@pytest.fixture
def local(bed: Bed, tmp_path: Path) -> Local:
    return Local(bed.uri, tmp_path / "state", f"file://{tmp_path}/vault")


def size(local: Local) -> int:
    """Bytes of everything in a directory vault."""
    return sum(path.stat().st_size for path in local.folder.rglob("*") if path.is_file())


def five_points(bed: Bed, local: Local, tmp_path: Path) -> Story:
    """Each point has 512 KiB of new data that the next one overwrites, and something that stays."""
    guest = two_disks(bed)
    story = Story(local, guest, tmp_path / "out")
    for number in range(5):
        write_noise(guest, "vda", 1 * MIB, 512 * KIB)
        guest.write("vdb", number * 128 * KIB, 20 * KIB, 0x50 + number)
        story.backup()
    return story


@pytest.mark.slow
def test_whatever_is_deleted_the_rest_restores(bed: Bed, local: Local, tmp_path: Path) -> None:
    story = five_points(bed, local, tmp_path)
    guest, runs = story.guest, list(story.truth)
    full = size(local)

    with nothing_changes(local, guest):
        would = local.good("delete", runs[2], "--dry-run").json
        assert [run["backupjobrun"] for run in would["deleted"]] == [runs[2]]
        assert would["kept"] == [run for run in runs if run != runs[2]]
    middle = local.good("delete", runs[2], runs[2]).json
    assert [run["backupjobrun"] for run in middle["deleted"]] == [runs[2]]
    assert middle["objects_removed"] > 0
    story.forget(runs[2])
    shown = local.good("show", runs[3]).json["run"]["vms"][0]["resources"]
    assert {(disk["kind"], disk["parent"]) for disk in shown} == {("full", None)}, "it stands alone now"
    story.assert_all_hold()

    with nothing_changes(local, guest):
        would = local.good("prune", "--keep-last", "2", "--dry-run").json
        assert [run["backupjobrun"] for run in would["deleted"]] == runs[:2]
    pruned = local.good("prune", "--keep-last", "2").json
    assert [run["backupjobrun"] for run in pruned["deleted"]] == runs[:2]
    assert pruned["kept"] == local.runs() == runs[3:]
    assert pruned["objects_removed"] >= would["objects_removed"] > 0, "a dry run tells the least that will go"
    story.forget(*runs[:2])
    assert size(local) < full - 3 * 512 * KIB, "the space of three points is free"
    story.assert_all_hold()

    guest.write("vda", 0, 40 * KIB, 0x61)
    assert story.backup().how() == {"vda": ("incremental", "delta", None), "vdb": ("incremental", "delta", None)}
    story.assert_all_hold()

    with nothing_changes(local, guest):
        again = local.good("prune", "--keep-last", "3").json
        assert (again["deleted"], again["objects_removed"]) == ([], 0)


@pytest.mark.slow
def test_prune_counts_for_each_job(bed: Bed, local: Local, tmp_path: Path) -> None:
    story = Story(local, two_disks(bed, start=False), tmp_path / "out")
    runs: dict[str, list[str]] = {"daily": [], "weekly": []}
    for job in ("daily", "daily", "weekly", "daily", "weekly"):
        runs[job].append(story.backup("--job", job).run)
    local.good("prune", "--keep-last", "1", "--job", "weekly")
    story.forget(runs["weekly"][0])
    story.assert_all_hold()
    local.good("prune", "--keep-last", "2")
    story.forget(runs["daily"][0])
    story.assert_all_hold()


def test_a_shared_segment_stays_until_nobody_needs_it(bed: Bed, local: Local, tmp_path: Path) -> None:
    """Two VMs with the same data: one's points go, the other's stay whole."""
    one, other = two_disks(bed, "one", start=False), two_disks(bed, "other", start=False)
    for guest in (one, other):
        noise(guest)
    first, second = Story(local, one, tmp_path / "out"), Story(local, other, tmp_path / "out")
    first.backup("--job", "one")
    second.backup("--job", "two")
    local.good("delete", *first.truth)
    second.assert_all_hold()
    local.good("delete", *second.truth)
    assert local.segments() == []
    assert not any(name.endswith(("Backup", "Metadata", "run.json")) for name in tree(local.folder))


def noise(guest: Guest) -> None:
    """The same data on vdb of any VM that is shut off, made once for a bed."""
    path = next(guest.bed.directory.glob(f"{guest.machine.name.rpartition('-')[2]}-b.raw"))
    content = random.Random(7).randbytes(4 * MIB)
    path.write_bytes(content)
    guest.model["vdb"][:] = content
