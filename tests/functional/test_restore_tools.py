"""Restores held against other people's tools: loop devices with stale content, QEMU's locks, qemu-img."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha.errors import DeviceHalfWritten, DiskLost, Interrupted, TargetUnusable
from raksha.restore.context import Context
from raksha.restore.device import BlockDevice
from raksha.restore.disk import restore_disk
from raksha.types import Geometry
from tests.unit.restore.vault import CLUSTER, CountingStore, Vault, context, pattern

SIZE = 4 * 1024 * 1024


@contextlib.contextmanager
def loop_device(file: Path, *options: str) -> Iterator[Path]:
    """A block device over a file."""
    made = subprocess.run(["losetup", "--find", "--show", *options, file], check=True, capture_output=True, text=True)
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A file full of what stood there before, a bit larger than the disk."""
    file = tmp_path / "device"
    file.write_bytes(b"stale and secret" * ((SIZE + 64 * 1024) // 16))
    return file


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    vault = Vault(tmp_path, Geometry(SIZE - 512, CLUSTER, 8))
    vault.add({number: pattern(number) for number in (*range(3, 300), 1023)})
    vault.add({5: None, 100: pattern(1), 400: pattern(2)})
    return vault


@pytest.mark.system
def test_a_device_reads_as_the_disk_and_zero_to_its_end(vault: Vault, stale: Path, tmp_path: Path) -> None:
    with loop_device(stale) as device:
        restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
        found = device.read_bytes()
    assert found[: SIZE - 512] == vault.models[-1]
    assert not any(found[SIZE - 512 :])
    assert len(found) == SIZE + 64 * 1024
    assert stale.read_bytes() == found


@pytest.mark.system
def test_a_device_that_cannot_zero_is_written_with_zeroes(
    vault: Vault, stale: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        import ctypes
        import errno

        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr("raksha.restore.device._libc", type("Libc", (), {"fallocate": staticmethod(refuse)}))
    with loop_device(stale) as device:
        restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
        assert device.read_bytes() == vault.models[-1].ljust(SIZE + 64 * 1024, b"\0")


@pytest.mark.system
def test_a_device_with_large_sectors(vault: Vault, stale: Path, tmp_path: Path) -> None:
    with loop_device(stale, "--sector-size", "4096") as device:
        restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
        assert device.read_bytes() == vault.models[-1].ljust(SIZE + 64 * 1024, b"\0")


@pytest.mark.system
def test_a_device_that_is_too_small_is_left_alone(vault: Vault, tmp_path: Path) -> None:
    file = tmp_path / "small"
    file.write_bytes(b"x" * (SIZE - 4096))
    with loop_device(file) as device, pytest.raises(TargetUnusable, match=f"it has {SIZE - 4096} bytes"):
        restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
    assert file.read_bytes() == b"x" * (SIZE - 4096)


@pytest.mark.system
def test_a_mounted_device_is_left_alone(vault: Vault, tmp_path: Path) -> None:
    file, there = tmp_path / "file", tmp_path / "there"
    there.mkdir()
    with file.open("wb") as made:
        made.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", file], check=True)
    with loop_device(file) as device:
        subprocess.run(["mount", device, there], check=True)
        try:
            (there / "letter").write_text("dear all")
            with pytest.raises(TargetUnusable, match="in use"):
                restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
            assert (there / "letter").read_text() == "dear all"
        finally:
            subprocess.run(["umount", there], check=True)


@pytest.mark.system
def test_a_device_that_qemu_has_open_is_left_alone(vault: Vault, stale: Path, tmp_path: Path) -> None:
    before = stale.read_bytes()
    socket = tmp_path / "nbd"
    with loop_device(stale) as device:
        qemu = subprocess.Popen(["qemu-nbd", "--persistent", "-f", "raw", "-k", socket, device])
        try:
            while not socket.exists():
                assert qemu.poll() is None
                time.sleep(0.01)
            with pytest.raises(TargetUnusable, match="in use"):
                restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
        finally:
            qemu.send_signal(signal.SIGTERM)
            qemu.wait()
        assert device.read_bytes() == before


def test_what_is_no_device_is_left_alone(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(TargetUnusable, match="no block device"):
        restore_disk(vault.source(), BlockDevice(tmp_path / "file"), context(tmp_path))
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.system
@pytest.mark.parametrize("fault", ["cancel", "missing"])
def test_a_half_written_device_is_called_that(vault: Vault, stale: Path, tmp_path: Path, fault: str) -> None:
    store = CountingStore(vault.store)
    source = vault.source(store=store)
    how = Context(spool_dir=tmp_path, workers=1)

    def break_at_the_tenth(name: str) -> None:
        if sum(store.gets.values()) == 10:
            vault.store.delete(name) if fault == "missing" else how.cancel.set()

    store.before_get = break_at_the_tenth
    with loop_device(stale) as device:
        with pytest.raises(DeviceHalfWritten) as caught:
            restore_disk(source, BlockDevice(device), how)
        assert caught.value.fields["target"] == str(device)
        assert isinstance(caught.value.__cause__, Interrupted if fault == "cancel" else DiskLost)
        # it was let go
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))


@pytest.mark.system
def test_damage_seen_before_a_device_is_touched_is_told_as_it_is(vault: Vault, stale: Path, tmp_path: Path) -> None:
    before = stale.read_bytes()
    source = vault.source()
    vault.store.delete(vault.made[0].map_name)
    source.readers[0]._source._blocks.clear()
    with loop_device(stale) as device, pytest.raises(DiskLost):
        restore_disk(source, BlockDevice(device), context(tmp_path))
    assert stale.read_bytes() == before
