"""Writing past the page cache, on whatever file system the tests run, and on tmpfs, which may have no such thing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha import direct
from raksha.restore.files import PartFile, write_directly
from raksha.vault.directory import DirectoryStore
from raksha.vault.segment import Codec

DATA = os.urandom(direct.WORTH + 3 * direct.BLOCK)


@pytest.fixture(params=["disk", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    made = Path(f"/dev/shm/raksha-test-{os.getpid()}")
    made.mkdir()
    yield made
    for each in sorted(made.rglob("*"), reverse=True):
        each.rmdir() if each.is_dir() else each.unlink()
    made.rmdir()


@pytest.mark.parametrize("more", [0, 1, 512, direct.BLOCK - 1])
def test_an_object_of_any_size(folder: Path, more: int) -> None:
    data = direct.gathered([DATA, DATA[:more]])
    store = DirectoryStore(f"file://{folder}", folder)
    store.prepare()
    store.put("backupjobs_segments/aa/x", data)
    store.put("backupjobs_segments/aa/y", DATA[:more] + DATA)
    assert store.get("backupjobs_segments/aa/x") == bytes(data)
    assert store.get("backupjobs_segments/aa/y") == DATA[:more] + DATA
    assert sorted(path.name for path in (folder / "backupjobs_segments/aa").iterdir()) == ["x", "y"]


@pytest.mark.parametrize("offset", [0, direct.BLOCK, 512, 7 * direct.BLOCK + 1])
@pytest.mark.parametrize("less", [0, 1, direct.BLOCK, len(DATA) - 10])
def test_a_restored_file(folder: Path, offset: int, less: int) -> None:
    data = DATA[: len(DATA) - less]
    part = PartFile(folder / "disk")
    part.write([b"start"], 0)
    part.write([data[:4096], memoryview(data)[4096:]], offset + direct.BLOCK)
    part.write([b"end"], offset + direct.BLOCK + len(data))
    part.publish()
    part.settle()
    blank = bytes(offset + direct.BLOCK - 5)
    assert (folder / "disk").read_bytes() == b"start" + blank + data + b"end"


def test_memory_is_used_again_and_its_end_is_blank() -> None:
    codec = Codec()
    first = codec.compress([os.urandom(65536)])[1]
    lengths, second = codec.compress([bytes(65536)])
    assert first[: lengths[0]] == second[: lengths[0]], "the same memory"
    assert second[lengths[0] :] == bytes(len(second) - lengths[0])


def test_what_linux_refuses_is_left_to_the_caller_and_other_errors_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(fd: int, data: memoryview, offset: int) -> int:
        if offset == 0 and code == errno.EINVAL:
            return direct.BLOCK
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", refused)
    code = errno.EINVAL
    assert direct.write_blocks(3, memoryview(DATA), 0) == direct.BLOCK
    assert not write_directly(3, [DATA], 0)
    code = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        direct.write_blocks(3, memoryview(DATA), 0)
