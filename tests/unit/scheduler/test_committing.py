"""A run becomes a restore point once, whoever commits it and whoever dies; its bytes come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from raksha.db.session import Database
from raksha.states import BackupKind, RunState
from tests.bed.scheduling import held, tasks_of
from tests.unit.scheduler.service import Service


@pytest.fixture
def service(sqlite: Database, tmp_path: Path) -> Service:
    return Service(sqlite, tmp_path)


def test_full_and_increments_of_two_hosts_restore(service: Service) -> None:
    one, two = service.agent("host-a"), service.agent("host-b")
    one.have("web", "vda", "vdb")
    two.have("db")
    job = service.job("web", "db", consistency_group=False)
    made = [service.backup(job, BackupKind.FULL)]
    for number in range(3):
        one.write("web", number, seed=number)
        two.write("db", 5, seed=number)
        made.append(service.backup(job))
    service.check(job, *made)
    assert [service.run_row(id).commit_number for id in made] == [1, 2, 3, 4]
    assert [(order.vm, order.number) for order in one.finished] == [("web", n) for n in (1, 2, 3, 4)]
    assert held(service.database) == {}
    last = one.orders[-1]
    assert {disk: copy.key.backupjobrun for disk, copy in last.parents.items()} == {"vda": made[2], "vdb": made[2]}
    assert last.parents["vda"].number == 3
    assert {copy.key.backupjobrun for copy in last.history} == {made[0], made[1]}
    row = service.run_row(made[-1])
    assert (row.state, row.group_consistent, row.bytes_total > 0) == (RunState.AVAILABLE, None, True)
    assert all(task.result is None for task in tasks_of(service.database, made[-1]) if task.kind == "backup")
