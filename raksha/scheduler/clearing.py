"""Removes what backups from storage have left in the cloud, when whoever made it is gone.

    a backup has failed, or was cancelled                   what it has, by its marks      raksha.openstack.leftovers
    one is done, its run is over, and its FINISH too        likewise
    a job names a server or volume no more                  the snapshots that stayed of it for the next run
    a job is deleted                                        all that stayed of it, before its trust ends (deleting)

By the trust of the job, else by any of its project's. Most of it, agents have removed themselves: then nothing is
found. A cloud that does not answer is asked again later, for as long as it takes: until then the rows of the run stay.
Where no trust is left nobody can look any more: a run that is on its way out goes then, and the log says what stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from raksha.db import jobs, runs, tasks
from raksha.db.models import BackupJob, Task
from raksha.db.session import Database
from raksha.errors import CloudRefused, CloudUnavailable, IdentityUnavailable, TrustBroken
from raksha.scheduler import temporary
from raksha.scheduler.about import about_task
from raksha.scheduler.access import ENVIRONMENT, TRIED, Access
from raksha.states import RunState, Source

if TYPE_CHECKING:
    from raksha.openstack.lent import LentLogin

_log = logging.getLogger(__name__)

#: of tasks, and of jobs, looked at in one round
LOOKED_AT = 100
#: seconds before it is tried again: what is away, and what somebody must put right first
SOON, LATER = 30.0, 600.0
_TOLD = {"action": "clear"}


class Cleared(Struct, frozen=True):
    """What one round did: tasks and jobs of which nothing is left, and those that are tried again."""

    done: int
    later: int


def clear(database: Database, access: Access = ENVIRONMENT) -> Cleared:
    """One round."""
    with database.reading() as session:
        left = tasks.to_clear(session, LOOKED_AT)
        dropped = jobs.to_clear(session, LOOKED_AT)
    done = sum(_task(database, access, task) for task in left) + sum(_job(database, access, job) for job in dropped)
    return Cleared(done, len(left) + len(dropped) - done)


def _task(database: Database, access: Access, task: Task) -> bool:
    from raksha.openstack import leftovers

    kept: Sequence[dict[str, Any]] = task.temporary or []
    attachments = [id for each in kept for id in each.get("attachments", ()) if id is not None]
    with database.reading() as session:
        run = runs.get(session, None, task.backupjobrun_id or "")
        trusts = jobs.trusts(session, task.project_id, run.backupjob_id)
    with about_task(database, task):
        remove = partial(leftovers.remove, task=task.id, attachments=attachments)
        delay = _asked(access, trusts, remove, f"task {task.id}, volumes {', '.join(each['volume'] for each in kept)}")
        if delay == LATER and run.state == RunState.DELETING and not _stands(access, trusts):
            _log.warning("what task %s has left in the cloud stays: %s", task.id, kept, extra=_TOLD)
            delay = None
        if delay is not None:
            database.run(partial(tasks.clear_later, id=task.id, seconds=delay))
            return False
        database.run(partial(temporary.keep, task=task, kept=()))
    return True


def _job(database: Database, access: Access, job: BackupJob) -> bool:
    with database.reading() as session:
        there = jobs.members(session, [job.id])[job.id]
        named = frozenset(each.vm_id for each in there if each.source != Source.HYPERVISOR)
        trusts = jobs.trusts(session, job.project_id, job.id)
    delay = remove_kept(access, trusts, job.id, named)
    if delay is None:
        database.run(partial(jobs.cleared, id=job.id, seen=job.clear_at or 0))
    else:
        database.run(partial(jobs.clear_later, id=job.id, seconds=delay))
    return delay is None


def remove_kept(access: Access, trusts: Sequence[str], job_id: str, but: frozenset[str] = frozenset()) -> float | None:
    """The snapshots that stayed of a job, but for those of some servers and volumes. Seconds until it is to be tried
    again; None: none is left, or there is no Cinder."""

    def remove(cloud: LentLogin) -> None:
        # only who has a cloud needs what asks it
        from raksha.openstack import leftovers

        count = leftovers.remove_kept(cloud, job_id, but)
        if count:
            _log.info("%d snapshots of job %s are removed", count, job_id, extra=_TOLD)

    return _asked(access, trusts, remove, f"job {job_id}")


def _asked(access: Access, trusts: Sequence[str], remove: Callable[[LentLogin], None], whose: str) -> float | None:
    """Seconds until it is to be done again; None: it is done."""
    try:
        cloud = access.block_storage(trusts[:TRIED])
        if cloud is not None:
            remove(cloud)
    except (IdentityUnavailable, CloudUnavailable) as error:
        _log.warning("what is left of %s cannot be removed yet: %s", whose, error, extra=_TOLD)
        return SOON
    except (CloudRefused, TrustBroken) as error:
        _log.warning("what is left of %s cannot be removed: %s", whose, error, extra=_TOLD)
        return LATER
    return None


def _stands(access: Access, trusts: Sequence[str]) -> bool:
    """Whether any of some trusts does, as far as Keystone says."""
    try:
        access.block_storage(trusts[:TRIED])
    except TrustBroken:
        return False
    except IdentityUnavailable:
        return True
    return bool(trusts)
