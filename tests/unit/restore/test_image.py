"""Images that stay where they are, written through QEMU: exact to the end, sparse, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raksha.errors import DeviceHalfWritten, Interrupted, TargetUnusable
from raksha.restore.disk import restore_disk
from raksha.restore.image import Image
from raksha.types import Geometry
from tests.unit.restore.vault import CLUSTER, CountingStore, Vault, context, pattern

MIB = 1 << 20


class Meddling(CountingStore):
    """Does something after some segments were read."""

    def __init__(self, below: Any, meddle: Callable[[], object]) -> None:
        super().__init__(below)
        self._meddle = meddle
        self._segments = 0

    def get(self, name: str, *where: Any) -> bytes:
        if name.startswith("backupjobs_segments"):
            self._segments += 1
            if self._segments > 5:
                self._meddle()
        return super().get(name, *where)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    made = tmp_path / "spool"
    made.mkdir()
    return made


@pytest.fixture
def vault(spool: Path) -> Vault:
    """A disk of 3 MiB and a bit, at two points."""
    vault = Vault(spool, Geometry(800 * CLUSTER - 1000, CLUSTER, 8))
    vault.add({number: pattern(number) for number in (*range(3, 300), 799)})
    vault.add({5: None, 100: pattern(1), 400: pattern(2)})
    return vault


def made(path: Path, form: str = "raw", size: int = 16 * MIB) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", form, path, str(size)], check=True)
    return path


def node(path: Path, form: str = "raw") -> dict[str, Any]:
    return {"driver": form, "file": {"driver": "file", "filename": str(path)}}


def image(path: Path, form: str = "raw", *, fresh: bool = True) -> Image:
    return Image("the volume", node(path, form), 4, fresh=fresh)


def content(path: Path, form: str = "raw") -> bytes:
    raw = path.with_suffix(".content")
    subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_new_volume_is_the_disk_and_takes_no_more_room(vault: Vault, tmp_path: Path, spool: Path, form: str) -> None:
    volume = made(tmp_path / "volume", form)
    before = volume.stat().st_blocks
    restore_disk(vault.source(), image(volume, form), context(spool))
    model = vault.models[-1]
    assert content(volume, form) == model + bytes(16 * MIB - len(model))
    assert (volume.stat().st_blocks - before) * 512 < 3 * MIB


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_of_what_a_volume_held_nothing_shows(vault: Vault, tmp_path: Path, spool: Path, form: str) -> None:
    volume = made(tmp_path / "volume", form)
    where = f"write -P 0xee 0 {16 * MIB}"
    subprocess.run(["qemu-io", "-f", form, "-c", where, volume], check=True, capture_output=True)
    restore_disk(vault.source(), image(volume, form, fresh=False), context(spool))
    model = vault.models[-1]
    assert content(volume, form) == model + bytes(16 * MIB - len(model))


def test_one_that_is_too_small_is_left_alone(vault: Vault, tmp_path: Path, spool: Path) -> None:
    volume = tmp_path / "volume"
    volume.write_bytes(b"kept" * 1024)
    with pytest.raises(TargetUnusable, match="it has 4096 bytes"):
        restore_disk(vault.source(), image(volume, fresh=False), context(spool))
    assert volume.read_bytes() == b"kept" * 1024


def test_one_that_a_vm_has_is_left_alone(vault: Vault, tmp_path: Path, spool: Path) -> None:
    volume = made(tmp_path / "volume")
    pid = tmp_path / "pid"
    words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-daemonize", "-pidfile", pid]
    subprocess.run([*words, "-drive", f"if=virtio,format=raw,file={volume}"], check=True)
    try:
        with pytest.raises(TargetUnusable, match="lock"):
            restore_disk(vault.source(), image(volume), context(spool))
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    assert volume.read_bytes() == bytes(16 * MIB)


def test_one_that_is_not_there_is_said_to_be_missing(vault: Vault, tmp_path: Path, spool: Path) -> None:
    with pytest.raises(TargetUnusable, match="No such file"):
        restore_disk(vault.source(), image(tmp_path / "absent"), context(spool))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_cancel_halfway_is_told_of_what_somebody_owns(vault: Vault, tmp_path: Path, spool: Path, fresh: bool) -> None:
    volume = made(tmp_path / "volume")
    cancelled = context(spool)
    store = Meddling(vault.store, cancelled.cancel.set)
    with pytest.raises(Interrupted if fresh else DeviceHalfWritten):
        restore_disk(vault.source(store=store), image(volume, fresh=fresh), cancelled)
    # nobody has it open any more
    again = image(volume)
    again.claim()
    again.discard()


def test_qemu_that_dies_is_an_error_that_says_what_is_half_written(vault: Vault, tmp_path: Path, spool: Path) -> None:
    volume = made(tmp_path / "volume")
    target = image(volume, fresh=False)

    def kill() -> None:
        inside = target._image
        assert inside is not None
        if inside._process.poll() is None:
            os.kill(inside._process.pid, signal.SIGKILL)
            inside._process.wait()

    with pytest.raises(DeviceHalfWritten, match="the volume could not be written"):
        restore_disk(vault.source(store=Meddling(vault.store, kill)), target, context(spool))
