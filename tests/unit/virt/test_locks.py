"""Who has an image open is told by QEMU's locks, as another host would see them."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from raksha.virt.libvirt.locks import is_open, is_written

#: F_OFD_SETLK, and the bytes that QEMU locks (block/file-posix.c)
SET, CONSISTENT_READ, WRITE = 37, 100, 101


@pytest.mark.parametrize(
    ("locked", "written", "opened"), [([], False, False), ([CONSISTENT_READ], False, True), ([WRITE], True, True)]
)
def test_locks(tmp_path: Path, locked: list[int], written: bool, opened: bool) -> None:
    path = tmp_path / "image"
    path.touch()
    descriptor = os.open(path, os.O_RDWR)
    for byte in locked:
        fcntl.fcntl(descriptor, SET, struct.pack("@hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    assert (is_written(str(path)), is_open(str(path))) == (written, opened)
    os.close(descriptor)
    assert (is_written(str(path)), is_open(str(path))) == (False, False)
