"""What `rbd diff` says, taken at its word or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from raksha.errors import CaptureFailed
from raksha.types import Extent, ExtentKind
from raksha.virt.libvirt.ceph import differences


@pytest.fixture
def rbd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name; what it prints is for the test to say. Its arguments are in `words`."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "rbd"

    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/words\ncat {tmp_path}/output; exit $(cat {tmp_path}/code)\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "code").write_text("0")
    return tmp_path


def test_both_spellings_overlaps_and_disorder(rbd: Path) -> None:
    (rbd / "output").write_text(
        '[{"offset": 100, "length": 50, "exists": true}, {"offset": 0, "length": 10, "exists": "false"},'
        ' {"offset": 120, "length": 60, "exists": false}, {"offset": 200, "length": 5, "exists": "true"}]'
    )
    found = differences("pool/image", "a", "b", monitors=[("10.0.0.1", "6789"), ("fd00::1", "3300")], user="cinder")
    assert found == [
        Extent(0, 10, ExtentKind.ZERO),
        Extent(100, 50, ExtentKind.DATA),
        Extent(150, 30, ExtentKind.ZERO),
        Extent(200, 5, ExtentKind.DATA),
    ]
    assert (rbd / "words").read_text().split() == [
        "diff", "--format", "json", "--from-snap", "a", "--mon-host", "10.0.0.1:6789,[fd00::1]:3300", "--id", "cinder",
        "pool/image@b",
    ]  # fmt: skip


@pytest.mark.parametrize("output", ["", "[", "{}", '[{"offset": "1", "length": 2, "exists": true}]', '[{"offset": 1}]'])
def test_nonsense_is_no_answer(rbd: Path, output: str) -> None:
    (rbd / "output").write_text(output)
    with pytest.raises(CaptureFailed, match="rbd diff"):
        differences("pool/image", "a", "b")


def test_an_error_is_no_empty_difference(rbd: Path) -> None:
    (rbd / "output").write_text("[]")
    (rbd / "code").write_text("2")
    with pytest.raises(CaptureFailed, match="rbd diff"):
        differences("pool/image", "a", "b")


def test_without_the_program_there_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CaptureFailed, match="FileNotFoundError"):
        differences("pool/image", "a", "b")
