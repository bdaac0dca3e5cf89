"""What a killed restore left is removed by the next one; anything else that looks like it is not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from raksha.errors import TargetExists
from raksha.restore.files import PartFile
from raksha.restore.leftovers import clear

#: makes a file and stands still, as far as it is told to go
MAKER = """
import sys, time
from pathlib import Path
from raksha.restore.files import PartFile
path, vm, steps = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
file = PartFile(path, vm)
file.write([b"content"], 0)
for step in steps:
    getattr(file, step)()
print("here", flush=True)
time.sleep(600)
"""


def nobody(vm: str) -> bool:
    """No VM is defined."""
    return False


def somebody(vm: str) -> bool:
    return vm == "the-vm"


class Maker:
    def __init__(self, path: Path, *steps: str, vm: str = "") -> None:
        command = [sys.executable, "-c", textwrap.dedent(MAKER), path, vm, *steps]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None and self._process.stdout.readline() == b"here\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def made(path: Path, *steps: str, vm: str = "") -> None:
    """What is there when a restore was killed after these steps."""
    Maker(path, *steps, vm=vm).kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("vm", ["", "the-vm"])
@pytest.mark.parametrize("steps", [(), ("publish",)])
def test_a_killed_restore_leaves_the_way_free(tmp_path: Path, steps: tuple[str, ...], vm: str) -> None:
    path = tmp_path / "disk.raw"
    made(path, *steps, vm=vm)
    assert len(names(tmp_path)) == 1
    clear(path, nobody)
    assert names(tmp_path) == []
    again = PartFile(path)
    again.publish()
    again.settle()
    assert names(tmp_path) == ["disk.raw"]


@pytest.mark.parametrize("steps", [(), ("publish",)])
def test_a_restore_that_runs_is_left_alone(tmp_path: Path, steps: tuple[str, ...]) -> None:
    path = tmp_path / "disk.raw"
    maker = Maker(path, *steps)
    before = names(tmp_path)
    try:
        clear(path, nobody)
        assert names(tmp_path) == before
    finally:
        maker.kill()
    clear(path, nobody)
    assert names(tmp_path) == []


def test_a_file_of_a_restore_that_was_done_stays(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    made(path, "publish", "settle")
    clear(path, nobody)
    assert path.read_bytes() == b"content"
    with pytest.raises(TargetExists):
        PartFile(path)


def test_a_disk_of_a_vm_that_is_there_stays(tmp_path: Path) -> None:
    """Killed between the definition and the end."""
    path = tmp_path / "disk.raw"
    made(path, "publish", vm="the-vm")
    clear(path, somebody)
    assert path.read_bytes() == b"content"


def test_a_file_that_was_written_to_since_stays(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    made(path, "publish")
    with path.open("r+b") as file:
        file.write(b"C")
    clear(path, nobody)
    assert path.read_bytes() == b"Content"


def test_other_names_and_other_files_stay(tmp_path: Path) -> None:
    made(tmp_path / "other.raw", "publish")
    (tmp_path / "mine.raw").write_bytes(b"mine")
    (tmp_path / "link.raw").symlink_to(tmp_path / "mine.raw")
    os.mkfifo(tmp_path / ".raksha-pipe.part")
    for name in ("mine.raw", "link.raw"):
        clear(tmp_path / name, nobody)
    assert names(tmp_path) == [".raksha-pipe.part", "link.raw", "mine.raw", "other.raw"]


def test_an_export_that_was_killed_leaves_no_directory(tmp_path: Path) -> None:
    (tmp_path / ".raksha-0123.part" / "folder").mkdir(parents=True)
    clear(tmp_path / "export", nobody)
    assert names(tmp_path) == []
