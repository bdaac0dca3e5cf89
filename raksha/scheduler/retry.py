"""Whether a run that failed is tried again, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from raksha.config_scheduler import SchedulerSettings
from raksha.db import rows, runs
from raksha.db.columns import now
from raksha.db.models import BackupJob, BackupJobRun
from raksha.states import BackupKind, JobState

#: seconds; no delay is longer, unless the job says so
_LONGEST = 3600.0


def delay(policy: Mapping[str, Any] | None, attempt: int, settings: SchedulerSettings) -> float | None:
    """Seconds from the failure of the `attempt`-th try (1: the run itself) to the next; None: no more.

    `policy`, of a job: `retries`, and `delay` in seconds before the first one; each further one waits twice as long.
    """
    retries = settings.retries if policy is None else policy.get("retries", settings.retries)
    first = settings.retry_delay if policy is None else policy.get("delay", settings.retry_delay)
    if attempt > retries:
        return None
    return float(min(first * 2.0 ** min(attempt - 1, 64), max(first, _LONGEST)))


def after(
    session: Session, failed: BackupJobRun, job: BackupJob, error: Mapping[str, Any], settings: SchedulerSettings
) -> BackupJobRun | None:
    """The run in place of one that failed, queued. None: there is none, and the job owes a full one if it was one.

    An error that says `retryable: false` is not tried again.
    """
    seconds = delay(job.retry_policy, failed.attempt, settings)
    wanted = job.state in (JobState.ACTIVE, JobState.PAUSED) and error.get("retryable", True)
    others = [run for run in runs.under_way(session, job.id) if run.id != failed.id]
    if seconds is not None and wanted and not others:
        return runs.retry(session, failed, delay=seconds)
    if failed.kind == BackupKind.FULL and not any(run.kind == BackupKind.FULL for run in others):
        owing = BackupJob.id == job.id, BackupJob.next_full_at.is_(None)
        rows.changed(session, update(BackupJob).where(*owing).values(next_full_at=now()))
    return None
