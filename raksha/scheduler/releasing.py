"""The end of a run on its hosts: FINISH tasks, and after them its slots.

Whoever was told to capture a VM is told what became of it, whichever way the run ended: layers are merged only after a
commit, and stay for the next run otherwise. Until then nobody else gets the VM.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.db import runs, slots, tasks
from raksha.db.models import BackupJobRun, Task
from raksha.db.transition import transition
from raksha.states import RunState, TaskKind, TaskState
from raksha.tasks import FinishOrder

#: before anything new: it makes room on the host
PRIORITY = 100
_OVER = (RunState.AVAILABLE, RunState.DEGRADED, RunState.CANCELLED, RunState.ERROR, RunState.DELETING)


def tell_hosts(session: Session, run: BackupJobRun, number: int | None) -> set[str]:
    """A FINISH task for each VM that an agent has claimed; claimable at once. Which hosts. Again: no harm.

    What any agent could have, and none has, is nobody's to finish: whoever had it has given it up.

    `number`: of the commit; it is told to those whose part is in it.
    """
    found = tasks.of_run(session, run.id)
    told = {task.vm_id for task in found if task.kind == TaskKind.FINISH}
    hosts = set()
    for task in found:
        if task.kind == TaskKind.BACKUP and task.epoch > 0 and task.host is not None and task.vm_id not in told:
            _tell(session, run, task, number if task.state == TaskState.DONE else None)
            hosts.add(task.host)
    return hosts


def _tell(session: Session, run: BackupJobRun, task: Task, number: int | None) -> None:
    order = FinishOrder(backupjob=run.backupjob_id, backupjobrun=run.id, vm=task.vm_id or "", number=number)
    made = tasks.add(
        session, kind=TaskKind.FINISH, project_id=run.project_id, backupjobrun_id=run.id, vm_id=task.vm_id,
        host=task.host, priority=PRIORITY, order=msgspec.to_builtins(order),
    )  # fmt: skip
    transition(session, Task, made.id, TaskState.READY)


def release_when_over(session: Session, run_id: str) -> bool:
    """Give back the slots of a run that has ended and that no host has anything to do for. Whether it was so."""
    if runs.get(session, None, run_id).state not in _OVER or _unfinished(session, run_id):
        return False
    slots.release(session, run_id)
    return True


def _unfinished(session: Session, run_id: str) -> Sequence[str]:
    mine = Task.backupjobrun_id == run_id, Task.state.not_in(tasks.TERMINAL)
    on_hosts = Task.kind.in_((TaskKind.BACKUP, TaskKind.FINISH))
    return session.scalars(select(Task.id).where(*mine, on_hosts)).all()
