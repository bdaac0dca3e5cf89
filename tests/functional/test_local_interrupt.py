"""Commands that are broken off or meet each other: nothing half-made shows, guests run on, the next backup is right."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.bed import Bed
from tests.bed.disks import loop_device
from tests.functional.local_kit import (
    ATTENTION,
    INTERRUPTED,
    REFUSED,
    Local,
    Story,
    documents,
    ended,
    two_disks,
    wait_until,
    write_noise,
)
from tests.functional.overlay_kit import KIB, MIB, Guest

pytestmark = pytest.mark.bed


@pytest.fixture
def local(bed: Bed, tmp_path: Path) -> Local:
    return Local(bed.uri, tmp_path / "state", f"file://{tmp_path}/vault")


def big_guest(bed: Bed) -> Guest:
    """vdb has 64 MiB of data that takes a while to store."""
    disk = bed.raw("big", 64 * MIB)
    guest = Guest(bed, [bed.raw("a", 4 * MIB), disk])
    content = random.Random(5).randbytes(64 * MIB)
    disk.path.write_bytes(content)
    guest.model["vdb"] = bytearray(content)
    guest.start()
    return guest


def shown(local: Local) -> set[str]:
    """Documents that make a restore point visible, or belong to one that is."""
    return {name for name in documents(local) if name.endswith(("run.json", "Backup", "BackupMetadata", "VMMetadata"))}


def broken_off(local: Local, process: subprocess.Popen[str], before: set[str]) -> None:
    """The command said so in one line and nothing of it shows."""
    answer = ended(process)
    assert answer.code == INTERRUPTED, answer
    assert answer.out == ""
    assert answer.err.splitlines()[-1] == "raksha: Interrupted; nothing half-made was left visible."
    assert "Traceback" not in answer.err
    assert shown(local) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_stream(bed: Bed, local: Local, tmp_path: Path, number: signal.Signals) -> None:
    guest = big_guest(bed)
    story = Story(local, guest, tmp_path / "out")
    for _ in range(2):
        segments = set(local.segments())
        process = local.start("backup", guest.uuid, "--full", "--workers", "1", start_new_session=True)
        wait_until(lambda: set(local.segments()) - segments, "the first segment")  # noqa: B023
        # to all of the group, as Ctrl-C on a terminal does; and a second time, by an impatient hand
        os.killpg(process.pid, number)
        os.killpg(process.pid, number)
        broken_off(local, process, set())
        guest.write("vda", 0, 100 * KIB, 0x31)
    point = story.backup()
    assert point.how()["vdb"] == ("full", "full", "first_run")
    guest.write("vdb", 1 * MIB, 100 * KIB, 0x33)
    assert story.backup().how()["vdb"] == ("incremental", "delta", None)
    story.assert_all_hold()


@pytest.mark.slow
def test_at_any_moment(bed: Bed, local: Local, tmp_path: Path) -> None:
    """Signals that come when they like, from before the snapshot to after the commit."""
    guest = two_disks(bed)
    story = Story(local, guest, tmp_path / "out")
    started = time.monotonic()
    story.backup()
    whole = time.monotonic() - started
    seen = set()
    for step in range(10):
        guest.write("vda", step * 100 * KIB, 30 * KIB, 0x40 + step)
        write_noise(guest, "vdb", step * 300 * KIB, 100 * KIB)
        held = guest.frozen_model()
        known = set(story.truth)
        process = local.start("backup", guest.uuid, "--json")
        time.sleep(whole * step / 9)
        process.send_signal(signal.SIGINT if step % 2 else signal.SIGTERM)
        answer = ended(process)
        seen.add(answer.code)
        if answer.code < 0 or "Failed to import the site module" in answer.err:
            assert answer.out == "", "Python itself was still starting; nothing of ours had begun"
        elif answer.code == 0:
            story.truth[answer.run] = held
        else:
            assert (answer.code, answer.error, answer.err) == (INTERRUPTED, "interrupted", ""), answer
        assert set(local.runs()) == (known | {answer.run} if answer.code == 0 else known)
        guest.write("vdb", 3 * MIB, 4 * KIB, step)  # it runs, and is not frozen
    assert seen >= {INTERRUPTED}
    story.backup()
    assert len([name for name in guest.files() if ".raksha-" in name and name != ".raksha-trash"]) == 2
    story.assert_all_hold()


def test_a_restore(bed: Bed, local: Local, tmp_path: Path) -> None:
    guest = big_guest(bed)
    story = Story(local, guest, tmp_path / "out")
    story.backup()
    into = tmp_path / "into"
    into.mkdir()
    for words in (["restore", "latest", "--into", into], ["export", "latest", "--into", into / "tree"]):
        process = local.start(*map(str, words), "--workers", "1")
        wait_until(lambda: any(into.rglob(".raksha-*")), "a hidden file")
        process.send_signal(signal.SIGINT)
        broken_off(local, process, shown(local))
        assert list(into.iterdir()) == []
    story.assert_all_hold()


@pytest.mark.system
def test_a_restore_into_a_device(bed: Bed, local: Local, tmp_path: Path) -> None:
    """What the device held is gone, so this is never called harmless."""
    guest = big_guest(bed)
    local.backup(guest)
    below = tmp_path / "below"
    below.write_bytes(b"\xaa" * (64 * MIB))
    with loop_device(below) as device:
        words = ["restore", "latest", "--disk", "vdb", "--to", str(device)]
        process = local.start(*words, "--workers", "1", "--json")
        wait_until(lambda: first_bytes(device) != b"\xaa" * 512, "the first write")
        process.send_signal(signal.SIGTERM)
        answer = ended(process)
        assert (answer.code, answer.error) == (ATTENTION, "device_half_written"), answer
        assert str(device) in answer.json["error"]["message"]
        local.good(*words)
        assert device.read_bytes() == guest.frozen_model()["vdb"]


def first_bytes(device: Path) -> bytes:
    with device.open("rb", buffering=0) as file:
        return file.read(512)


def test_a_vault_that_hangs(bed: Bed, local: Local, tmp_path: Path) -> None:
    """A command that waits for its vault ends at once when it is asked to."""
    guest = two_disks(bed, start=False)
    nobody = {"ST_AUTH": "http://127.0.0.1:9/auth", "ST_USER": "a:b", "ST_KEY": "c"}
    waiting = Local(bed.uri, local.state, "swift://x", nobody)
    process = waiting.start("backup", guest.uuid, "--json")
    time.sleep(2.5)
    assert process.poll() is None, "it is patient"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    answer = ended(process)
    assert (answer.code, answer.error) == (INTERRUPTED, "interrupted")
    assert time.monotonic() - started < 5


def test_two_at_once(bed: Bed, local: Local, tmp_path: Path) -> None:
    guest = big_guest(bed)
    other = two_disks(bed, "other", start=False)
    story = Story(local, guest, tmp_path / "out")
    held = guest.frozen_model()
    process = local.start("backup", guest.uuid, "--json")
    wait_until(local.segments, "the first segment")
    process.send_signal(signal.SIGSTOP)
    try:
        busy = local.refused("vault_busy", "backup", other.uuid, exit_code=REFUSED)
        assert str(process.pid) in busy.json["error"]["message"]
        local.refused("vault_busy", "prune", "--keep-last", "1", exit_code=REFUSED)
        elsewhere = Local(bed.uri, local.state, f"file://{tmp_path}/elsewhere")
        elsewhere.refused("vm_busy", "backup", guest.uuid, exit_code=REFUSED)
        elsewhere.refused("vm_busy", "release", guest.uuid, exit_code=REFUSED)
        assert not elsewhere.folder.exists(), "a refused backup makes no vault"
        elsewhere.good("backup", other.uuid)
        assert local.runs() == [], "reading needs no lock"
    finally:
        process.send_signal(signal.SIGCONT)
    answer = ended(process)
    assert answer.code == 0
    story.truth[answer.run] = held
    story.assert_all_hold()


@pytest.mark.slow
def test_taken_over_in_mid_run(bed: Bed, local: Local, tmp_path: Path) -> None:
    """The old writer cannot commit any more: of a group none is visible, and every VM's next backup is right."""
    guest, second, other = big_guest(bed), two_disks(bed, "second"), two_disks(bed, "other", start=False)
    stories = [Story(local, each, tmp_path / "out") for each in (guest, second)]
    first = local.good("backup", guest.uuid, second.uuid).run
    for story in stories:
        story.truth[first] = story.guest.frozen_model()
        story.guest.write("vda", 1 * MIB, 200 * KIB, 0x51)
    write_noise(guest, "vdb", 0, 32 * MIB)
    local.good("backup", other.uuid)
    segments = set(local.segments())
    process = local.start("backup", guest.uuid, second.uuid, "--json", "--workers", "1")
    wait_until(lambda: set(local.segments()) - segments, "the first segment")
    process.send_signal(signal.SIGSTOP)
    thief = Local(bed.uri, tmp_path / "thief", local.vault)
    try:
        thief.good("backup", other.uuid, "--take-over")
    finally:
        process.send_signal(signal.SIGCONT)
    answer = ended(process)
    assert (answer.code, answer.error) == (REFUSED, "vault_writer_other"), answer
    assert len(thief.runs()) == 3
    for story in stories:
        story.guest.write("vda", 2 * MIB, 20 * KIB, 0x52)
    again = local.good("backup", guest.uuid, second.uuid, "--take-over")
    for story in stories:
        story.truth[again.run] = story.guest.frozen_model()
    assert {disk["reason"] for vm in again.json["run"]["vms"] for disk in vm["resources"]} == {"union_of_layers"}
    local.good("delete", *[run for run in local.runs() if run not in (first, again.run)])
    for story in stories:
        story.assert_all_hold()


def test_the_reader_of_our_output_goes_away(bed: Bed, local: Local) -> None:
    guest = two_disks(bed, start=False)
    local.backup(guest)
    with subprocess.Popen(local.command("list"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
