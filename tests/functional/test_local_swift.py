"""A vault in a real Swift through the command line; and by other people's tools: a backup outlives Raksha."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.bed import Bed
from tests.bed.swift import SwiftBed
from tests.functional.local_kit import (
    NOT_FOUND,
    REFUSED,
    VAULT,
    Local,
    Story,
    nothing_changes,
    restored,
    two_disks,
    write_noise,
)
from tests.functional.overlay_kit import KIB, MIB, Guest
from tests.functional.qemu_img import assert_checks, info, qemu_img

pytestmark = pytest.mark.bed

#: python-swiftclient's own command
SWIFT = Path(sys.executable).parent / "swift"


@pytest.fixture
def local(bed: Bed, swift: SwiftBed, tmp_path: Path) -> Local:
    return Local(bed.uri, tmp_path / "state", f"swift://t{uuid4().hex[:8]}", swift.env)


def three_points(bed: Bed, local: Local, tmp_path: Path) -> Story:
    guest = two_disks(bed)
    story = Story(local, guest, tmp_path / "out")
    for number in range(3):
        write_noise(guest, "vda", number * MIB, 300 * KIB)
        guest.write("vdb", number * 300 * KIB, 70 * KIB, 0x71 + number)
        guest.zero("vda", 2 * MIB, 128 * KIB)
        story.backup()
    return story


def test_from_the_first_backup_to_a_fresh_host(bed: Bed, local: Local, tmp_path: Path) -> None:
    story = three_points(bed, local, tmp_path)
    runs = list(story.truth)
    assert story.local.good("show", "latest").json["run"]["vms"][0]["resources"][0]["parent"] == runs[1]
    story.local = local.on_fresh_host(tmp_path / "elsewhere")
    story.assert_all_hold()
    story.local = local
    local.good("delete", runs[1])
    story.forget(runs[1])
    story.assert_all_hold()
    story.guest.write("vda", 0, 4 * KIB, 0x31)
    assert story.backup().how() == {"vda": ("incremental", "delta", None), "vdb": ("incremental", "delta", None)}
    local.good("prune", "--keep-last", "1")
    story.forget(runs[0], runs[2])
    story.assert_all_hold()


@pytest.mark.slow
def test_other_peoples_tools_read_it(bed: Bed, local: Local, tmp_path: Path) -> None:
    """`swift download` of the container, `qemu-img` for the rest: no Raksha, bit for bit."""
    story = three_points(bed, local, tmp_path)
    container = local.vault.removeprefix("swift://") + "_backupjobs"
    downloaded = tmp_path / "downloaded"
    command = [SWIFT, "download", container, "--output-dir", downloaded]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **local.environment})
    assert_tree_opens(story, downloaded, tmp_path)


def test_an_exported_directory_vault_opens_too(bed: Bed, tmp_path: Path) -> None:
    local = Local(bed.uri, tmp_path / "state", f"file://{tmp_path}/vault")
    story = three_points(bed, local, tmp_path)
    runs = list(story.truth)
    chained, flat = tmp_path / "chained", tmp_path / "flat"
    files = local.good("export", runs[-1], "--into", chained).json["files"]
    assert [(each["run"], each["disk"]) for each in files] == [(run, disk) for disk in ("vda", "vdb") for run in runs]
    for each in files:
        if each["run"] == runs[-1]:
            assert_is(Path(each["path"]), story.truth[runs[-1]][each["disk"]], tmp_path)
        assert_checks(each["path"])
        assert "/" not in (info(each["path"]).get("backing-filename") or ""), "the directory may be moved"
    for each in local.good("export", runs[1], "--into", flat, "--flatten").json["files"]:
        assert each["backing"] is None and "backing-filename" not in info(each["path"])
        assert_checks(each["path"])
        assert_is(Path(each["path"]), story.truth[runs[1]][each["disk"]], tmp_path)
    (one,) = local.good("export", "latest", "--disk", "vdb", "--flatten", "--into", tmp_path / "one").json["files"]
    assert_is(Path(one["path"]), story.truth[runs[-1]]["vdb"], tmp_path)


def assert_tree_opens(story: Story, tree: Path, tmp_path: Path) -> None:
    """Every `Backup` is a sound image on its parent by relative path, and reads as the disk that Raksha restores."""
    (job,) = [path for path in tree.iterdir() if path.is_dir() and path.name not in ("keys", "epochs")]
    previous = None
    for run, truth in story.truth.items():
        ours = restored(story.local, run, story.into, story.guest.uuid)
        for target, content in truth.items():
            image = job / run / story.guest.uuid / target / "Backup"
            assert_checks(image)
            backing = info(image).get("backing-filename")
            assert backing == (previous and f"../../../{previous}/{story.guest.uuid}/{target}/Backup")
            assert_is(image, content, tmp_path)
            assert ours[target].read_bytes() == content
        described = json.loads((job / run / "run.json").read_text())
        assert described["backupjobrun"] == run
        previous = run


def assert_is(image: Path, content: bytes, tmp_path: Path) -> None:
    """`qemu-img convert` gives these bytes."""
    raw = tmp_path / "converted.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    assert raw.read_bytes() == content
    raw.unlink()


def test_what_swift_refuses(bed: Bed, local: Local, tmp_path: Path) -> None:
    guest = two_disks(bed)
    key = local.environment["ST_KEY"]
    wrong = Local(local.uri, local.state, local.vault, {**local.environment, "ST_KEY": "wrong-secret"})
    with nothing_changes(local, guest):
        for words in (["backup", guest.uuid], ["list"]):
            answer = wrong.refused("vault_access_denied", *words, exit_code=VAULT)
            assert "ST_*" in answer.json["error"]["hint"]
            assert "wrong-secret" not in answer.out and key not in answer.out
        nothing = dict.fromkeys(("ST_AUTH", "ST_USER", "ST_KEY", "OS_AUTH_URL"), "")
        Local(local.uri, local.state, local.vault, nothing).refused("vault_access_denied", "list", exit_code=VAULT)
        local.refused("vault_not_found", "list", exit_code=NOT_FOUND)
        local.refused("vault_not_found", "prune", "--keep-last", "1", exit_code=NOT_FOUND)
        local.refused("vm_not_found", "backup", "nosuchvm", exit_code=NOT_FOUND)
        local.refused("vault_not_found", "list", exit_code=NOT_FOUND)


def test_one_writer(bed: Bed, local: Local, tmp_path: Path) -> None:
    guest = two_disks(bed, start=False)
    point = local.backup(guest).run
    other = Local(local.uri, tmp_path / "other", local.vault, local.environment)
    other.refused("vault_writer_other", "backup", guest.uuid, exit_code=REFUSED)
    assert other.runs() == [point]
    other.good("backup", guest.uuid, "--take-over")
    local.refused("vault_writer_other", "delete", point, exit_code=REFUSED)
    assert len(local.runs()) == 2


def test_a_container_of_somebody_else(bed: Bed, local: Local, tmp_path: Path) -> None:
    """Foreign content at our names is never taken for a vault, nor changed."""
    container = local.vault.removeprefix("swift://") + "_backupjobs"
    photo = tmp_path / "holiday.jpg"
    photo.write_bytes(b"jpeg")
    environment = {**os.environ, **local.environment}
    upload = [SWIFT, "upload", container, photo, "--object-name", "holiday.jpg"]
    subprocess.run(upload, check=True, capture_output=True, env=environment)
    guest: Guest = two_disks(bed, start=False)
    with nothing_changes(local, guest):
        local.refused("vault_foreign", "backup", guest.uuid, exit_code=REFUSED)
        local.refused("vault_foreign", "list", exit_code=REFUSED)
    listed = subprocess.run([SWIFT, "list", container], check=True, capture_output=True, text=True, env=environment)
    assert listed.stdout == "holiday.jpg\n"
