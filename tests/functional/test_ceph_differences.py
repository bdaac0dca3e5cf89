"""What a real Ceph tells of the difference between two snapshots, applied to the first, gives the second."""

from __future__ import annotations

import itertools
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha.errors import CaptureFailed
from raksha.types import Extent, ExtentKind
from raksha.virt.libvirt.ceph import differences
from tests.bed.ceph import POOL, Ceph

pytestmark = [pytest.mark.bed, pytest.mark.timeout(240)]

MIB = 1024 * 1024
SIZE = 24 * MIB
#: what QEMU rounds a discard to, at least
BLOCK = 64 * 1024


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    folder = tmp_path_factory.mktemp("ceph")
    folder.chmod(0o755)
    cluster = Ceph(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def rbd(ceph: Ceph, *words: str | Path) -> None:
    subprocess.run(["rbd", "-c", ceph.conf, *words], check=True, capture_output=True, timeout=60)


def write(ceph: Ceph, image: str, commands: list[str]) -> None:
    words = [word for command in commands for word in ("-c", command)]
    where = f"rbd:{image}:conf={ceph.conf}"
    subprocess.run(["qemu-io", "-d", "unmap", "-f", "raw", *words, where], check=True, capture_output=True, timeout=60)


def content(ceph: Ceph, snapshot: str, folder: Path) -> bytes:
    file = folder / snapshot.replace("/", "-")
    rbd(ceph, "export", "--no-progress", snapshot, file)
    data = file.read_bytes()
    return data + bytes(SIZE - len(data))


def applied(data: bytes, changes: list[Extent], later: bytes) -> bytes:
    made = bytearray(data)
    for each in changes:
        made[each.start : each.end] = (
            later[each.start : each.end] if each.kind is ExtentKind.DATA else bytes(each.length)
        )
    return bytes(made)


def told(ceph: Ceph, image: str, since: str, until: str) -> list[Extent]:
    return differences(image, since, until, monitors=[("127.0.0.1", str(ceph.port))], user="admin")


def scribble(chance: random.Random) -> list[str]:
    """Writes of all kinds: data, zeroes, and discards of parts of objects and of whole ones."""
    commands = []
    for _ in range(14):
        start = chance.randrange(SIZE // BLOCK) * BLOCK
        length = min(chance.choice([1, 1, 3, 64, 90]) * BLOCK, SIZE - start)
        kind = chance.choice([f"write -q -P {chance.randrange(1, 256)}", "write -q -z", "write -q -P 0", "discard -q"])
        commands.append(f"{kind} {start} {length}")
    return [*commands, "flush"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("clone", [False, True], ids=["image", "clone"])
def test_differences_are_all_that_changed(ceph: Ceph, tmp_path: Path, seed: int, *, clone: bool) -> None:
    chance = random.Random(seed)
    image = f"{POOL}/{'clone' if clone else 'image'}-{seed}"
    if clone:
        rbd(ceph, "create", "--size", f"{SIZE}B", f"{image}-below")
        write(ceph, f"{image}-below", scribble(chance))
        rbd(ceph, "snap", "create", "--no-progress", f"{image}-below@base")
        rbd(ceph, "snap", "protect", f"{image}-below@base")
        rbd(ceph, "clone", f"{image}-below@base", image)
    else:
        rbd(ceph, "create", "--size", f"{SIZE}B", image)
    contents = []
    for snapshot in ("one", "two", "three"):
        write(ceph, image, scribble(chance))
        rbd(ceph, "snap", "create", "--no-progress", f"{image}@{snapshot}")
        contents.append(content(ceph, f"{image}@{snapshot}", tmp_path))
    write(ceph, image, scribble(chance))  # it goes on: snapshots do not
    for since, until, first, last in (("one", "two", 0, 1), ("two", "three", 1, 2), ("one", "three", 0, 2)):
        changes = told(ceph, image, since, until)
        assert all(one.end <= other.start for one, other in itertools.pairwise(changes))
        assert applied(contents[first], changes, contents[last]) == contents[last]
        # and no more than a part of it: not simply everything
        assert sum(each.length for each in changes) < SIZE or clone


def test_nothing_written_is_no_difference(ceph: Ceph) -> None:
    image = f"{POOL}/quiet"
    rbd(ceph, "create", "--size", f"{SIZE}B", image)
    write(ceph, image, ["write -q -P 1 0 8M"])
    for snapshot in ("one", "two"):
        rbd(ceph, "snap", "create", "--no-progress", f"{image}@{snapshot}")
    assert told(ceph, image, "one", "two") == []
    write(ceph, image, ["write -q -P 2 5M 64k"])
    rbd(ceph, "snap", "create", "--no-progress", f"{image}@three")
    assert told(ceph, image, "two", "three") == [Extent(5 * MIB, 65536, ExtentKind.DATA)]


def test_a_snapshot_that_is_gone_is_an_error(ceph: Ceph) -> None:
    image = f"{POOL}/gone"
    rbd(ceph, "create", "--size", f"{SIZE}B", image)
    rbd(ceph, "snap", "create", "--no-progress", f"{image}@two")
    with pytest.raises(CaptureFailed, match="rbd diff"):
        told(ceph, image, "one", "two")
