"""Chains of restore points through the command line: every point comes back bit for bit, whatever lay between."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.own_source import own_sources
from tests.bed import Bed
from tests.functional.local_kit import (
    VAULT,
    Local,
    Story,
    documents,
    ended,
    small_file_system,
    two_disks,
    wait_until,
    write_noise,
)
from tests.functional.overlay_kit import KIB, MIB, Guest

pytestmark = pytest.mark.bed

PLAIN = ("incremental", "delta", None)


@pytest.fixture
def local(bed: Bed, tmp_path: Path) -> Local:
    return Local(bed.uri, tmp_path / "state", f"file://{tmp_path}/vault")


@pytest.fixture
def story(bed: Bed, local: Local, tmp_path: Path) -> Story:
    """A running VM with two disks."""
    return Story(local, two_disks(bed), tmp_path / "out")


def both(what: tuple[str, str, str | None]) -> dict[str, tuple[str, str, str | None]]:
    return {"vda": what, "vdb": what}


def scribble(guest: Guest, number: int) -> None:
    """Changes on both disks, a discarded stretch among them."""
    guest.write("vda", (512 + number * 130) * KIB, 70 * KIB, 0x30 + number)
    guest.write("vdb", number * 200 * KIB, 5 * KIB, 0x60 + number)
    guest.zero("vda", (64 + number * 64) * KIB, 64 * KIB)


@pytest.mark.slow
def test_increments_send_what_changed_and_nothing_else(story: Story) -> None:
    first = story.backup()
    assert first.how() == both(("full", "full", "first_run"))
    for number in range(3):
        scribble(story.guest, number)
        point = story.backup()
        assert point.how() == both(PLAIN)
        assert point.warnings == []
        assert point.disks()["vdb"]["volume"]["data"] <= 128 * KIB
        assert point.disks()["vdb"]["parent"] == story.local.runs()[-2]
    story.assert_all_hold()


def test_full_on_request_and_an_excluded_disk(story: Story) -> None:
    story.backup()
    scribble(story.guest, 0)
    full = story.backup("--full")
    assert full.how() == both(("full", "full", "asked_for_full"))
    scribble(story.guest, 1)
    assert story.backup().how() == both(PLAIN)
    story.assert_all_hold()
    answer = story.local.good("backup", story.guest.uuid, "--exclude", f"{story.guest.uuid}:vdb")
    assert set(answer.disks()) == {"vda"}


@pytest.mark.slow
def test_two_jobs_in_turn(story: Story) -> None:
    for number in range(3):
        for job in ("daily", "weekly"):
            scribble(story.guest, number)
            point = story.backup("--job", job)
            if number:
                assert point.how() == both(("incremental", "compare", "tracker_counts_from_another_run"))
                assert point.disks()["vdb"]["volume"]["data"] <= 192 * KIB, "only differences are sent"
    assert story.backup("--job", "weekly").how() == both(PLAIN)
    assert [run["job_name"] for run in story.local.good("list", "--job", "daily").json["runs"]] == ["daily"] * 3
    story.assert_all_hold()


def test_a_deleted_newest_run(story: Story) -> None:
    story.backup()
    scribble(story.guest, 0)
    newest = story.backup().run
    story.local.good("delete", newest)
    story.forget(newest)
    story.assert_all_hold()
    scribble(story.guest, 1)
    assert story.backup().how() == both(("incremental", "compare", "tracker_counts_from_another_run"))
    scribble(story.guest, 2)
    assert story.backup().how() == both(PLAIN)
    story.assert_all_hold()


def test_all_runs_deleted(story: Story) -> None:
    runs = [story.backup().run for _ in range(2)]
    assert story.local.good("delete", *runs).json["kept"] == []
    assert story.local.segments() == []
    story.forget(*runs)
    assert story.backup().how() == both(("full", "full", "first_run"))
    story.assert_all_hold()


@pytest.mark.slow
def test_killed_in_the_middle_of_the_stream(bed: Bed, local: Local, tmp_path: Path) -> None:
    """With -9: nothing is visible, the chain is whole, and the next run sends the union of both layers."""
    big = bed.raw("big", 64 * MIB)
    guest = Guest(bed, [bed.raw("a", 4 * MIB), big])
    content = os.urandom(64 * MIB)
    big.path.write_bytes(content)
    guest.model["vdb"] = bytearray(content)
    story = Story(local, guest, tmp_path / "out")
    guest.start()
    story.backup()
    for number in range(2):
        guest.write("vda", number * 256 * KIB, 100 * KIB, 0x41 + number)
        write_noise(guest, "vdb", number * 20 * MIB, 16 * MIB)
        before = set(local.segments())
        process = local.start("backup", guest.uuid, "--workers", "1")
        wait_until(lambda: set(local.segments()) - before, "the first segment")  # noqa: B023
        process.send_signal(signal.SIGKILL)
        assert ended(process).code == -signal.SIGKILL
        assert len(local.runs()) == 1
    scribble(guest, 3)
    point = story.backup()
    assert point.how() == both(("incremental", "delta", "union_of_layers"))
    left = [name for name in guest.files() if ".raksha-" in name and name != ".raksha-trash"]
    assert len(left) == 2, "one overlay a disk, nothing left over"
    scribble(guest, 4)
    assert story.backup().how() == both(PLAIN)
    story.assert_all_hold()


@pytest.mark.slow
@pytest.mark.system
def test_a_vault_that_fills_up_in_mid_run(bed: Bed, tmp_path: Path) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB), bed.raw("big", 32 * MIB)])
    guest.model["vdb"] = bytearray(32 * MIB)
    guest.start()
    guest.write("vdb", 0, 1 * MIB, 0x21)
    with small_file_system(tmp_path / "small", 16 * MIB) as place:
        local = Local(bed.uri, tmp_path / "state", f"file://{place}/vault")
        story = Story(local, guest, tmp_path / "out")
        story.backup()
        write_noise(guest, "vdb", 4 * MIB, 24 * MIB)
        scribble(guest, 0)
        visible = documents(local)
        answer = local.refused("vault_full", "backup", guest.uuid, exit_code=VAULT)
        assert "prune" in answer.json["error"]["hint"]
        assert documents(local) == visible, "nothing of the failed run is visible"
        guest.zero("vdb", 4 * MIB, 24 * MIB)
        local.good("prune", "--keep-last", "1")  # takes the failed run's segments away
        point = story.backup()
        assert point.how() == both(("incremental", "delta", "union_of_layers"))
        story.assert_all_hold()


@pytest.mark.system
@pytest.mark.parametrize("size", [0, 48 * KIB, 96 * KIB])
def test_a_state_directory_that_fills_up(bed: Bed, tmp_path: Path, size: int) -> None:
    """Wherever the room ends, it is an error of ours, nothing shows, and the next backup is right."""
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    write_noise(guest, "vda", 0, 1 * MIB)
    with small_file_system(tmp_path / "small", 8 * MIB) as place:
        local = Local(bed.uri, place / "state", f"file://{tmp_path}/vault")
        story = Story(local, guest, tmp_path / "out")
        story.backup()
        write_noise(guest, "vda", 1 * MIB, 1 * MIB)
        ballast = place / "ballast"
        room = os.statvfs(place)
        ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - size))
        held = guest.frozen_model()
        answer = local("backup", guest.uuid)
        assert "Traceback" not in answer.err, answer
        if answer.code == 0:
            story.truth[answer.run] = held
        else:
            assert answer.code == 1 and answer.error in ("journal_unusable", "host_failed"), answer
            assert local.runs() == list(story.truth)
        ballast.unlink()
        write_noise(guest, "vda", 2 * MIB, 1 * MIB)
        assert story.backup().how()["vda"][0] == "incremental"
        story.assert_all_hold()


@pytest.mark.slow
def test_shut_off_and_started_again(story: Story) -> None:
    story.backup()
    scribble(story.guest, 0)
    story.guest.off()
    point = story.backup()
    assert point.json["run"]["vms"][0]["consistency"] == "offline"
    assert point.how() == both(PLAIN)
    unchanged = story.backup()
    assert unchanged.disks()["vda"]["volume"]["data"] <= 512 * KIB
    story.guest.start()
    scribble(story.guest, 1)
    assert story.backup().json["run"]["vms"][0]["power"] == "running"
    scribble(story.guest, 2)
    story.guest.machine.domain.suspend()
    point = story.backup()
    assert point.json["run"]["vms"][0]["consistency"] == "paused"
    assert point.how() == both(PLAIN)
    story.assert_all_hold()


def test_never_run(bed: Bed, local: Local, tmp_path: Path) -> None:
    """A VM that is shut off from its first backup on never gets an overlay."""
    guest = two_disks(bed, start=False)
    story = Story(local, guest, tmp_path / "out")
    files = guest.files()
    assert story.backup().how() == both(("full", "full", "first_run"))
    assert story.backup().how() == both(("incremental", "compare", "vm_shut_off"))
    assert guest.files() == files
    story.assert_all_hold()


def test_restarted_below_the_overlay(story: Story) -> None:
    story.backup()
    guest = story.guest
    bases = {target: Layer(paths[1], "file", form) for (target, paths), form in
             zip(guest.sources().items(), ("qcow2", "raw"), strict=True)}  # fmt: skip
    held = guest.frozen_model()
    scribble(guest, 2)  # only in the overlay
    guest.off()
    guest.machine.connection.defineXML(own_sources(guest.machine.xml(inactive=True), bases))
    guest.start()
    guest.model.update({target: bytearray(content) for target, content in held.items()})
    scribble(guest, 0)
    point = story.backup()
    assert point.how() == both(("incremental", "compare", "restarted_below_the_overlay"))
    assert any("was started below" in warning for warning in point.warnings)
    scribble(guest, 1)
    assert story.backup().how() == both(PLAIN)
    story.assert_all_hold()


@pytest.mark.slow
def test_release_leaves_no_trace(story: Story) -> None:
    guest = story.guest
    before = guest.sources(), guest.machine.xml(inactive=True), guest.files()
    story.backup()
    scribble(guest, 0)
    story.backup()
    assert ".raksha-" in guest.sources()["vda"][0]
    released = story.local.good("release", guest.uuid).json["released"][guest.machine.name]
    assert len(released) == 2
    assert (guest.sources(), guest.machine.xml(inactive=True), guest.files()) == before
    assert story.local.good("release", guest.uuid).json["released"][guest.machine.name] == ["nothing to release"]
    scribble(guest, 1)
    point = story.backup()
    assert point.how() == both(("incremental", "compare", "no_tracker"))
    guest.off()
    story.local.good("release", guest.uuid)
    assert (guest.machine.xml(inactive=True), guest.files()) == before[1:]
    story.assert_all_hold()
