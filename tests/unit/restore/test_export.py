"""Exports: plain qcow2 files that anybody's qemu-img opens, or nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from raksha.errors import DiskLost, Interrupted, TargetExists, TargetUnusable
from raksha.restore.export import ExportDisk, Naming, export
from raksha.types import Geometry
from tests.unit.restore.vault import CLUSTER, CountingStore, Vault, context, flip, pattern

SIZE = 800 * CLUSTER


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def content(image: Path, tmp_path: Path) -> bytes:
    qemu_img("check", "-f", "qcow2", image)
    raw = tmp_path / "converted"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    return raw.read_bytes()


def made(spool: Path, disk: str = "vda", vm: str = "vm-1", first: int = 0) -> Vault:
    vault = Vault(spool, Geometry(SIZE, CLUSTER, 8), disk=disk, vm=vm)
    vault.add({number: pattern(first + number) for number in (*range(3, 300), 799)})
    vault.add({5: None, 100: pattern(first + 1), 400: pattern(first + 2), 799: None})
    vault.add({6: pattern(first + 3), 5: pattern(first + 4), 798: pattern(first + 5)})
    return vault


def disk(vault: Vault, count: int | None = None, **source: object) -> ExportDisk:
    return ExportDisk(vault.source(count, **source), [each.key for each in vault.made[:count]])


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("naming", Naming)
def test_each_file_is_its_restore_point(spool: Path, out: Path, tmp_path: Path, naming: Naming) -> None:
    vault = made(spool)
    found = export([disk(vault)], out / "there", context(spool), naming=naming)

    assert [each.run for each in found] == ["run-0", "run-1", "run-2"]
    # it holds wherever it is moved to
    moved = tmp_path / "moved"
    shutil.move(out / "there", moved)
    for each, model in zip(found, vault.models, strict=True):
        path = moved / each.path.relative_to(out / "there")
        assert content(path, tmp_path) == model
        assert path.stat().st_size == each.size
        info = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", path))
        assert info.get("backing-filename") == each.backing
        assert info.get("backing-filename-format") == (each.backing and "qcow2")
        assert not (each.backing or "").startswith("/")
    expected = {
        Naming.FLAT: [f"mail-vda-{at:03d}-run-{at}.qcow2" for at in range(3)],
        Naming.TREE: [f"run-{at}/vm-1/vda/Backup" for at in range(3)],
    }
    assert sorted(str(path.relative_to(moved)) for path in moved.rglob("*") if path.is_file()) == expected[naming]
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("count", [1, 3])
def test_flattened_is_one_file_that_stands_alone(spool: Path, out: Path, tmp_path: Path, count: int) -> None:
    vault = made(spool)
    [found] = export([disk(vault, count)], out / "there", context(spool), flatten=True)

    assert found.backing is None
    assert list((out / "there").iterdir()) == [found.path]
    assert content(found.path, tmp_path) == vault.models[count - 1]


def test_each_segment_is_fetched_once_and_none_that_is_hidden(spool: Path, out: Path) -> None:
    vault = Vault(spool, Geometry(SIZE, CLUSTER, 8))
    vault.add({number: pattern(number) for number in range(64)})
    vault.add({number: pattern(1000 + number) for number in range(32)})
    store = CountingStore(vault.store)

    export([disk(vault, store=store)], out / "flat", context(spool), flatten=True)

    hidden = {row.name for row in vault.made[0].rows[:4]}
    segments = {name: count for name, count in store.gets.items() if name.startswith("backupjobs_segments/")}
    assert len(segments) == 8
    assert set(segments.values()) == {1}
    assert not hidden & set(segments)


def test_two_points_of_one_disk_share_their_files(spool: Path, out: Path, tmp_path: Path) -> None:
    vault = made(spool)
    found = export([disk(vault, 2), disk(vault)], out / "there", context(spool))
    assert [each.run for each in found] == ["run-0", "run-1", "run-2"]
    assert content(found[1].path, tmp_path) == vault.models[1]


def test_vms_with_names_that_look_alike(spool: Path, out: Path, tmp_path: Path) -> None:
    one, two = made(spool, vm="vm-1"), made(spool, vm="vm-2", first=5000)
    found = export([disk(one, 1), disk(two, 1)], out / "there", context(spool))
    assert [content(each.path, tmp_path) for each in found] == [one.models[0], two.models[0]]


def test_an_empty_directory_will_do(spool: Path, out: Path, tmp_path: Path) -> None:
    vault = made(spool)
    [found] = export([disk(vault, 1)], out, context(spool))
    assert content(found.path, tmp_path) == vault.models[0]


def test_a_directory_with_something_in_it_is_left_alone(spool: Path, out: Path) -> None:
    (out / "letter").write_text("dear all")
    with pytest.raises(TargetExists):
        export([disk(made(spool))], out, context(spool))
    assert [each.name for each in out.iterdir()] == ["letter"]


def test_a_directory_that_fills_meanwhile_is_left_alone(spool: Path, out: Path) -> None:
    vault = made(spool)
    store = CountingStore(vault.store)
    source = disk(vault, store=store)
    store.before_get = lambda name: (out / "there").mkdir(exist_ok=True) or (out / "there" / "letter").write_text("x")
    with pytest.raises(TargetExists):
        export([source], out / "there", context(spool))
    assert [str(each.relative_to(out)) for each in sorted(out.rglob("*"))] == ["there", "there/letter"]


def test_a_place_that_is_not_there(spool: Path, out: Path) -> None:
    with pytest.raises(TargetUnusable):
        export([disk(made(spool))], out / "no" / "there", context(spool))


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("fault", ["missing", "flipped", "longer", "shorter"])
def test_damage_names_what_is_lost_and_leaves_nothing(spool: Path, out: Path, flatten: bool, fault: str) -> None:
    vault = made(spool)
    name = vault.made[0].rows[20].name
    whole = vault.store.get(name)
    vault.store.delete(name)
    if fault != "missing":
        vault.store.put(name, {"flipped": whole, "longer": whole + b"\0", "shorter": whole[:-1]}[fault])
    if fault == "flipped":
        flip(vault.store, name, len(whole) // 2)
    with pytest.raises(DiskLost) as caught:
        export([disk(vault)], out / "there", context(spool), flatten=flatten)
    assert name in str(caught.value)
    assert list(out.iterdir()) == []


def test_a_cancel_leaves_nothing(spool: Path, out: Path) -> None:
    vault = made(spool)
    store = CountingStore(vault.store)
    source = disk(vault, store=store)
    cancel = threading.Event()
    store.before_get = lambda name: cancel.set() if sum(store.gets.values()) == 20 else None
    with pytest.raises(Interrupted):
        export([source], out / "there", context(spool, cancel=cancel))
    assert list(out.iterdir()) == []
