"""Thin restores: right whatever the base holds, small where it is the right one."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raksha.errors import DiskLost, DiskReadFailed, Interrupted, TargetExists, TargetUnusable
from raksha.restore.base import Base, RawBase
from raksha.restore.image_base import ImageBase
from raksha.restore.thin import restore_thin
from raksha.types import Geometry
from tests.unit.restore.vault import CLUSTER, CountingStore, Vault, context, pattern

CLUSTERS = 1300


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def same_as(image: Path, model: bytes, tmp_path: Path) -> None:
    qemu_img("check", "-f", "qcow2", image)
    (tmp_path / "model").write_bytes(model.ljust(-(-len(model) // 512) * 512, b"\0"))
    qemu_img("compare", "-f", "qcow2", "-F", "raw", image, tmp_path / "model")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


def base_content() -> bytes:
    """A golden image of 3 MiB: data, and a hole in the middle."""
    data = [pattern(number) if not 200 <= number < 400 else bytes(CLUSTER) for number in range(768)]
    return b"".join(data)


def disk_on(base: bytes, spool: Path, size: int = CLUSTERS * CLUSTER) -> Vault:
    """The disk of a VM that started from the base: a full copy, and an increment."""
    vault = Vault(spool, Geometry(size, CLUSTER, 8))
    clusters = {at: base[at * CLUSTER : (at + 1) * CLUSTER] for at in range(len(base) // CLUSTER)}
    clusters |= {at: pattern(9000 + at) for at in (5, 250, 1000)}
    vault.add({at: data for at, data in clusters.items() if any(data)})
    # written, discarded where the base has data, written back to what the base has
    vault.add({6: pattern(9999), 10: None, 1000: None, 5: pattern(5)})
    return vault


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_only_what_differs_is_written(tmp_path: Path, spool: Path, image_format: str) -> None:
    base, golden = base_content(), tmp_path / "golden"
    (tmp_path / "raw").write_bytes(base)
    qemu_img("convert", "-f", "raw", "-O", image_format, tmp_path / "raw", golden)
    vault = disk_on(base, spool)

    if image_format == "raw":
        result = restore_thin(vault.source(), tmp_path / "thin", RawBase(golden), context(spool))
    else:
        with ImageBase(golden, "qcow2") as image:
            result = restore_thin(vault.source(), tmp_path / "thin", image, context(spool))

    same_as(tmp_path / "thin", vault.models[-1], tmp_path)
    assert result.restored.written == 2 * CLUSTER
    assert result.shared == (768 - 200 - 2) * CLUSTER
    assert result.blanked == CLUSTER
    assert not result.shares_little
    assert (tmp_path / "thin").stat().st_size < 32 * CLUSTER
    assert f"backing file format: {image_format}" in qemu_img("info", "-f", "qcow2", tmp_path / "thin")


def test_only_what_differs_is_fetched(tmp_path: Path, spool: Path) -> None:
    (tmp_path / "golden").write_bytes(base_content())
    vault = disk_on(base_content(), spool)
    store = CountingStore(vault.store)
    restore_thin(vault.source(store=store), tmp_path / "thin", RawBase(tmp_path / "golden"), context(spool))
    assert sum(count for name, count in store.gets.items() if "segments/" in name) == 2


def test_a_base_with_a_backing_file_of_its_own(tmp_path: Path, spool: Path) -> None:
    base = base_content()
    (tmp_path / "raw").write_bytes(base)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", tmp_path / "golden")
    vault = disk_on(base, spool)
    with ImageBase(tmp_path / "golden", "qcow2") as image:
        result = restore_thin(vault.source(), tmp_path / "thin", image, context(spool))
    same_as(tmp_path / "thin", vault.models[-1], tmp_path)
    assert result.restored.written == 2 * CLUSTER


def test_another_base_gives_the_right_disk_and_says_that_it_helped_little(tmp_path: Path, spool: Path) -> None:
    (tmp_path / "other").write_bytes(random.Random(1).randbytes(800 * CLUSTER))
    vault = disk_on(base_content(), spool)
    result = restore_thin(vault.source(), tmp_path / "thin", RawBase(tmp_path / "other"), context(spool))
    same_as(tmp_path / "thin", vault.models[-1], tmp_path)
    assert result.shares_little
    assert result.shared == 0


cells = st.lists(st.integers(0, 3), min_size=0, max_size=700)


@settings(deadline=None, max_examples=40)
@given(
    base=cells, disk=cells, changes=st.dictionaries(st.integers(0, 600), st.one_of(st.none(), st.integers(1, 3))),
    cut=st.integers(0, 2 * CLUSTER), disk_short=st.integers(0, CLUSTER - 1),
)  # fmt: skip
def test_any_base_gives_the_right_disk(
    tmp_path_factory: pytest.TempPathFactory,
    base: list[int],
    disk: list[int],
    changes: dict[int, int | None],
    cut: int,
    disk_short: int,
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    content = b"".join(pattern(value) if value else bytes(CLUSTER) for value in base)
    content = content[: max(0, len(content) - cut)]
    (tmp_path / "base").write_bytes(content)
    vault = Vault(tmp_path, Geometry(601 * CLUSTER - disk_short, CLUSTER, 8))
    vault.add({at: pattern(value) for at, value in enumerate(disk[:601]) if value})
    vault.add({at: None if value is None else pattern(value) for at, value in changes.items()})
    if len(content) % 512:
        # qcow2 cannot stand on a part of a sector: the base reads as padded
        content = content.ljust(-(-len(content) // 512) * 512, b"\0")

    restore_thin(vault.source(), tmp_path / "thin", RawBase(tmp_path / "base"), context(tmp_path, workers=2))

    same_as(tmp_path / "thin", vault.models[-1], tmp_path)


def test_an_existing_target_and_a_base_that_is_not_there(tmp_path: Path, spool: Path) -> None:
    vault = disk_on(base_content(), spool)
    (tmp_path / "golden").write_bytes(base_content())
    (tmp_path / "thin").write_bytes(b"precious")
    with pytest.raises(TargetExists):
        restore_thin(vault.source(), tmp_path / "thin", RawBase(tmp_path / "golden"), context(spool))
    assert (tmp_path / "thin").read_bytes() == b"precious"
    with pytest.raises(DiskReadFailed):
        RawBase(tmp_path / "gone")
    with pytest.raises(TargetUnusable):
        ImageBase(tmp_path / "gone", "qcow2")
    with pytest.raises(TargetUnusable):
        ImageBase(tmp_path / "golden", "qcow2")


def test_damage_and_cancel_leave_nothing(tmp_path: Path, spool: Path) -> None:
    vault = disk_on(base_content(), spool)
    (tmp_path / "golden").write_bytes(base_content())
    before = sorted(tmp_path.iterdir())
    base: Base = RawBase(tmp_path / "golden")
    how = context(spool)
    how.cancel.set()
    with pytest.raises(Interrupted):
        restore_thin(vault.source(), tmp_path / "thin", base, how)
    needed = vault.made[1].rows[0].name
    vault.store.delete(needed)
    with pytest.raises(DiskLost, match=needed):
        restore_thin(vault.source(), tmp_path / "thin", base, context(spool))
    assert sorted(tmp_path.iterdir()) == before


def test_a_base_that_shrinks_while_it_is_read(tmp_path: Path, spool: Path) -> None:
    vault = disk_on(base_content(), spool)
    (tmp_path / "golden").write_bytes(base_content())
    base = RawBase(tmp_path / "golden")
    extents = list(base.extents())
    with (tmp_path / "golden").open("r+b") as file:
        file.truncate(1000)
    base.extents = lambda: iter(extents)
    with pytest.raises(DiskReadFailed):
        restore_thin(vault.source(), tmp_path / "thin", base, context(spool))
