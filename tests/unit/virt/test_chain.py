"""Headers and chains, read from images that qemu-img made."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from raksha.virt.libvirt.chain import ChainBroken, follow, header, modified, relative_name, same_file
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.layer_header import NotQcow2, read_header
from raksha.virt.libvirt.overlay_file import OverlayPlan, make

MIB = 1 << 20


def create(path: Path, *more: str, size: int | None = MIB) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, path, *([str(size)] if size else [])], check=True)
    return path


def top(path: Path) -> tuple[Layer, ...]:
    return (Layer(str(path), "file", "qcow2"),)


def test_header(tmp_path: Path) -> None:
    create(tmp_path / "base", "-o", "compat=0.10", size=3 * MIB)
    found = read_header(str(tmp_path / "base"))
    assert (found.version, found.size, found.backing, found.backing_format) == (2, 3 * MIB, None, None)
    create(tmp_path / "top", "-b", "base", "-F", "qcow2", "-o", "cluster_size=4096", size=None)
    found = read_header(str(tmp_path / "top"))
    assert (found.version, found.size, found.cluster_size) == (3, 3 * MIB, 4096)
    assert (found.backing, found.backing_format) == ("base", "qcow2")
    subprocess.run(["qemu-img", "snapshot", "-c", "s", tmp_path / "top"], check=True)
    assert read_header(str(tmp_path / "top")).snapshots == 1


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"x" * 200, b"QFI\xfb\x00\x00\x00\x09" + bytes(200)])
def test_no_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(NotQcow2):
        read_header(str(tmp_path / "x"))


def test_follow(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(MIB))
    create(tmp_path / "one", "-b", str(raw), "-F", "raw")
    (tmp_path / "sub").mkdir()
    create(tmp_path / "sub" / "two", "-b", "../one", "-F", "qcow2")
    chain = follow(top(tmp_path / "sub" / "two"))
    assert [layer.format for layer in chain] == ["qcow2", "qcow2", "raw"]
    assert same_file(chain[1].path, str(tmp_path / "one")) and chain[2].path == str(raw)
    assert follow((Layer(str(raw), "file", "raw"),)) == (Layer(str(raw), "file", "raw"),)


def test_a_guest_cannot_lengthen_the_chain(tmp_path: Path) -> None:
    """A raw disk on which the guest wrote a qcow2 header is still a raw disk."""
    create(tmp_path / "evil", "-b", "/etc/shadow", "-F", "raw", "-u")
    assert len(follow((Layer(str(tmp_path / "evil"), "file", "raw"),))) == 1


def test_definition_and_header_disagree(tmp_path: Path) -> None:
    create(tmp_path / "a")
    create(tmp_path / "b")
    create(tmp_path / "c", "-b", "a", "-F", "qcow2")
    wrong = (*top(tmp_path / "c"), Layer(str(tmp_path / "b"), "file", "qcow2"))
    with pytest.raises(ChainBroken, match="its header"):
        follow(wrong)
    with pytest.raises(ChainBroken, match="its header"):
        follow((*top(tmp_path / "c"), Layer(str(tmp_path / "a"), "file", "raw")))
    with pytest.raises(ChainBroken, match="no header does"):
        follow((*top(tmp_path / "a"), Layer(str(tmp_path / "b"), "file", "qcow2")))


@pytest.mark.parametrize("backing", ["nbd://host/x", "json:{}", "fat:/etc"])
def test_backing_that_is_no_file(tmp_path: Path, backing: str) -> None:
    create(tmp_path / "a")
    rebase = ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", tmp_path / "a"]
    if subprocess.run(rebase, check=False, capture_output=True).returncode:
        head = bytearray((tmp_path / "a").read_bytes())  # qemu-img has its own opinion: write the name by hand
        head[8:20] = (0x300).to_bytes(8, "big") + len(backing).to_bytes(4, "big")
        head[0x300 : 0x300 + len(backing)] = backing.encode()
        (tmp_path / "a").write_bytes(head)
    with pytest.raises(ChainBroken):
        follow(top(tmp_path / "a"))


def test_missing(tmp_path: Path) -> None:
    create(tmp_path / "a", "-b", "gone", "-F", "raw", "-u")
    with pytest.raises(ChainBroken, match="gone"):
        follow(top(tmp_path / "a"))
    with pytest.raises(ChainBroken, match="cannot be read"):
        header(Layer(str(tmp_path / "none"), "file", "raw"))


def test_relative_name() -> None:
    assert relative_name("/d/o.qcow2", "/d/a.raw") == "a.raw"
    assert relative_name("/o/o.qcow2", "/d/a.raw") is None
    assert relative_name("/d/o.qcow2", "/d/nbd:x") is None, "QEMU would take it for a protocol"


def test_same_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    os.link(tmp_path / "a", tmp_path / "hard")
    assert same_file(str(tmp_path / "a"), str(tmp_path / "link")) and same_file(str(tmp_path / "a"), f"{tmp_path}//./a")
    assert not same_file(str(tmp_path / "a"), str(tmp_path / "gone"))
    assert same_file("/gone", "/gone")
    assert modified("/dev/null") is None and modified(str(tmp_path / "a"))


@pytest.mark.parametrize("name", ["plain", "with space, comma", 'quote"x', "nbd:host", "new\nline", "-dash"])
def test_overlay_names(tmp_path: Path, name: str) -> None:
    """Whatever a disk is called, its overlay stands on it."""
    backing = tmp_path / name
    backing.write_bytes(bytes(MIB))
    overlay = tmp_path / f"{name}.raksha-1.qcow2"
    made = make(OverlayPlan("vda", str(overlay), Layer(str(backing), "file", "raw"), MIB), "run")
    assert overlay.stat().st_ino == made.inode and overlay.stat().st_mode & 0o777 == 0o600
    assert [Path(layer.path) for layer in follow(top(overlay))] == [overlay, backing]
    command = ["qemu-img", "info", "--backing-chain", "--output=json", "-f", "qcow2", overlay]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert [Path(link["filename"]).name for link in told] == [overlay.name, backing.name]
    assert told[0]["backing-filename-format"] == "raw" and told[0]["virtual-size"] == MIB
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", overlay], check=True)
