"""What `raksha local` will not do: each refusal is one clear line, has its exit code, and changes nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from uuid import uuid4

import libvirt
import pytest

from tests.bed import Bed
from tests.bed.disks import Disk
from tests.bed.luks import make_luks
from tests.functional.local_kit import (
    NOT_FOUND,
    REFUSED,
    VAULT,
    WRONG_USE,
    Local,
    Story,
    nothing_changes,
    small_file_system,
    tree,
    two_disks,
)
from tests.functional.overlay_kit import KIB, MIB, Guest

pytestmark = pytest.mark.bed

SECRET = "c3VwZXJzZWNyZXQtcGFzc3BocmFzZQ=="


@pytest.fixture
def local(bed: Bed, tmp_path: Path) -> Local:
    return Local(bed.uri, tmp_path / "state", f"file://{tmp_path}/vault")


@pytest.fixture
def guest(bed: Bed) -> Guest:
    return two_disks(bed)


def one_line(local: Local, *arguments: object) -> str:
    """What a person sees of an error: one line on standard error, nothing on standard output."""
    answer = local(*map(str, arguments), json=False)
    assert answer.code != 0 and answer.out == "", answer
    (line,) = answer.err.splitlines()
    assert line.startswith("raksha: ")
    return line


def test_names_that_are_not_there(local: Local, guest: Guest) -> None:
    with nothing_changes(local, guest):
        answer = local.refused("vm_not_found", "backup", "nosuchvm", exit_code=NOT_FOUND)
        assert "raksha local vms" in answer.json["error"]["hint"]
        local.refused("vm_not_found", "backup", guest.uuid, "nosuchvm", exit_code=NOT_FOUND)
        local.refused("vm_not_found", "backup", str(uuid4()), exit_code=NOT_FOUND)
        local.refused("vm_not_found", "release", "nosuchvm", exit_code=NOT_FOUND)
        wrong = local.refused("disk_not_found", "backup", guest.uuid, "--exclude", f"{guest.uuid}:vdz")
        assert wrong.code == NOT_FOUND and "vda, vdb" in wrong.json["error"]["message"]
        for verb in ("list", "verify"):
            local.refused("vault_not_found", verb, exit_code=NOT_FOUND)
        for verb in (["show", "latest"], ["delete", "abc"], ["prune", "--keep-last", "1"]):
            local.refused("vault_not_found", *verb, exit_code=NOT_FOUND)
        line = one_line(local, "backup", "nosuchvm")
        assert line.endswith("`raksha local vms` lists them.")


def test_points_that_are_not_there(local: Local, guest: Guest, tmp_path: Path) -> None:
    runs = [local.backup(guest).run]
    while runs[-1][0] not in {run[0] for run in runs[:-1]}:  # until two begin alike
        runs.append(local.backup(guest).run)
        assert len(runs) < 18
    begin = runs[-1][0]
    with nothing_changes(local, guest):
        local.refused("run_ambiguous", "show", begin, exit_code=NOT_FOUND)
        local.refused("run_ambiguous", "delete", begin, exit_code=NOT_FOUND)
        local.refused("run_not_found", "show", "zz", exit_code=NOT_FOUND)
        local.refused("run_not_found", "delete", runs[0], "zz", exit_code=NOT_FOUND)
        local.refused("run_not_found", "verify", "", exit_code=NOT_FOUND)
        out = tmp_path / "out.raw"
        point = ["restore", runs[0], "--to", out]
        local.refused("resource_not_found", *point, "--disk", "vdz", exit_code=NOT_FOUND)
        local.refused("resource_not_found", *point, "--disk", "vda", "--vm", "other", exit_code=NOT_FOUND)
        assert not out.exists()


def test_arguments_that_make_no_sense(local: Local, guest: Guest, tmp_path: Path) -> None:
    local.backup(guest)
    target = tmp_path / "a.raw"
    with nothing_changes(local, guest):
        for text in ("vdb", ":vdb", f"{guest.uuid}:", "other:vdb"):
            local.refused("bad_argument", "backup", guest.uuid, "--exclude", text, exit_code=WRONG_USE)
        for text in ("vda", "=x.qcow2", "vda="):
            local.refused("bad_argument", "restore", "latest", "--into", tmp_path, "--thin", text, exit_code=WRONG_USE)
        local.refused("bad_argument", "restore", "latest", exit_code=WRONG_USE)
        local.refused("bad_argument", "restore", "latest", "--to", target, exit_code=WRONG_USE)
        local.refused("bad_argument", "restore", "latest", "--to", target, "--into", tmp_path, exit_code=WRONG_USE)
        local.refused("bad_argument", "restore", "latest", "--into", tmp_path, "--start", exit_code=WRONG_USE)
        for words in (["--quiesce", "maybe"], ["--workers", "0"], ["--full", "--incremental"], ["--nonsense"]):
            answer = local("backup", guest.uuid, *words)
            assert answer.code == WRONG_USE and "usage:" in answer.err, answer
        for words in (["prune"], ["prune", "--keep-last", "0"], ["backup"], ["show"]):
            assert local(*words).code == WRONG_USE


@pytest.mark.parametrize(
    "url",
    ["", "/srv/vault", "file://srv/vault", "file:///", "file://", "s3://bucket", "swift://a/b", "swift://u:pw@host/",
     "file:///x?y=1", "file:///nosuchparent/of/a/vault", "swift://ha%20llo"],
)  # fmt: skip
def test_addresses_that_are_none(local: Local, bed: Bed, tmp_path: Path, url: str) -> None:
    guest = two_disks(bed, start=False)
    wrong = Local(local.uri, local.state, url, {"ST_AUTH": "http://127.0.0.1:1/", "ST_USER": "a", "ST_KEY": "b"})
    with nothing_changes(local, guest):
        answer = wrong.refused("bad_vault_url", "backup", guest.uuid, exit_code=WRONG_USE)
        assert "pw" not in answer.out


def test_vms_and_disks_that_cannot_be_protected(local: Local, bed: Bed) -> None:
    diskless = Guest(bed, [Disk(bed.raw("cd").path, "raw", target="hdc", extra="<readonly/>")], name="diskless")
    with nothing_changes(local, diskless):
        local.refused("vm_without_disks", "backup", diskless.uuid, exit_code=REFUSED)
    shared = bed.raw("shared", 4 * MIB)
    plain = bed.raw("plain", 4 * MIB)
    sharing = Guest(bed, [plain, Disk(shared.path, "raw", extra="<shareable/>")], name="sharing")
    sharing.model["vdb"] = bytearray(4 * MIB)
    locked = Guest(bed, [bed.raw("open", 4 * MIB), luks(bed)], name="locked")
    for guest, why in ((sharing, "shareable"), (locked, "encrypted")):
        name = guest.machine.name
        with nothing_changes(local, guest):
            answer = local.refused("disk_unsupported", "backup", name, exit_code=REFUSED)
            assert why in answer.json["error"]["message"]
            assert answer.json["error"]["hint"] == f"Leave it out with --exclude {name}:vdb."
        point = local.good("backup", name, "--exclude", f"{name}:vdb")
        assert set(point.disks()) == {"vda"}
    everything = ["--exclude", f"{sharing.uuid}:vdb", "--exclude", f"{sharing.uuid}:vda"]
    local.refused("vm_without_disks", "backup", sharing.uuid, *everything, exit_code=REFUSED)


def luks(bed: Bed) -> Disk:
    """An encrypted disk, with its secret at libvirt."""
    path, key = bed.directory / "luks.img", bed.directory / "key"
    key.write_text(SECRET)
    secret_from = ["--object", f"secret,id=k,file={key}", "-o", "key-secret=k,iter-time=10"]
    make_luks(path, "4M", "-f", "luks", *secret_from)
    bed.host.give(path)
    identifier = uuid4()
    connection = bed.host.connect()
    xml = f"<secret ephemeral='no' private='yes'><uuid>{identifier}</uuid></secret>"
    secret = connection.secretDefineXML(xml)
    secret.setValue(SECRET.encode())
    bed._stack.callback(connection.close)
    bed._stack.callback(secret.undefine)
    extra = f"<encryption format='luks'><secret type='passphrase' uuid='{identifier}'/></encryption>"
    return Disk(path, "raw", extra=extra)


def test_a_snapshot_of_somebody_else_above_ours(local: Local, guest: Guest) -> None:
    local.backup(guest)
    foreign = guest.bed.directory / "foreign.qcow2"
    xml = f"""<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='{foreign}'/></disk>
        <disk name='vdb' snapshot='no'/></disks></domainsnapshot>"""
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    guest.machine.domain.snapshotCreateXML(xml, flags)
    with nothing_changes(local, guest):
        answer = local.refused("foreign_chain", "backup", guest.uuid, exit_code=REFUSED)
        assert str(foreign) in answer.json["error"]["message"]
        local.refused("foreign_chain", "release", guest.uuid, exit_code=REFUSED)


def test_overlays_of_another_journal(local: Local, guest: Guest, tmp_path: Path) -> None:
    local.backup(guest)
    other = Local(local.uri, tmp_path / "other", f"file://{tmp_path}/other-vault")
    with nothing_changes(local, guest), nothing_changes(other):
        other.refused("layer_unknown", "backup", guest.uuid, exit_code=REFUSED)


@pytest.mark.system
def test_no_room_for_the_overlay(local: Local, guest: Guest, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", 8 * MIB) as place, nothing_changes(local, guest):
        answer = local.refused("no_space_for_overlay", "backup", guest.uuid, "--overlay-dir", place, exit_code=REFUSED)
        assert str(place) in answer.json["error"]["message"]
        assert list(place.iterdir()) == []


def test_no_place_for_the_overlay(local: Local, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with nothing_changes(local, guest):
        for place in (tmp_path / "file", tmp_path / "no" / "such" / "directory"):
            answer = local("backup", guest.uuid, "--overlay-dir", place)
            assert answer.code in (1, REFUSED) and str(place) in answer.json["error"]["message"], answer


def test_freezing_without_a_guest_agent(local: Local, guest: Guest) -> None:
    with nothing_changes(local, guest):
        answer = local.refused("quiesce_failed", "backup", guest.uuid, "--quiesce", "require", exit_code=REFUSED)
        assert "--quiesce auto" in answer.json["error"]["hint"]
    assert local.backup(guest).json["run"]["vms"][0]["consistency"] == "crash"


def test_foreign_content_in_place_of_a_vault(local: Local, guest: Guest) -> None:
    local.folder.mkdir()
    (local.folder / "thesis.odt").write_text("years of work")
    with nothing_changes(local, guest):
        local.refused("vault_foreign", "backup", guest.uuid, exit_code=REFUSED)
        local.refused("vault_not_found", "list", exit_code=NOT_FOUND)
    (local.folder / "thesis.odt").unlink()
    (local.folder / "backupjobs").mkdir()
    (local.folder / "backupjobs" / "holiday.jpg").write_text("jpeg")
    with nothing_changes(local, guest):
        local.refused("vault_foreign", "backup", guest.uuid, exit_code=REFUSED)
        local.refused("vault_foreign", "list", exit_code=REFUSED)


@pytest.mark.system
def test_a_read_only_vault(bed: Bed, guest: Guest, tmp_path: Path) -> None:
    """Reading works, writing is refused, and the next backup after it is right."""
    with small_file_system(tmp_path / "small", 32 * MIB) as place:
        local = Local(bed.uri, tmp_path / "state", f"file://{place}/vault")
        story = Story(local, guest, tmp_path / "out")
        story.backup()
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        guest.write("vda", 1 * MIB, 10 * KIB, 0x33)
        before = tree(place)
        local.refused("vault_access_denied", "backup", guest.uuid, exit_code=VAULT)
        local.refused("vault_access_denied", "delete", "latest", exit_code=VAULT)
        story.assert_all_hold()
        assert tree(place) == before
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        guest.write("vdb", 1 * MIB, 10 * KIB, 0x33)
        assert story.backup().how()["vda"] == ("incremental", "delta", "union_of_layers")
        story.assert_all_hold()


@pytest.mark.slow
def test_one_writer_others_read(local: Local, bed: Bed, tmp_path: Path) -> None:
    guest, second = two_disks(bed), two_disks(bed, "second", start=False)
    story = Story(local, guest, tmp_path / "out")
    point = story.backup().run
    other = Local(local.uri, tmp_path / "other", local.vault)
    with nothing_changes(local, guest, second):
        refused = other.refused("vault_writer_other", "backup", second.uuid, exit_code=REFUSED)
        assert "--take-over" in refused.json["error"]["hint"]
        other.refused("vault_writer_other", "prune", "--keep-last", "1", exit_code=REFUSED)
        other.refused("vault_writer_other", "delete", point, exit_code=REFUSED)
        other.refused("vm_not_found", "backup", "nosuchvm", "--take-over", exit_code=NOT_FOUND)
        assert other.runs() == [point]
        assert other.good("verify", "--data").json["findings"] == []
    other.good("backup", second.uuid, "--take-over")
    with nothing_changes(local, guest, second):
        local.refused("vault_writer_other", "backup", guest.uuid, exit_code=REFUSED)
    theirs = other.runs()[-1]
    assert local.runs() == [point, theirs]
    guest.write("vda", 0, 4 * KIB, 0x44)
    assert story.backup("--take-over").how()["vda"] == ("incremental", "delta", None)
    local.good("delete", theirs)
    story.assert_all_hold()


def test_targets_that_exist(local: Local, guest: Guest, tmp_path: Path) -> None:
    local.backup(guest)
    into = tmp_path / "into"
    into.mkdir()
    file = into / f"{guest.machine.name}-vda.raw"
    file.write_text("mine")
    with nothing_changes(local, guest):
        to = ["restore", "latest", "--disk", "vda"]
        local.refused("target_exists", *to, "--to", file, exit_code=REFUSED)
        local.refused("target_exists", "restore", "latest", "--into", into, "--format", "raw", exit_code=REFUSED)
        local.refused("target_unusable", *to, "--to", tmp_path / "no" / "dir.raw", exit_code=REFUSED)
        local.refused("target_unusable", "restore", "latest", "--into", tmp_path / "no", exit_code=REFUSED)
        local.refused("target_exists", "export", "latest", "--into", into, exit_code=REFUSED)
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "nowhere")
        local.refused("target_exists", *to, "--to", link, exit_code=REFUSED)
    assert file.read_text() == "mine" and [each.name for each in into.iterdir()] == [file.name]


@pytest.mark.system
def test_too_little_room_for_a_restore(local: Local, guest: Guest, tmp_path: Path) -> None:
    local.backup(guest)
    with small_file_system(tmp_path / "small", 128 * KIB) as place:
        answer = local.refused("no_space_for_restore", "restore", "latest", "--into", place, exit_code=REFUSED)
        assert str(place) in answer.json["error"]["message"]
        local.refused("no_space_for_restore", "export", "latest", "--into", place / "x", exit_code=REFUSED)
        assert list(place.iterdir()) == []


def test_configurations_that_cannot_be_used(local: Local, guest: Guest, tmp_path: Path) -> None:
    config = tmp_path / "raksha.conf"
    with nothing_changes(local, guest):
        local.refused("settings_wrong", "backup", guest.uuid, "--config", tmp_path / "none", exit_code=WRONG_USE)
        local.refused("settings_wrong", "backup", guest.uuid, "--config", tmp_path, exit_code=WRONG_USE)
        for text in ("[host]\nworkers = many\n", "[host]\nworkers = 0\n", "no section", "[host]\nworkers"):
            config.write_text(text)
            local.refused("settings_wrong", "backup", guest.uuid, "--config", config, exit_code=WRONG_USE)
        config.write_bytes(b"[host]\nlibvirt_uri = \xff\xfe\n")
        local.refused("settings_wrong", "backup", guest.uuid, "--config", config, exit_code=WRONG_USE)


def test_state_that_cannot_be_kept(local: Local, guest: Guest, tmp_path: Path) -> None:
    local.backup(guest)
    (tmp_path / "file").touch()
    broken = Local(local.uri, tmp_path / "file" / "state", local.vault)
    with nothing_changes(local, guest):
        broken.refused("journal_unusable", "backup", guest.uuid, exit_code=1)
        assert broken.runs() == local.runs(), "listing needs no state"
        answer = broken.refused("host_failed", "verify", exit_code=1)
        assert "--state-dir" in answer.json["error"]["hint"]
    torn = Local(local.uri, tmp_path / "torn", local.vault)
    torn.state.mkdir()
    (torn.state / "journal.sqlite").write_bytes(b"this is no database, and it is longer than a header" * 100)
    with nothing_changes(local, guest):
        torn.refused("journal_unusable", "backup", guest.uuid, exit_code=1)


def test_hypervisors_that_do_not_answer(local: Local, tmp_path: Path) -> None:
    for uri in ("qemu:///session?socket=/nonexistent", "nonsense", "qemu+tcp://127.0.0.1:1/system"):
        gone = Local(uri, tmp_path / "state", local.vault)
        gone.refused("hypervisor_unavailable", "backup", "vm", exit_code=1)
        gone.refused("hypervisor_unavailable", "release", "vm", exit_code=1)
    assert not local.folder.exists()
