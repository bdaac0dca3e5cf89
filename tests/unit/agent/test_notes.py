"""What a task has stored is remembered by the next claim of it, and by nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raksha.agent import notes
from raksha.agent.notes import StoredNotes, forget
from raksha.errors import BadName
from raksha.vault.dedupe import DedupeIndex
from raksha.vault.segment import SegmentRow

ROWS = [
    SegmentRow(digest=bytes([number]) * 32, claim="task.1", stored=512 * number, lengths=(number, 70_000, 1))
    for number in range(1, 6)
]


def noted(folder: Path, task: str = "task", vm: str = "web") -> list[SegmentRow]:
    with StoredNotes(folder, vm, task) as found:
        return list(found.rows())


def note(folder: Path, *rows: SegmentRow, task: str = "task") -> None:
    with StoredNotes(folder, "web", task) as made:
        list(made.rows())
        for row in rows:
            made.add(row)


def test_the_next_claim_knows_what_the_last_ones_stored(tmp_path: Path) -> None:
    note(tmp_path, *ROWS[:2])
    note(tmp_path, *ROWS[2:])
    assert noted(tmp_path) == ROWS
    assert noted(tmp_path, vm="db") == []
    forget(tmp_path, "web")
    forget(tmp_path, "web")
    assert noted(tmp_path) == []


def test_another_task_knows_nothing_and_begins_anew(tmp_path: Path) -> None:
    note(tmp_path, *ROWS)
    assert noted(tmp_path, task="later") == []
    note(tmp_path, ROWS[4], task="later")
    assert noted(tmp_path, task="later") == [ROWS[4]]
    assert noted(tmp_path) == []


@pytest.mark.parametrize("cut", range(1, 60))
def test_what_was_torn_is_cut_off_and_the_rest_stays(tmp_path: Path, cut: int) -> None:
    note(tmp_path, *ROWS[:3])
    path = tmp_path / "stored" / "web"
    os.truncate(path, path.stat().st_size - cut)
    left = noted(tmp_path)
    assert left == ROWS[: len(left)] and len(left) == 2
    note(tmp_path, *ROWS[3:])
    assert noted(tmp_path) == [*ROWS[:2], *ROWS[3:]]


def test_what_was_changed_is_not_believed(tmp_path: Path) -> None:
    """As a power cut may leave it."""
    note(tmp_path, *ROWS)
    path = tmp_path / "stored" / "web"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        left = noted(tmp_path)
        assert left == ROWS[: len(left)] and len(left) == at * len(ROWS) // len(whole)
    path.write_bytes(whole + bytes(100_000))
    assert noted(tmp_path) == ROWS and path.stat().st_size == len(whole)


def test_it_stays_small_and_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "LIMIT", 200)
    note(tmp_path, *ROWS)
    left = noted(tmp_path)
    assert left == ROWS[: len(left)] and left
    assert (tmp_path / "stored" / "web").stat().st_size <= 200
    with pytest.raises(BadName):
        noted(tmp_path, vm="../../etc/passwd")


def test_what_cannot_be_noted_is_no_reason_to_fail(tmp_path: Path) -> None:
    with StoredNotes(tmp_path, "web", "task") as made, Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), made._fd or -1)
        for row in ROWS:
            made.add(row)


def test_only_what_the_vault_has_is_not_stored_again(tmp_path: Path) -> None:
    note(tmp_path, *ROWS[:2])
    stored: list[SegmentRow] = []

    def store(row: SegmentRow) -> SegmentRow:
        stored.append(row)
        return row

    with StoredNotes(tmp_path, "web", "task") as made, DedupeIndex(made.add) as index:
        index.remember(made.rows())
        again = SegmentRow(digest=ROWS[1].digest, claim="task.2", stored=512, lengths=(1,))
        there = {ROWS[0].name}
        found = index.stored_once(ROWS[0].digest, lambda: store(ROWS[0]), lambda row: row.name in there)
        assert found == (ROWS[0], False)
        lost = index.stored_once(again.digest, lambda: store(again), lambda row: row.name in there)
        assert lost == (again, True)
        assert index.stored_once(again.digest, lambda: store(again), lambda row: False) == (again, False)
    assert stored == [again]
    assert noted(tmp_path) == [*ROWS[:2], again]
