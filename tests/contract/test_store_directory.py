"""What can befall a vault in a directory: links and pipes in our places, full or read-only disks, killed writers."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raksha.errors import (
    BadName,
    BadVaultUrl,
    ObjectCorrupt,
    ObjectExists,
    ObjectMissing,
    VaultAccessDenied,
    VaultError,
    VaultForeign,
    VaultFull,
    VaultNotFound,
)
from raksha.vault import partlist
from raksha.vault.directory import DirectoryStore
from raksha.vault.store import BACKUPS, SEGMENTS, Part

NAME = "backupjobs/job/run.json"


def open_at(root: Path) -> DirectoryStore:
    return DirectoryStore(f"file://{root}", root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "vault"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    found = open_at(root)
    found.prepare()
    return found


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


# -- making a vault ---------------------------------------------------------------------------------


def test_objects_are_files_of_the_same_name_and_private(store: DirectoryStore, root: Path) -> None:
    store.put(NAME, b"x")
    assert (root / NAME).read_bytes() == b"x"
    assert files(root) == [NAME]
    assert (root / NAME).stat().st_mode & 0o777 == 0o600
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in [root, *root.rglob("*")] if path.is_dir())


def test_the_directory_above_must_exist(tmp_path: Path) -> None:
    with pytest.raises(BadVaultUrl, match=r"there is no directory .*/nowhere"):
        open_at(tmp_path / "nowhere" / "vault").prepare()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_no_vault(root: Path) -> None:
    for call in (lambda s: s.get(NAME), lambda s: s.head(NAME), lambda s: list(s.names(BACKUPS))):
        with pytest.raises(VaultNotFound):
            call(open_at(root))
    assert not root.exists()


def test_a_directory_with_other_things_is_refused(root: Path) -> None:
    root.mkdir()
    (root / "letter.txt").write_text("dear")
    with pytest.raises(VaultForeign, match=r"letter\.txt"):
        open_at(root).prepare()
    assert files(root) == ["letter.txt"]


def test_an_empty_file_system_with_its_usual_folders_is_taken(root: Path) -> None:
    (root / "lost+found").mkdir(parents=True)
    (root / ".snapshot").mkdir()
    open_at(root).prepare()
    assert (root / BACKUPS).is_dir()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_container_that_is_none_is_refused(root: Path, tmp_path: Path, kind: str) -> None:
    root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        (root / SEGMENTS).write_text("")
    else:
        (root / SEGMENTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VaultForeign, match=SEGMENTS):
        open_at(root).prepare()


def test_a_root_that_is_a_file_is_refused(root: Path) -> None:
    root.write_text("x")
    with pytest.raises(VaultForeign):
        open_at(root).prepare()
    with pytest.raises(VaultForeign):
        open_at(root).get(NAME)


def test_the_root_itself_may_be_a_link(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    other = open_at(tmp_path / "link")
    other.prepare()
    other.put(NAME, b"x")
    assert store.get(NAME) == b"x"


# -- things planted in our places -------------------------------------------------------------------


def test_a_link_in_the_place_of_an_object_is_not_followed(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (root / BACKUPS / "x").symlink_to(secret)
    for call in (lambda: store.get("backupjobs/x"), lambda: store.head("backupjobs/x")):
        with pytest.raises(VaultForeign):
            call()
    assert list(store.names(BACKUPS)) == []
    with pytest.raises(ObjectExists):
        store.put("backupjobs/x", b"new", create_only=True)
    store.put("backupjobs/x", b"new")
    assert (secret.read_text(), store.get("backupjobs/x")) == ("secret", b"new")


def test_a_link_in_the_place_of_a_folder_is_not_followed(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "run.json").write_text("theirs")
    (root / BACKUPS / "job").symlink_to(outside)
    calls = [
        lambda: store.get(NAME),
        lambda: store.put(NAME, b"ours"),
        lambda: store.put_file(NAME, io.BytesIO(b"ours"), 4),
        lambda: store.delete(NAME),
    ]
    for call in calls:
        with pytest.raises(VaultForeign, match="job"):
            call()
    assert files(outside) == ["run.json"]
    assert (outside / "run.json").read_text() == "theirs"
    assert list(store.names(BACKUPS)) == []


def test_a_pipe_does_not_hold_the_reader(store: DirectoryStore, root: Path) -> None:
    os.mkfifo(root / BACKUPS / "pipe")
    with pytest.raises(VaultForeign, match="regular"):
        store.get("backupjobs/pipe")
    assert list(store.names(BACKUPS)) == []


def test_a_folder_is_no_object(store: DirectoryStore) -> None:
    store.put(NAME, b"x")
    with pytest.raises(ObjectMissing):
        store.get("backupjobs/job")
    with pytest.raises(VaultForeign):
        store.put("backupjobs/job", b"x")
    with pytest.raises(VaultForeign):
        store.put(f"{NAME}/deeper", b"x")


def test_names_that_no_vault_has_are_left_out(store: DirectoryStore, root: Path) -> None:
    store.put(NAME, b"x")
    for name in [".hidden", "a\nb"]:
        (root / BACKUPS / name).write_text("")
    (Path(os.fsdecode(os.fsencode(root) + b"/backupjobs/\xff"))).write_text("")
    (root / BACKUPS / ".git").mkdir()
    (root / BACKUPS / ".git" / "config").write_text("")
    assert list(store.names(BACKUPS)) == [NAME]


# -- part lists -------------------------------------------------------------------------------------


def test_a_manifest_is_a_list_that_people_can_read(store: DirectoryStore, root: Path) -> None:
    store.put("backupjobs_segments/ab/x", b"abc")
    store.put_manifest(NAME, [Part("backupjobs_segments/ab/x", 3)])
    assert (root / NAME).read_text() == (
        '{"raksha_parts": 1, "parts": [\n{"name": "backupjobs_segments/ab/x", "size": 3, "manifest": false}\n]}\n'
    )


def test_data_that_looks_like_a_part_list_is_refused(store: DirectoryStore, root: Path) -> None:
    data = partlist.to_json([Part(NAME, 1)])
    with pytest.raises(BadName, match="part list"):
        store.put(NAME, data)
    with pytest.raises(BadName, match="part list"):
        store.put_file(NAME, io.BytesIO(data), len(data))
    assert files(root) == []


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"]}",
        b'{"name": "backupjobs/x"}]}',
        b'{"name": "/etc/passwd", "size": 3, "manifest": false}]}',
        b'{"name": "backupjobs/../../etc/passwd", "size": 3, "manifest": false}]}',
        b'{"name": "backupjobs/x", "size": -3, "manifest": false}]}',
        b'{"name": "backupjobs/x", "size": true, "manifest": false}]}',
        b'{"name": "backupjobs/x", "size": "3", "manifest": false}]}',
        b'"name"]}',
        b"\xff]}",
    ],
)
def test_a_part_list_from_elsewhere_is_not_trusted(store: DirectoryStore, root: Path, rest: bytes) -> None:
    (root / BACKUPS / "Backup").write_bytes(partlist.MAGIC + rest)
    for call in (store.get, store.head, store.parts):
        with pytest.raises(ObjectCorrupt, match="backupjobs/Backup"):
            call("backupjobs/Backup")


def test_a_part_list_that_holds_itself_ends(store: DirectoryStore, root: Path) -> None:
    loop = partlist.to_json([Part("backupjobs/Backup", 3, True)])
    (root / BACKUPS / "Backup").write_bytes(loop)
    with pytest.raises(ObjectCorrupt, match="too deep"):
        store.get("backupjobs/Backup")


# -- full, read-only, not ours ----------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.system
def test_a_full_file_system_leaves_nothing_half_written(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    with mounted(folder, "size=4m"):
        store = open_at(folder / "vault")
        store.prepare()
        store.put(NAME, b"first")
        for call in (
            lambda: store.put("backupjobs/big", bytes(8 << 20)),
            lambda: store.put_file("backupjobs/big", io.BytesIO(bytes(8 << 20)), 8 << 20),
            lambda: store.put(NAME, bytes(8 << 20)),
        ):
            with pytest.raises(VaultFull, match="ENOSPC"):
                call()
        assert files(folder / "vault") == [NAME]
        assert store.get(NAME) == b"first"


@pytest.mark.system
def test_a_read_only_file_system_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    with mounted(folder, "size=4m"):
        store = open_at(folder / "vault")
        store.prepare()
        store.put(NAME, b"first")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        reader = open_at(folder / "vault")
        assert (reader.get(NAME), list(reader.names(BACKUPS))) == (b"first", [NAME])
        other = open_at(folder / "other")
        for call in (lambda: reader.put(NAME, b"x"), lambda: reader.delete(NAME), other.prepare):
            with pytest.raises(VaultAccessDenied, match="EROFS"):
                call()


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere; nobody may not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_of_somebody_else() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "vault"
        store = open_at(root)
        store.prepare()
        store.put(NAME, b"x")
        for path in [Path(folder), root, *root.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            with unprivileged():
                assert store.get(NAME) == b"x"
                with pytest.raises(VaultAccessDenied, match="EACCES"):
                    store.put(NAME, b"y")
                with pytest.raises(VaultAccessDenied, match="EACCES"):
                    store.delete(NAME)
        finally:
            for path in [Path(folder), *(each for each in root.rglob("*") if each.is_dir()), root]:
                path.chmod(0o700)


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EDQUOT, VaultFull), (errno.EFBIG, VaultFull), (errno.EIO, VaultError)]
)
def test_what_a_write_may_be_told(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[VaultError]
) -> None:
    """Quotas and dying disks cannot be had here, so the system call is replaced."""

    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(error, match=errno.errorcode[number]):
        store.put(NAME, b"x")
    monkeypatch.undo()
    assert files(root) == []


def test_an_object_that_the_disk_cannot_read_is_named(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(NAME, b"x" * 100)
    real = os.pread

    def fail(fd: int, count: int, offset: int) -> bytes:
        if count == 100:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(ObjectCorrupt, match=rf"{NAME}.*EIO"):
        store.get(NAME)


# -- durability -------------------------------------------------------------------------------------


@pytest.mark.parametrize("create_only", [False, True])
def test_data_is_synced_before_its_name_and_the_name_before_the_answer(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch, create_only: bool
) -> None:
    done: list[str] = []

    def spy(call: str, describe: Any) -> None:
        real = getattr(os, call)

        def wrapper(*args: Any, **keywords: Any) -> Any:
            result = real(*args, **keywords)
            done.append(f"{call} {describe(*args)}")
            return result

        monkeypatch.setattr(os, call, wrapper)

    def path(fd: int) -> str:
        return str(Path(f"/proc/self/fd/{fd}").readlink()).removeprefix(f"{root}/").partition(".raksha-")[0]

    spy("fsync", path)
    spy("fdatasync", path)
    spy("mkdir", lambda name, *_: name)
    spy("rename", lambda _, target: target)
    spy("link", lambda _, target: target)
    store.put("backupjobs/job/run/x", b"x", create_only=create_only)
    assert done == [
        "mkdir job",
        "fsync backupjobs",
        "mkdir run",
        "fsync backupjobs/job",
        "fdatasync backupjobs/job/run/",
        "link x" if create_only else "rename x",
        "fsync backupjobs/job/run",
    ]


WRITER = """
import sys, threading
from pathlib import Path
from raksha.vault.directory import DirectoryStore
store = DirectoryStore("file://v", Path(sys.argv[1]))
store.prepare()
def work(worker):
    for number in range(100000):
        content = bytes([number % 256]) * 3000000
        store.put(f"backupjobs_segments/{worker}/{number}", content, create_only=worker % 2 == 0)
for worker in range(4):
    threading.Thread(target=work, args=(worker,)).start()
print("started", flush=True)
"""


def test_a_killed_writer_leaves_whole_objects_only(root: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, root], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"started\n"
        time.sleep(0.4)
        writer.send_signal(signal.SIGKILL)
    store = open_at(root)
    names = list(store.names(SEGMENTS))
    assert names
    for name in names:
        number = int(name.rpartition("/")[2])
        assert store.get(name) == bytes([number % 256]) * 3000000


def test_what_a_killed_writer_left_is_not_seen_and_goes_in_time(store: DirectoryStore, root: Path) -> None:
    store.put(NAME, b"x")
    old, new = (root / BACKUPS / "job" / f".raksha-{age}" for age in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    # a reader changes nothing
    assert list(open_at(root).names(BACKUPS)) == [NAME]
    assert old.exists()
    assert list(store.names(BACKUPS)) == [NAME]
    assert (old.exists(), new.exists()) == (False, True)


# -- folders ----------------------------------------------------------------------------------------


def test_a_pruned_run_leaves_no_folders(store: DirectoryStore, root: Path) -> None:
    for name in ["job/run1/vm/vda/Backup", "job/run1/run.json", "job/run2/run.json"]:
        store.put(f"{BACKUPS}/{name}", b"x")
    store.put("backupjobs_segments/ab/x", b"x")
    store.delete("backupjobs/job/run1/vm/vda/Backup")
    assert not (root / BACKUPS / "job/run1/vm").exists()
    store.delete("backupjobs/job/run1/run.json")
    assert [path.name for path in (root / BACKUPS / "job").iterdir()] == ["run2"]
    store.delete("backupjobs/job/run2/run.json")
    store.delete("backupjobs_segments/ab/x")
    assert list((root / BACKUPS).iterdir()) == []
    # one of 256 that will be wanted again
    assert (root / SEGMENTS / "ab").is_dir()
    store.put("backupjobs/job/run1/run.json", b"again")
    assert store.get("backupjobs/job/run1/run.json") == b"again"


def test_folders_of_a_writer_that_was_killed_go_in_time(store: DirectoryStore, root: Path) -> None:
    """It had made them, and died before its object had a name."""
    store.put(NAME, b"x")
    job = root / BACKUPS / "job"
    (job / "old/vm/vda").mkdir(parents=True)
    (job / "old/vm/.raksha-old").write_bytes(b"half")
    (root / SEGMENTS / "ab").mkdir()
    for path in root.rglob("*"):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    (job / "new/vm").mkdir(parents=True)
    list(open_at(root).names(BACKUPS))
    assert (job / "old/vm/vda").exists(), "a reader changes nothing"
    for container in (BACKUPS, SEGMENTS):
        list(store.names(container))
    assert (job / "new/vm").exists() and not (job / "old").exists()
    assert (root / SEGMENTS / "ab").exists()
    store.put("backupjobs/job/old/vm/Backup", b"again")
    assert set(store.names(BACKUPS)) == {NAME, "backupjobs/job/old/vm/Backup"}


def test_a_folder_that_somebody_else_removed_is_made_again(store: DirectoryStore, root: Path) -> None:
    store.put(NAME, b"x")
    (root / NAME).unlink()
    (root / NAME).parent.rmdir()
    with pytest.raises(VaultError):
        store.put(NAME, b"y")
    store.put(NAME, b"y")
    assert store.get(NAME) == b"y"
