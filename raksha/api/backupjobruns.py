"""`backupjobruns`: executions of a job, and the restore points that they leave. `backupjobsruns` is the same."""

from __future__ import annotations

from typing import Any

import flask
from sqlalchemy.orm import Session

from raksha.api import etag, idempotency, links, restores, run_start, target_project, verifications
from raksha.api.answers import page_of
from raksha.api.bodies import Body, Flag, Text
from raksha.api.nouns import Noun, answer
from raksha.api.pagination import Choice, When, collection, page_query, wanted
from raksha.api.policy import Allow
from raksha.api.restore_body import RestoreAsked
from raksha.api.restore_plan import RestorePlan
from raksha.api.restores import RestoreShown
from raksha.api.run_shown import RunDetail, RunShown, detailed, shown
from raksha.api.run_start import RunAsked
from raksha.api.services import services, settings
from raksha.api.verifications import VerificationAsked, VerificationShown
from raksha.db import jobs, runs
from raksha.db.models import BackupJobRun
from raksha.errors import StateConflict
from raksha.states import BackupKind, RunState, Trigger

_OF_A_JOB = "/v1/<project:tenant_id>/backupjobs/<id:backupjob_id>"

NOUN = Noun(
    "backupjobruns", f"{_OF_A_JOB}/backupjobruns", "Executions of a job, and the restore points that they leave.",
    aliases=(f"{_OF_A_JOB}/backupjobsruns",),
)  # fmt: skip

#: of a URL
_TRUTHS = {"true": True, "false": False}


@NOUN.operation(
    "GET", "", rule="list", allow=Allow.READER_OR_ADMIN, does="List the runs of a job.",
    query=page_query(
        runs.COLUMNS, state=Choice(RunState), kind=Choice(BackupKind), trigger=Choice(Trigger),
        protected=Choice(_TRUTHS), created_at=When(),
    ),
    returns=page_of("backupjobruns", RunShown), errors=(400,),
)  # fmt: skip
def list_runs(tenant_id: str, backupjob_id: str, query: dict[str, Any]) -> Any:
    words: dict[str, tuple[Any, Any]] = {
        "state": (BackupJobRun.state, RunState),
        "kind": (BackupJobRun.kind, BackupKind),
        "trigger": (BackupJobRun.trigger, Trigger),
        "protected": (BackupJobRun.protected, _TRUTHS.__getitem__),
    }
    where = [column.in_([word(x) for x in query[name]]) for name, (column, word) in words.items() if name in query]
    if "created_at" in query:
        where.append(query["created_at"](BackupJobRun.created_at))
    with services().database.reading() as session:
        jobs.get(session, tenant_id, backupjob_id)
        page = runs.listed(
            session, tenant_id, wanted(query, settings().limits.max_page_size), job_id=backupjob_id, where=where
        )
    return collection("backupjobruns", [shown(run) for run in page.rows], page.rows[-1].id if page.more else None)


@NOUN.operation(
    "GET", "/<id:backupjobrun_id>", rule="show", allow=Allow.READER_OR_ADMIN,
    does="Show a run with its VMs and disks.", returns=RunDetail,
)  # fmt: skip
def show(tenant_id: str, backupjob_id: str, backupjobrun_id: str) -> Any:
    with services().database.reading() as session:
        run = runs.get(session, tenant_id, backupjobrun_id, job_id=backupjob_id)
        return detailed(runs.detail(session, run)), etag.headers(run.version)


@NOUN.operation(
    "POST", "", rule="create", allow=Allow.MEMBER, does="Run a job once, full or incremental as its policy says.",
    body=RunAsked, body_optional=True, returns=RunShown, status=202, repeatable=True,
)  # fmt: skip
def create(tenant_id: str, backupjob_id: str, body: dict[str, Any]) -> Any:
    return run_start.start(tenant_id, backupjob_id, body, None)


class RunChanged(Body):
    """What is not named stays."""

    description = Text(most=4000)
    protected = Flag(metadata={"description": "Retention leaves it alone"})


@NOUN.operation(
    "PUT", "/<id:backupjobrun_id>", rule="update", allow=Allow.MEMBER,
    does="Change the description of a run, or protect it from retention.", body=RunChanged, returns=RunShown,
    if_match=True, errors=(409,),
)  # fmt: skip
def update(tenant_id: str, backupjob_id: str, backupjobrun_id: str, body: dict[str, Any]) -> Any:
    def work(session: Session) -> BackupJobRun:
        run = runs.get(session, tenant_id, backupjobrun_id, job_id=backupjob_id)
        etag.require(run.version, runs.NOUN, run.id)
        if run.state == RunState.DELETING:
            others = ", ".join(state for state in RunState if state != RunState.DELETING)
            raise StateConflict(noun=runs.NOUN, id=run.id, found=run.state, wanted=others, to="changed")
        runs.change(session, run.id, run.version, **body)
        return run

    run = services().database.run(work)
    return shown(run), etag.headers(run.version)


@NOUN.operation(
    "DELETE", "/<id:backupjobrun_id>", rule="delete", allow=Allow.MEMBER_OR_ADMIN,
    does="Delete a run. Those that build on it are consolidated first, and stay.", status=202, errors=(409,),
)  # fmt: skip
def delete(tenant_id: str, backupjob_id: str, backupjobrun_id: str) -> Any:
    def work(session: Session) -> None:
        run = runs.get(session, tenant_id, backupjobrun_id, job_id=backupjob_id)
        runs.begin_deleting(session, run.id)

    services().database.run(work)
    services().wake()
    return None, {"Location": links.location()}


@NOUN.operation(
    "POST", "/<id:backupjobrun_id>", rule="restore", allow=Allow.MEMBER,
    does="Restore from a run; with dry_run: tell what that would do.", body=RestoreAsked, returns=RestoreShown,
    status=202, also=(200, RestorePlan), repeatable=True, headers=(target_project.PARAMETER,),
)  # fmt: skip
def restore(tenant_id: str, backupjob_id: str, backupjobrun_id: str, body: dict[str, Any]) -> Any:
    def run_of(session: Session) -> BackupJobRun:
        return runs.get(session, tenant_id, backupjobrun_id, job_id=backupjob_id)

    return restores.begin(tenant_id, run_of, body)


@NOUN.operation(
    "POST", "/<id:backupjobrun_id>/verify", rule="verify", allow=Allow.MEMBER,
    does="Look whether a restore point still holds what was stored.", body=VerificationAsked, body_optional=True,
    returns=VerificationShown, status=202, repeatable=True,
)  # fmt: skip
def verify(tenant_id: str, backupjob_id: str, backupjobrun_id: str, body: dict[str, Any]) -> Any:
    return verifications.begin(tenant_id, backupjob_id, backupjobrun_id, body)


@NOUN.operation(
    "POST", "/<id:backupjobrun_id>/cancel", rule="cancel", allow=Allow.MEMBER_OR_ADMIN,
    does="Cancel a run that is queued or under way.", returns=RunShown, status=202, repeatable=True,
)  # fmt: skip
def cancel(tenant_id: str, backupjob_id: str, backupjobrun_id: str) -> Any:
    def do(session: Session) -> flask.Response:
        run = runs.get(session, tenant_id, backupjobrun_id, job_id=backupjob_id)
        runs.request_cancel(session, run.id)
        location = links.address(tenant_id, "backupjobs", backupjob_id, "backupjobruns", run.id)
        return answer(RunShown, shown(run), 202, {"Location": location})

    response = services().database.run(lambda session: idempotency.once(session, lambda: do(session)))
    services().wake()
    return response
