"""Restored files: exact, sparse, whole or absent."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raksha.errors import (
    DiskLost,
    Interrupted,
    NoSpaceForRestore,
    TargetExists,
    TargetFailed,
    TargetUnusable,
)
from raksha.progress import Progress
from raksha.restore import files
from raksha.restore.disk import DiskJob, restore_disk, restore_disks
from raksha.restore.plan import Plan
from raksha.restore.targets import Qcow2File, RawFile
from raksha.types import Geometry
from tests.unit.restore.vault import CLUSTER, CountingStore, Vault, context, flip, pattern, replace

KINDS = {"raw": RawFile, "qcow2": Qcow2File}


def qemu_img(*arguments: object) -> None:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def names_in(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    made = tmp_path / "spool"
    made.mkdir()
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


@pytest.fixture
def vault(spool: Path) -> Vault:
    """A disk of 3 MiB and a bit, at three points."""
    vault = Vault(spool, Geometry(800 * CLUSTER - 1000, CLUSTER, 8))
    vault.add({number: pattern(number) for number in (*range(3, 300), 799)})
    vault.add({5: None, 100: pattern(1), 400: pattern(2), 799: None})
    vault.add({6: pattern(3), 5: pattern(4), 798: pattern(5)})
    return vault


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_raw_is_the_disk_to_the_byte(vault: Vault, out: Path, spool: Path, copies: int) -> None:
    result = restore_disk(vault.source(copies), RawFile(out / "disk"), context(spool))

    assert (out / "disk").read_bytes() == vault.models[copies - 1]
    assert (out / "disk").stat().st_mode & 0o777 == 0o600
    assert result.size == 800 * CLUSTER - 1000
    assert names_in(out) == ["disk"]


def test_raw_keeps_holes(spool: Path, out: Path) -> None:
    vault = Vault(spool, Geometry(1 << 40, CLUSTER, 8))
    vault.add({0: pattern(1), (1 << 28) - 1: pattern(2)})

    restore_disk(vault.source(), RawFile(out / "disk"), context(spool))

    found = (out / "disk").stat()
    assert found.st_size == 1 << 40
    assert found.st_blocks * 512 <= 64 * 1024


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_qcow2_is_sound_and_the_disk(vault: Vault, out: Path, spool: Path, copies: int) -> None:
    restore_disk(vault.source(copies), Qcow2File(out / "disk"), context(spool))

    # qcow2 counts in sectors
    (out / "model").write_bytes(vault.models[copies - 1] + bytes(-len(vault.models[0]) % 512))
    qemu_img("check", "-f", "qcow2", out / "disk")
    qemu_img("compare", "-f", "qcow2", "-F", "raw", out / "disk", out / "model")


disks = st.lists(
    st.dictionaries(st.integers(0, 599), st.one_of(st.none(), st.integers(1, 30)), max_size=80), min_size=1, max_size=3
)


@settings(deadline=None, max_examples=25)
@given(layers=disks, short=st.integers(0, CLUSTER - 1))
def test_any_chain_restores_to_both_formats(
    tmp_path_factory: pytest.TempPathFactory, layers: list[dict[int, int | None]], short: int
) -> None:
    tmp = tmp_path_factory.mktemp("any")
    vault = Vault(tmp, Geometry(600 * CLUSTER - short, CLUSTER, 5))
    for layer in layers:
        vault.add({at: None if value is None else pattern(value) for at, value in layer.items()})

    restore_disk(vault.source(), RawFile(tmp / "raw"), context(tmp, workers=2))
    restore_disk(vault.source(), Qcow2File(tmp / "qcow2"), context(tmp, workers=2))

    assert (tmp / "raw").read_bytes() == vault.models[-1]
    qemu_img("check", "-f", "qcow2", tmp / "qcow2")
    with (tmp / "raw").open("ab") as raw:
        raw.truncate(-(-len(vault.models[-1]) // 512) * 512)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", tmp / "qcow2", tmp / "raw")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, CLUSTER])
def test_tiny_disks(spool: Path, out: Path, kind: str, size: int) -> None:
    vault = Vault(spool, Geometry(size, CLUSTER, 8))
    vault.add({0: b"x".ljust(CLUSTER, b"\0")} if size else {})

    restore_disk(vault.source(), KINDS[kind](out / "disk"), context(spool))

    qemu_img("convert", "-f", kind, "-O", "raw", out / "disk", out / "back")
    assert (out / "back").read_bytes().ljust(512, b"\0") == vault.models[-1].ljust(512, b"\0")[: max(size, 512)]


# -- refusals: nothing is touched ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_there_is_not_overwritten(vault: Vault, out: Path, spool: Path, kind: str) -> None:
    (out / "disk").write_bytes(b"precious")
    with pytest.raises(TargetExists):
        restore_disk(vault.source(), KINDS[kind](out / "disk"), context(spool))
    assert (out / "disk").read_bytes() == b"precious"
    assert names_in(out) == ["disk"]


def test_a_dangling_link_is_not_followed(vault: Vault, out: Path, spool: Path) -> None:
    (out / "disk").symlink_to(out / "elsewhere")
    with pytest.raises(TargetExists):
        restore_disk(vault.source(), RawFile(out / "disk"), context(spool))
    assert names_in(out) == ["disk"]


def test_a_file_that_appears_meanwhile_is_not_overwritten(vault: Vault, out: Path, spool: Path) -> None:
    store = CountingStore(vault.store)
    source = vault.source(store=store)
    store.before_get = lambda name: (out / "disk").write_bytes(b"precious")
    with pytest.raises(TargetExists):
        restore_disk(source, RawFile(out / "disk"), context(spool))
    assert (out / "disk").read_bytes() == b"precious"
    assert names_in(out) == ["disk"]


def test_a_directory_that_is_not_there(vault: Vault, out: Path, spool: Path) -> None:
    with pytest.raises(TargetUnusable, match="there is no directory"):
        restore_disk(vault.source(), RawFile(out / "no" / "disk"), context(spool))


@pytest.mark.system
def test_too_little_space_is_seen_before_anything_is_written(spool: Path) -> None:
    # a file system of 2 MiB; the two disks need 1.2 MiB each
    small = spool / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=True)
    try:
        vault = Vault(spool, Geometry(800 * CLUSTER, CLUSTER, 8))
        vault.add({number: pattern(number) for number in range(300)})
        jobs = [DiskJob(vault.source(), RawFile(small / name)) for name in ("one", "two")]
        with pytest.raises(NoSpaceForRestore) as caught:
            restore_disks(jobs, context(spool))
        assert caught.value.fields["wanted"] >= 600 * CLUSTER
        assert names_in(small) == []
        restore_disk(vault.source(), RawFile(small / "one"), context(spool))
        assert (small / "one").read_bytes() == vault.models[-1]
    finally:
        subprocess.run(["umount", small], check=True)


# -- damage: named, and nothing is left ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["missing", "truncated", "flipped"])
def test_damage_to_any_segment_names_what_is_lost(vault: Vault, out: Path, spool: Path, kind: str, fault: str) -> None:
    source = vault.source()
    with Plan(source.pages(), source.readers, spool) as plan:
        needed = {piece.segment.name: piece.segment.lengths[0] for piece in plan.work()}
    assert len(needed) == plan.segments > 30
    for name, first_frame in list(needed.items())[:: 1 if kind == "raw" else 7]:
        whole = vault.store.get(name)
        if fault == "missing":
            vault.store.delete(name)
        elif fault == "truncated":
            replace(vault.store, name, whole[: first_frame // 2])
        else:
            data = bytearray(whole)
            for at in range(10, len(data), 50):
                data[at] ^= 0x10
            replace(vault.store, name, bytes(data))
        with pytest.raises(DiskLost) as caught:
            restore_disk(source, KINDS[kind](out / "disk"), context(spool, workers=2))
        assert name in str(caught.value)
        assert (caught.value.fields["vm"], caught.value.fields["disk"]) == ("mail", "vda")
        assert names_in(out) == []
        replace(vault.store, name, whole)
    restore_disk(source, KINDS[kind](out / "disk"), context(spool))


def test_every_flipped_bit_of_a_segment_is_noticed_or_harmless(out: Path, spool: Path) -> None:
    vault = Vault(spool, Geometry(8 * CLUSTER, CLUSTER, 8))
    vault.add({number: pattern(number) for number in range(3)})
    row = vault.made[0].rows[0]
    used = sum(row.lengths)
    noticed = 0
    for at in range(0, row.stored, 97):
        flip(vault.store, row.name, at)
        try:
            restore_disk(vault.source(), RawFile(out / "disk"), context(spool, workers=1))
        except DiskLost:
            noticed += 1
            assert names_in(out) == []
        else:
            # zstd has a few bits that change nothing; then the disk is right all the same
            assert (out / "disk").read_bytes() == vault.models[-1]
            (out / "disk").unlink()
        flip(vault.store, row.name, at)
    assert noticed > used // 97 * 0.9


@pytest.mark.parametrize("fault", ["missing", "truncated", "flipped"])
def test_a_map_damaged_after_it_was_opened(vault: Vault, out: Path, spool: Path, fault: str) -> None:
    for made in vault.made:
        source = vault.source()
        for reader in source.readers:
            reader._source._blocks.clear()  # what it holds already is no longer asked for
        whole = vault.store.get(made.map_name)
        if fault == "missing":
            vault.store.delete(made.map_name)
        elif fault == "truncated":
            replace(vault.store, made.map_name, whole[:10])
        else:
            flip(vault.store, made.map_name, 10)
        with pytest.raises(DiskLost) as caught:
            restore_disk(source, RawFile(out / "disk"), context(spool))
        assert made.map_name in str(caught.value)
        assert names_in(out) == []
        replace(vault.store, made.map_name, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancel_in_the_middle_leaves_nothing(vault: Vault, out: Path, spool: Path, kind: str) -> None:
    store = CountingStore(vault.store)
    source = vault.source(store=store)
    cancel = threading.Event()
    there: list[list[str]] = []

    def stop_at_the_tenth(name: str) -> None:
        if sum(store.gets.values()) == 10:
            there.append(names_in(out))
            cancel.set()

    store.before_get = stop_at_the_tenth
    with pytest.raises(Interrupted):
        restore_disk(source, KINDS[kind](out / "disk"), context(spool, cancel=cancel, workers=1))

    assert len(there) == 1
    assert [name for name in there[0] if not name.startswith(".raksha-")] == [] != there[0]
    assert names_in(out) == []


def test_one_lost_disk_leaves_none_of_several(vault: Vault, out: Path, spool: Path) -> None:
    other = Vault(spool, Geometry(100 * CLUSTER, CLUSTER, 8), disk="vdb")
    lost = other.add({number: pattern(number) for number in range(50)})
    other.store.delete(lost.rows[3].name)
    jobs = [DiskJob(vault.source(), RawFile(out / "vda")), DiskJob(other.source(), RawFile(out / "vdb"))]

    with pytest.raises(DiskLost, match="Disk vdb of VM mail"):
        restore_disks(jobs, context(spool))

    assert names_in(out) == []


def test_a_name_taken_at_the_end_takes_back_the_others(vault: Vault, out: Path, spool: Path) -> None:
    jobs = [DiskJob(vault.source(), RawFile(out / name)) for name in ("one", "two", "two")]
    with pytest.raises(TargetExists):
        restore_disks(jobs, context(spool))
    assert names_in(out) == []


def test_progress_adds_up(vault: Vault, out: Path, spool: Path) -> None:
    class Noting(Progress):
        def __init__(self) -> None:
            self.label, self.total, self.done, self.ended = "", 0, 0, 0

        def begin(self, label: str, total: int) -> None:
            self.label, self.total = label, total

        def advance(self, done: int, sent: int = 0) -> None:
            self.done += done

        def end(self) -> None:
            self.ended += 1

    noting = Noting()
    result = restore_disk(vault.source(), RawFile(out / "disk"), context(spool, progress=noting, workers=1))
    assert (noting.label, noting.ended) == ("mail:vda", 1)
    assert noting.total == noting.done == result.written > 0


def test_a_file_system_without_hard_links_gets_the_file_too(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)  # as FAT answers
    one, two = files.PartFile(out / "disk"), files.PartFile(out / "disk")
    one.write([b"content"], 0)
    one.publish()
    with pytest.raises(TargetExists):
        two.publish()
    two.discard()
    assert (out / "disk").read_bytes() == b"content"
    assert names_in(out) == ["disk"]


def test_a_second_name_that_is_taken_is_seen_before_the_first_disk_is_fetched(
    vault: Vault, out: Path, spool: Path
) -> None:
    (out / "two").write_bytes(b"precious")
    store = CountingStore(vault.store)
    source = vault.source(store=store)
    store.gets.clear()
    with pytest.raises(TargetExists):
        restore_disks([DiskJob(source, RawFile(out / name)) for name in ("one", "two")], context(spool))
    assert not store.gets
    assert names_in(out) == ["two"]


@pytest.mark.system
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_system_that_fills_meanwhile(spool: Path, kind: str) -> None:
    small = spool / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=True)
    try:
        vault = Vault(spool, Geometry(800 * CLUSTER, CLUSTER, 8))
        vault.add({number: pattern(number) for number in range(300)})
        store = CountingStore(vault.store)
        source = vault.source(store=store)

        def fill(name: str) -> None:
            there = os.statvfs(small)
            with (small / "other").open("ab") as other:
                other.write(bytes(there.f_bavail * there.f_frsize))

        store.before_get = fill
        with pytest.raises(TargetFailed, match="No space left"):
            restore_disk(source, KINDS[kind](small / "disk"), context(spool, workers=1))
        assert names_in(small) == ["other"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_write_that_is_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, data, at: whole(fd, [b"".join(data)[:1000]], at))
    data = [pattern(number) for number in range(600)]
    with (tmp_path / "file").open("w+b") as file:
        files.write_at(file.fileno(), data, 5)
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"".join(data)


def test_whole_segments_that_changed_places_are_noticed(spool: Path, out: Path) -> None:
    """Frames, lengths and zstd's own checksums are all right: only the keyed hash tells."""
    vault = Vault(spool, Geometry(17 * CLUSTER, CLUSTER, 8))
    vault.add({number: pattern(number) for number in range(1, 17)})
    one, two = vault.made[0].rows
    assert one.lengths == two.lengths
    first, second = vault.store.get(one.name), vault.store.get(two.name)
    replace(vault.store, one.name, second)
    replace(vault.store, two.name, first)
    with pytest.raises(DiskLost, match="does not have the hash"):
        restore_disk(vault.source(), RawFile(out / "disk"), context(spool))
    assert names_in(out) == []
