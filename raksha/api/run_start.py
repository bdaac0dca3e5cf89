"""Starting a run of a job by hand: queued here, everything else a scheduler does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flask
from sqlalchemy.orm import Session

from raksha.api import allowed, etag, idempotency, links, request_id
from raksha.api.bodies import Body, Flag, Text
from raksha.api.nouns import answer
from raksha.api.run_shown import RunShown, shown
from raksha.api.services import identity, services
from raksha.db import jobs, runs, schedules
from raksha.db.models import BackupJob
from raksha.errors import StateConflict
from raksha.schedule import Schedule, wants_full
from raksha.states import BackupKind, JobState, Trigger

_CAN = (JobState.ACTIVE, JobState.PAUSED)


class RunAsked(Body):
    """What is to be remembered of a run. No body: nothing."""

    description = Text(most=4000)
    protected = Flag(metadata={"description": "Retention leaves it alone"})


def start(tenant_id: str, backupjob_id: str, body: Mapping[str, Any], kind: BackupKind | None) -> flask.Response:
    """Queue a run. `kind`: None: as the job's policy says. An increment that nothing is there for is a full run.

    Raises `RowNotFound`, `StateConflict`, `LimitExceeded`.
    """

    def do(session: Session) -> flask.Response:
        job = jobs.get(session, tenant_id, backupjob_id)
        if job.state not in _CAN:
            raise StateConflict(noun=jobs.NOUN, id=job.id, found=job.state, wanted=", ".join(_CAN), to="running")
        allowed.one_more_run(session, job)
        ids = request_id.current()
        run = runs.create(
            session, job, kind=_kind(session, job, kind), trigger=Trigger.REQUEST, user_id=identity().user_id,
            request_id=ids.local if ids else None, **body,
        )  # fmt: skip
        session.refresh(run)
        location = links.address(tenant_id, "backupjobs", job.id, "backupjobruns", run.id)
        return answer(RunShown, shown(run), 202, {"Location": location, **etag.headers(run.version)})

    response = services().database.run(lambda session: idempotency.once(session, lambda: do(session)))
    services().wake()
    return response


def _kind(session: Session, job: BackupJob, asked: BackupKind | None) -> BackupKind:
    based = job.id in runs.based(session, [job.id])
    if asked is None:
        schedule = schedules.of(job) or Schedule()
        full = wants_full(schedule, job.next_full_at is not None, job.runs_since_full if based else None)
    else:
        full = asked == BackupKind.FULL or not based
    return BackupKind.FULL if full else BackupKind.INCREMENTAL
