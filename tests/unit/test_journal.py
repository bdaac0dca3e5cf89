"""The journal: what was noted is there for the next process, and locks end with their holder."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raksha.errors import JournalUnusable, VaultBusy, VmBusy
from raksha.journal import Base, FileId, HostRunState, Journal, LayerState, OwnLayer

BASE = Base(FileId("/d/a.raw", 1, 2), "file", "raw", 12345)


def layer(path: str = "/d/a.raksha.qcow2", run: str = "r1", target: str = "vda", vm: str = "u1") -> OwnLayer:
    return OwnLayer(vm, target, FileId(path, 1, 77), BASE, run, "job", LayerState.PLANNED, frozenset([run]))


def test_host_id_stays(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    host = first.host_id
    first.close()
    assert len(host) == 36 and Journal(tmp_path).host_id == host
    assert Journal(tmp_path / "other").host_id != host


def test_private(tmp_path: Path) -> None:
    Journal(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o711
    assert (tmp_path / "state" / "journal.sqlite").stat().st_mode & 0o777 == 0o600


def test_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalUnusable):
        Journal(tmp_path / "file")
    (tmp_path / "journal.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(JournalUnusable):
        Journal(tmp_path)


def test_every_commit_is_synced(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_intents(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    one = journal.begin("snapshot", run="r1", vm="u1", detail={"overlays": ["/d/x"]})
    two = journal.begin("commit", vm="u1", target="vda")
    journal.begin("commit", vm="u2", target="vda")
    again = Journal(tmp_path)  # a second process
    assert [(each.id, each.operation, each.target) for each in again.open_intents("u1")] == [
        (one, "snapshot", None),
        (two, "commit", "vda"),
    ]
    assert again.open_intents("u1")[0].detail == {"overlays": ["/d/x"]}
    again.done(one, "taken")
    assert [each.id for each in journal.open_intents("u1")] == [two]
    assert len(journal.open_intents()) == 2


def test_layers(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, second = layer("/d/1", "r1"), layer("/d/2", "r2")
    for each in (first, second, layer("/d/3", "r1", "vdb"), layer("/d/4", "r1", vm="u2")):
        journal.add_layer(each)
    assert [each.file.path for each in journal.layers("u1")] == ["/d/1", "/d/2", "/d/3"]
    assert journal.layers("u1")[0] == first
    journal.set_layers(["/d/1", "/d/2"], LayerState.CHAINED)
    journal.count_from("/d/1", ["r9", "r1"])
    journal.base_left("u1", "vda", 999)
    found = {each.file.path: each for each in journal.layers("u1")}
    assert found["/d/1"].state is LayerState.CHAINED and found["/d/3"].state is LayerState.PLANNED
    assert found["/d/1"].counts_from == {"r1", "r9"} and found["/d/2"].counts_from == {"r2"}
    assert (found["/d/2"].base.modified, found["/d/3"].base.modified) == (999, 12345)
    journal.forget_layers(["/d/1"])
    assert [each.file.path for each in journal.layers("u1")] == ["/d/2", "/d/3"]
    assert journal.knows("/d/4") and not journal.knows("/d/1")


def test_an_orphan_counts_from_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_layer(layer("/d/1"))
    journal.add_layer(layer("/d/2"))
    journal.orphan_layers(["/d/1"])
    orphan, other = journal.layers("u1")
    assert (orphan.state, orphan.counts_from) == (LayerState.ORPHAN, frozenset())
    assert other.counts_from == {"r1"}


def test_one_file_is_one_layer(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_layer(layer("/d/1", "r1"))
    with pytest.raises(sqlite3.IntegrityError):
        journal.add_layer(layer("/d/1", "r2"))
    assert journal.layers("u1")[0].counts_from == {"r1"}, "nothing of the second was noted"


def test_runs(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for run in ("r1", "r2"):
        journal.run_begin(run, "vault", "job", f"{run}.1")
    journal.run_durable("r1", 7)
    journal.run_ended("r1", HostRunState.FAILED)  # too late: the vault has it
    journal.run_ended("r2", HostRunState.CANCELLED)
    assert journal.run_state("r1") is HostRunState.DURABLE
    assert journal.run_state("r2") is HostRunState.CANCELLED
    assert journal.run_state("r3") is None


def test_locks(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path), Journal(tmp_path)
    with journal.vault_lock("v1", "file:///v"), journal.vm_lock("u1", "web"):
        with pytest.raises(VaultBusy, match="file:///v"):
            other.vault_lock("v1", "file:///v")
        with pytest.raises(VmBusy, match="web"):
            other.vm_lock("u1", "web")
        other.vm_lock("u2", "db").release()
    lock = other.vm_lock("u1", "web")
    lock.release()
    lock.release()


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from raksha.journal import Journal;"
        "lock = Journal(Path(sys.argv[1])).vm_lock('u1', 'web'); print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    journal = Journal(tmp_path)
    with pytest.raises(VmBusy, match=str(holder.pid)):
        journal.vm_lock("u1", "web")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    journal.vm_lock("u1", "web").release()


def test_survives_a_kill(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from raksha.journal import Journal;"
        "Journal(Path(sys.argv[1])).begin('snapshot', vm='u1'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert [each.operation for each in Journal(tmp_path).open_intents("u1")] == ["snapshot"]


def test_many_threads(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    def work(number: int) -> None:
        for _ in range(20):
            journal.done(journal.begin("commit", vm=f"u{number}"), "merged")
        journal.begin("commit", vm=f"u{number}")

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(each.vm) for each in journal.open_intents()) == ["u0", "u1", "u2", "u3"]


def test_killed_runs_are_settled_by_what_the_vault_has(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for run, vault in (("made", "vault"), ("lost", "vault"), ("elsewhere", "other"), ("cancelled", "vault")):
        journal.run_begin(run, vault, "job", f"{run}.1")
    journal.run_ended("cancelled", HostRunState.CANCELLED)
    journal.settle_runs("vault", {"made": 7, "older": 6, "cancelled": 8})
    states = {run: journal.run_state(run) for run in ("made", "lost", "elsewhere", "cancelled")}
    assert states == {
        "made": HostRunState.DURABLE,
        "lost": HostRunState.FAILED,
        "elsewhere": HostRunState.BEGUN,
        "cancelled": HostRunState.CANCELLED,
    }
