"""TPM state comes from a vault: whatever the archive says, only plain files below the one directory are made."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from raksha.errors import MetadataInvalid, TargetExists
from raksha.restore.tpm import put_tpm_state, tpm_directory


def archive(*members: tuple[str, bytes, str]) -> bytes:
    """(name, type, link target)"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, link, 0o4777
            member.size = 6 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"sealed"))
    return buffer.getvalue()


FOLDER, FILE = ("./tpm2", tarfile.DIRTYPE, ""), ("./tpm2/state", tarfile.REGTYPE, "")


def test_files_are_put_back_for_their_owner_alone(tmp_path: Path) -> None:
    put_tpm_state(archive((".", tarfile.DIRTYPE, ""), FOLDER, FILE), tmp_path / "swtpm" / "id")
    state = tmp_path / "swtpm" / "id" / "tpm2" / "state"
    assert state.read_bytes() == b"sealed"
    assert state.stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(
    "bad",
    [
        ("../outside", tarfile.REGTYPE, ""),
        ("tpm2/../../outside", tarfile.REGTYPE, ""),
        ("/tmp/outside", tarfile.REGTYPE, ""),
        ("../outside", tarfile.DIRTYPE, ""),
        ("link", tarfile.SYMTYPE, "/etc"),
        ("link", tarfile.LNKTYPE, "tpm2/state"),
        ("pipe", tarfile.FIFOTYPE, ""),
        ("device", tarfile.CHRTYPE, ""),
    ],
)
def test_anything_else_is_refused_and_nothing_is_made(tmp_path: Path, bad: tuple[str, bytes, str]) -> None:
    with pytest.raises(MetadataInvalid):
        put_tpm_state(archive(FOLDER, FILE, bad), tmp_path / "id")
    assert list(tmp_path.iterdir()) == []


def test_state_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "id").mkdir()
    with pytest.raises(TargetExists):
        put_tpm_state(archive(FOLDER, FILE), tmp_path / "id")
    assert list((tmp_path / "id").iterdir()) == []


def test_where_libvirt_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert tpm_directory("qemu:///system", "id") == Path("/var/lib/libvirt/swtpm/id")
    for uri in ("qemu:///session", "qemu+unix:///session?socket=/tmp/x"):
        assert tpm_directory(uri, "id") == tmp_path / "libvirt/qemu/swtpm/id"
