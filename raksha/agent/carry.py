"""Carries a claimed task out and says how it ended.

Every end is one of these, and none is silent::

    a result                    DONE
    asked to cancel             CANCELLED
    told to stop                handed back
    somebody else has it        nothing: what was done is given up
    NeedsAttention              NEEDS_ATTENTION: a person must look
    any other error             ERROR
"""

from __future__ import annotations

import logging
import sqlite3

from raksha.agent.backup_task import BackupTask
from raksha.agent.boot_task import BootTask
from raksha.agent.finish_task import FinishTask, ReleaseTask
from raksha.agent.host import Host
from raksha.agent.restore_task import RestoreTask
from raksha.agent.verify_task import VerifyTask
from raksha.agent.work import End, Work
from raksha.errors import EpochStale, HostFailed, Interrupted, NeedsAttention, RakshaError
from raksha.states import TaskKind, TaskState
from raksha.tasks import BackupOrder, BootOrder, Finish, FinishOrder, ReleaseOrder, RestoreOrder, Result

_log = logging.getLogger(__name__)


def kind_of(work: Work) -> TaskKind:
    order = work.order
    if isinstance(order, BackupOrder):
        return TaskKind.BACKUP
    if isinstance(order, FinishOrder):
        return TaskKind.FINISH
    if isinstance(order, RestoreOrder):
        return TaskKind.RESTORE
    if isinstance(order, BootOrder):
        return TaskKind.BOOT
    return TaskKind.RELEASE if isinstance(order, ReleaseOrder) else TaskKind.VERIFY


def carry_out(host: Host, work: Work) -> Finish | None:
    """Never raises. None: there is no end to report; `work.why` says whether it is to be handed back."""
    try:
        result = _do(host, work)
    except EpochStale as error:
        _log.warning("%s", error, extra={"action": "task"})
        work.end(End.STALE)
        return None
    except RakshaError as error:
        return _failed(work, error)
    except (OSError, sqlite3.Error) as error:  # spool files, the journal: whatever this host is asked to keep for us
        return _failed(work, HostFailed(detail=error))
    except Exception as error:  # what nobody thought of: the task must end, and the log tell why
        _log.exception("%s failed", kind_of(work), extra={"action": "task"})
        return _failed(work, HostFailed(detail=f"{type(error).__name__}; the log of the agent says more"))
    if work.why is End.STALE:
        return None
    return Finish(task_id=work.task_id, epoch=work.epoch, to=TaskState.DONE, result=result)


def _do(host: Host, work: Work) -> Result:
    order = work.order
    if isinstance(order, FinishOrder):
        host.recovery.wait_for(order.vm, work.over)
        return FinishTask(host, work, order)()
    if isinstance(order, ReleaseOrder):
        host.recovery.wait_for(order.vm, work.over)
        return ReleaseTask(host, work, order)()
    if isinstance(order, BackupOrder):
        host.recovery.wait_for(order.vm, work.over)
        return BackupTask(host, work, order)()
    if isinstance(order, RestoreOrder):
        return RestoreTask(host, work, order)()
    if isinstance(order, BootOrder):
        return BootTask(host, work, order)()
    return VerifyTask(host, work, order)()


def _failed(work: Work, error: RakshaError) -> Finish | None:
    """What was broken off fails in many ways; what is left half-done is told whatever was asked for."""
    half_done = isinstance(error, NeedsAttention)
    _log.log(logging.INFO if isinstance(error, Interrupted) else logging.ERROR, "%s: %s", kind_of(work), error)
    if work.why is End.STALE or (work.why is End.STOPPED and not half_done):
        return None
    to = TaskState.NEEDS_ATTENTION if half_done else TaskState.ERROR
    if work.why is End.CANCELLED and not half_done:
        to = TaskState.CANCELLED
    return Finish(task_id=work.task_id, epoch=work.epoch, to=to, error=error.document())
