"""States are written in one place, along the moves that the documents list."""

from __future__ import annotations

import ast
import re
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import raksha
from raksha.db import transition as module
from raksha.db.models import BackupJob, BackupJobRun, Base, Task, VmResourceBackup
from raksha.db.moves import MOVES, NOUNS, sources
from raksha.db.session import Database
from raksha.db.transition import transition, transition_all
from raksha.errors import EpochStale, RowNotFound, StateConflict, StillNeeded
from raksha.states import BackupState, JobState, RunState, TaskState
from tests.bed.databases import make_copy, make_job, make_run, make_task, make_vault

SOURCE = Path(raksha.__file__).parent
DOCUMENT = SOURCE.parent / "docs" / "database.md"


def test_a_move_with_what_goes_with_it(sqlite: Database) -> None:
    def work(session: Any) -> BackupJob:
        job = make_job(session)
        transition(session, BackupJob, job.id, JobState.SUSPENDED, state_reason={"code": "trust_broken"})
        return job

    job = sqlite.run(work)
    assert (job.state, job.state_reason) == (JobState.SUSPENDED, {"code": "trust_broken"})


def test_what_was_found_is_told(sqlite: Database) -> None:
    run = sqlite.run(lambda s: make_run(s, make_job(s)))
    with pytest.raises(StateConflict) as refused:
        sqlite.run(lambda s: transition(s, BackupJobRun, run.id, RunState.DELETING))
    wanted = "available, cancelled, degraded, error"
    said = f"The backup job run {run.id} is queued; only from {wanted} can it become deleting."
    assert str(refused.value) == said
    with pytest.raises(RowNotFound, match="There is no task nothing"):
        sqlite.run(lambda s: transition(s, Task, "nothing", TaskState.DONE))


def test_an_older_epoch_is_told_so_whatever_the_state(sqlite: Database) -> None:
    task = sqlite.run(make_task)
    sqlite.run(lambda s: transition(s, Task, task.id, TaskState.CLAIMED, epoch=0, new_epoch=True))
    for to in (TaskState.DONE, TaskState.READY):
        with pytest.raises(EpochStale, match="its epoch is 1, not 0"):
            sqlite.run(lambda s, to=to: transition(s, Task, task.id, to, epoch=0))
    with sqlite.reading() as session:
        assert session.get(Task, task.id).epoch == 1


def test_more_conditions(sqlite: Database) -> None:
    task = sqlite.run(make_task)
    with pytest.raises(StillNeeded, match="is ready, and cannot be had: it is urgent"):
        sqlite.run(lambda s: transition(s, Task, task.id, TaskState.CLAIMED, where={"it is urgent": Task.priority > 3}))


def test_moves_that_are_not_legal_are_errors_of_the_program(sqlite: Database) -> None:
    run = sqlite.run(lambda s: make_run(s, make_job(s)))
    with pytest.raises(ValueError, match="backup job run: no legal move from error to queued"):
        sqlite.run(lambda s: transition(s, BackupJobRun, run.id, RunState.QUEUED, start={RunState.ERROR}))
    with pytest.raises(ValueError, match="task: no legal move from nowhere to pending"):
        sqlite.run(lambda s: transition_all(s, Task, TaskState.PENDING, [], start=set()))
    with pytest.raises(ValueError, match="resource backup: no legal move from nowhere to creating"):
        sqlite.run(lambda s: transition(s, VmResourceBackup, "x", BackupState.CREATING))


def test_a_whole_set_moves_and_the_rest_stays(sqlite: Database) -> None:
    def work(session: Any) -> list[TaskState]:
        tasks = [make_task(session, ready=ready) for ready in (True, False, True)]
        assert transition_all(session, Task, TaskState.CLAIMED, [Task.kind == "backup"]) == 2
        return [task.state for task in tasks]

    assert sqlite.run(work) == [TaskState.CLAIMED, TaskState.PENDING, TaskState.CLAIMED]


def test_every_pair_of_states_is_as_the_table_says(sqlite: Database) -> None:
    """For the noun that data hang on, each move is tried on a row."""

    def work(session: Any) -> None:
        copy = make_copy(session, make_run(session, make_job(session)), make_vault(session), available=False)
        table = VmResourceBackup.__table__
        for old, new in product(BackupState, BackupState):
            session.execute(table.update().values(status=old))
            if new in MOVES[VmResourceBackup].get(old, ()):
                transition(session, VmResourceBackup, copy.id, new)
                assert copy.state == new
            elif sources(VmResourceBackup, new):
                with pytest.raises(StateConflict):
                    transition(session, VmResourceBackup, copy.id, new)

    sqlite.run(work)


# -- the table --------------------------------------------------------------------------------------


def _words(noun: type[Base]) -> type[StrEnum]:
    words: type[StrEnum] = noun.__table__.c[_column(noun)].type.words
    return words


def _column(noun: type[Base]) -> str:
    return "status" if noun is VmResourceBackup else "state"


def test_every_noun_with_a_state_is_in_the_table() -> None:
    with_state = {mapper.class_ for mapper in Base.registry.mappers if "state" in mapper.columns}
    assert with_state == set(MOVES) == set(NOUNS)


@pytest.mark.parametrize("noun", MOVES, ids=lambda noun: noun.__tablename__)
def test_every_state_can_be_reached(noun: type[Base]) -> None:
    words = _words(noun)
    first = noun.__table__.c[_column(noun)].default.arg
    reached = {first}
    while new := {to for state in reached for to in MOVES[noun].get(state, ())} - reached:
        reached |= new
    assert reached == set(words)
    assert set(MOVES[noun]) <= set(words)


def test_the_document_has_the_same_tables() -> None:
    text = DOCUMENT.read_text()
    for noun, moves in MOVES.items():
        section = re.search(rf"^### `{noun.__tablename__}`.*?\n(.*?)(?=^#|\Z)", text, re.M | re.S)
        assert section, noun
        said = {
            state: set() if following == "—" else set(re.findall(r"`(\w+)`", following))
            for state, following in re.findall(r"^\| `(\w+)` \| (.*?) \|$", section[1], re.M)
        }
        assert said == {str(state): {str(to) for to in moves.get(state, ())} for state in _words(noun)}


def test_the_document_names_every_table() -> None:
    text = DOCUMENT.read_text()
    assert set(re.findall(r"^\| `(\w+)` \| .* \| .*\|$", text, re.M)) >= set(Base.metadata.tables)


# -- nobody else --------------------------------------------------------------------------------------


def _writes_of_state(source: str) -> list[str]:
    """Places where a state is written: an attribute set, a keyword of values(), update() or of a model, SQL."""
    found = []
    models = {mapper.class_.__name__ for mapper in Base.registry.mappers}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n for target in targets for n in ast.walk(target) if isinstance(n, ast.Attribute)]
            found += [f"{n.lineno}: {ast.unparse(n)} =" for n in names if n.attr in ("state", "status")]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in {"values", "update", "setattr", "insert", *models}:
                found += [f"{node.lineno}: {called}({k.arg}=)" for k in node.keywords if k.arg in ("state", "status")]
                strings = [a.value for a in node.args if isinstance(a, ast.Constant)]
                found += [f"{node.lineno}: {called}({s!r})" for s in strings if s in ("state", "status")]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            sql = re.search(r"\bUPDATE\b.*\bSET\b.*\b(state|status)\s*=", node.value, re.I | re.S)
            found += [f"{node.lineno}: {sql.group()}"] if sql else []
    return found


#: `status` of an HTTP answer, kept with its idempotency key
_NO_STATE = {
    "db/idempotency.py": ["values(status=)"],
    # rows of what has long been: they come into being in the state that the vault shows, and nobody is told of it
    "scheduler/importing.py": ["BackupJobRun(state=)", "BackupJobRunVm(state=)", "VmResourceBackup(state=)"],
}


def test_nothing_else_writes_a_state() -> None:
    wrong = []
    for path in SOURCE.rglob("*.py"):
        name = str(path.relative_to(SOURCE))
        source = path.read_text()
        if path == Path(module.__file__) or "raksha.db" not in source:
            continue
        known = tuple(_NO_STATE.get(name, ()))
        wrong += [f"{name}:{place}" for place in _writes_of_state(source) if not place.endswith(known or ("\0",))]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "run.state = RunState.ERROR",
        "run.state: str = 'x'",
        "a, run.state = 1, 2",
        "session.execute(update(Task).where(x).values(state=y))",
        "Task(state=TaskState.DONE)",
        "models.Task(kind=1, state=TaskState.DONE)",
        "setattr(run, 'state', 'x')",
        "query.update(status='x')",
        "text('UPDATE tasks SET priority = 1, state = 2')",
    ],
)
def test_the_search_finds(line: str) -> None:
    assert _writes_of_state(line)


def test_the_search_sees_what_transition_does() -> None:
    assert _writes_of_state(Path(module.__file__).read_text())
