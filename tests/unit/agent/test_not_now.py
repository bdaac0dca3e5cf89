"""A scheduler that has lost its database is asked again, as one that is away. Stand-ins: the moment is hard to meet."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raksha.agent.barrier import Member
from raksha.agent.host import Host
from raksha.agent.restore_task import RestoreTask
from raksha.agent.work import Work
from raksha.config_agent import AgentSettings
from raksha.errors import BusUnavailable, CommitUnknown, DatabaseBusy, DatabaseUnavailable, RakshaError
from raksha.states import BarrierState, MemberState
from raksha.tasks import ENTER, REPORT, BackupOrder, Claimed, RestoreOrder, Seen

PROBLEMS = [
    BusUnavailable(verb="x", detail="the bus is away"), DatabaseUnavailable(detail="refused"),
    DatabaseBusy(attempts=20, detail="deadlock"), CommitUnknown(detail="lost"),
]  # fmt: skip


class Schedulers:
    """The first answer is an error."""

    def __init__(self, problem: RakshaError, answer: Any) -> None:
        self.asked: list[tuple[Any, Any]] = []
        self._answers = [problem, answer]

    def call(self, verb: Any, question: Any, _patience: float | None = None) -> Any:
        self.asked.append((verb, question))
        answer = self._answers.pop(0)
        if isinstance(answer, RakshaError):
            raise answer
        return answer


def host(schedulers: Schedulers) -> Host:
    return cast(Host, SimpleNamespace(schedulers=schedulers, agent=AgentSettings(host="host-a", patience=1)))


def work(order: BackupOrder | RestoreOrder) -> Work:
    return Work(Claimed(task_id="t", epoch=1, lease_seconds=60, order=order), time.monotonic())


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.code)
def test_a_member_of_a_group_asks_again(problem: RakshaError) -> None:
    seen = Seen(state=BarrierState.FREEZING, now=1, deadline_at=2)
    schedulers = Schedulers(problem, seen)
    order = BackupOrder(backupjob="j", backupjobrun="r", vm="v", group="g")
    assert Member(host(schedulers), work(order), order)._enter(MemberState.JOINED) == seen
    assert [verb for verb, _ in schedulers.asked] == [ENTER, ENTER]
    assert schedulers.asked[0] == schedulers.asked[1]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.code)
def test_a_restore_says_again_what_it_is_about_to_make(problem: RakshaError) -> None:
    schedulers = Schedulers(problem, None)
    order = RestoreOrder(restore="s", backupjob="j", backupjobrun="r", vm="v", target={"kind": "files"})
    RestoreTask(host(schedulers), work(order), order)._announce([{"kind": "file", "path": "/x"}])
    assert [verb for verb, _ in schedulers.asked] == [REPORT, REPORT]
    assert all(said.made == ({"kind": "file", "path": "/x", "host": "host-a"},) for _, said in schedulers.asked)
