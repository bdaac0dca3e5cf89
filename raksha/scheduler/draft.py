"""What is to be written of a run whose tasks are done, put together from its rows alone.

Whoever does it, and however often, gets the same: an overtaken scheduler writes no other bytes than the one after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct
from sqlalchemy.orm import Session

import raksha
from raksha.db import groups, jobs, runs, tasks, vaults
from raksha.db.columns import SECOND
from raksha.db.models import BackupJobRun, BarrierMember, Task, Vault
from raksha.states import Consistency, TaskKind, TaskState
from raksha.tasks import Stored
from raksha.vault.metadata import FORMAT, BackupMetadata, RunDocument, VMMetadata

#: what a restored VM finds, the weakest first
STRENGTH = (Consistency.CRASH, Consistency.PAUSED, Consistency.QUIESCED, Consistency.OFFLINE)


class Draft(Struct, frozen=True):
    """A run before its commit. `document.number` is 0 until it has got one."""

    run: BackupJobRun
    vault: Vault
    document: RunDocument
    disks: tuple[BackupMetadata, ...]
    #: by VM
    machines: dict[str, VMMetadata]
    #: columns of the run's row
    facts: dict[str, object]


def draft(session: Session, run_id: str) -> Draft:
    """Of a run that is COMMITTING."""
    run = runs.get(session, None, run_id)
    job = jobs.get(session, None, run.backupjob_id)
    done = [
        task for task in tasks.of_run(session, run_id)
        if task.kind == TaskKind.BACKUP and task.state == TaskState.DONE
    ]  # fmt: skip
    done.sort(key=lambda task: task.vm_id or "")
    stored = [msgspec.convert(task.result, Stored) for task in done]
    skew, error = _skew(session, run_id, stored)
    begun, ended = run.started_at or run.created_at, max(task.finished_at or 0 for task in done)
    document = RunDocument(
        format=FORMAT,
        number=run.commit_number or 0,
        backupjob=run.backupjob_id,
        job_name=job.name,
        backupjobrun=run.id,
        started_at=begun / SECOND,
        taken_at=min(each.vm.taken_at for each in stored),
        finished_at=ended / SECOND,
        skew_seconds=skew,
        vms=[each.vm for each in stored],
        host=_hosts(done),
        raksha=raksha.__version__,
        hints={str(key): str(value) for key, value in (job.hints or {}).items()},
    )
    return Draft(
        run=run,
        vault=vaults.get(session, run.vault_id or ""),
        document=document,
        disks=tuple(disk for each in stored for disk in each.disks),
        machines={each.machine.vm: each.machine for each in stored},
        facts={
            "taken_at": round(document.taken_at * SECOND),
            "skew_seconds": skew,
            "skew_error_seconds": error,
            "consistency": min((each.vm.consistency for each in stored), key=STRENGTH.index),
            "frozen_seconds": max((each.vm.frozen_seconds or 0.0 for each in stored), default=0.0) or None,
            "warnings": [*run.warnings, *(f"{each.vm.name}: {said}" for each in stored for said in each.warnings)],
        },
    )


def _hosts(done: Sequence[Task]) -> str:
    return ", ".join(sorted({task.host or "" for task in done}))


def _skew(session: Session, run_id: str, stored: Sequence[Stored]) -> tuple[float, float | None]:
    """Seconds between the first and the last snapshot, and how wrong that may be where clocks were compared."""
    group = groups.of_run(session, run_id)
    members = [] if group is None else groups.members(session, group.id)
    taken = [member.captured_at for member in members if member.captured_at is not None]
    if len(taken) == len(members) > 1:
        return (max(taken) - min(taken)) / SECOND, _error(members)
    times = [each.vm.taken_at for each in stored]
    return max(times) - min(times), None


def _error(members: Sequence[BarrierMember]) -> float | None:
    """Two clocks are compared, so the two worst ones count."""
    errors = [member.clock_error_seconds for member in members if member.clock_error_seconds is not None]
    return sum(sorted(errors)[-2:]) if errors else None
