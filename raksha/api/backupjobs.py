"""`backupjobs`: what is protected, when and how; and runs of a job by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flask
from marshmallow import fields, validate
from sqlalchemy import select
from sqlalchemy.orm import Session

from raksha.api import allowed, delegation, etag, idempotency, job_members, links, run_start, verifications
from raksha.api.answers import page_of
from raksha.api.bodies import Query, Text
from raksha.api.job_body import JobChanged, JobWritten, columns
from raksha.api.job_shown import JobShown, shown
from raksha.api.nouns import IdConverter, Noun, answer
from raksha.api.pagination import Choice, When, collection, page_query, wanted
from raksha.api.policy import Allow
from raksha.api.run_shown import RunShown
from raksha.api.run_start import RunAsked
from raksha.api.services import identity, services, settings
from raksha.api.verifications import VerificationAsked, VerificationShown
from raksha.db import jobs, rows, runs, schedules, vaults
from raksha.db.columns import SECOND, new_id
from raksha.db.models import BackupJob, BackupJobVm
from raksha.db.transition import transition
from raksha.errors import HasRestorePoints, Protected, RequestInvalid, StateConflict, TrustBroken
from raksha.states import BackupKind, JobState

NOUN = Noun("backupjobs", "/v1/<project:tenant_id>/backupjobs", "What is protected, and when.")

_FILTERS = {
    "name": Text(least=1, most=255),
    "state": Choice(JobState),
    "vm_id": Text(most=36, pattern=IdConverter.regex, metadata={"description": "Jobs that name this VM or volume"}),
    "created_at": When(),
}


@NOUN.operation(
    "GET", "", rule="list", allow=Allow.READER_OR_ADMIN, does="List the backup jobs.",
    query=page_query(jobs.COLUMNS, **_FILTERS), returns=page_of("backupjobs", JobShown), errors=(400,),
)  # fmt: skip
def list_jobs(tenant_id: str, query: dict[str, Any]) -> Any:
    where = []
    if "name" in query:
        where.append(BackupJob.name == query["name"])
    if "state" in query:
        where.append(BackupJob.state.in_([JobState(word) for word in query["state"]]))
    if "vm_id" in query:
        named = select(BackupJobVm.backupjob_id).where(BackupJobVm.vm_id == query["vm_id"])
        where.append(BackupJob.id.in_(named))
    if "created_at" in query:
        where.append(query["created_at"](BackupJob.created_at))
    with services().database.reading() as session:
        page = jobs.listed(session, tenant_id, wanted(query, settings().limits.max_page_size), where)
        members = jobs.members(session, [job.id for job in page.rows])
    entries = [shown(job, members[job.id]) for job in page.rows]
    return collection("backupjobs", entries, page.rows[-1].id if page.more else None)


@NOUN.operation(
    "GET", "/<id:backupjob_id>", rule="show", allow=Allow.READER_OR_ADMIN, does="Show a backup job.", returns=JobShown
)
def show(tenant_id: str, backupjob_id: str) -> Any:
    with services().database.reading() as session:
        job = jobs.get(session, tenant_id, backupjob_id)
        members = jobs.members(session, [job.id])[job.id]
    return shown(job, members), etag.headers(job.version)


@NOUN.operation(
    "POST", "", rule="create", allow=Allow.MEMBER, does="Create a backup job.", body=JobWritten, returns=JobShown,
    status=201, repeatable=True,
)  # fmt: skip
def create(tenant_id: str, body: dict[str, Any]) -> Any:
    def do(session: Session, trust: str | None) -> flask.Response:
        allowed.one_more_job(session, tenant_id)
        id, given = new_id(), job_members.given(body)
        _check(session, tenant_id, body, asked)
        if not given and not body.get("vm_selector"):
            raise _nothing_to_protect()
        values = _columns(session, body, id)
        owner = {"user_id": identity().user_id, "trust_id": trust}
        job = jobs.create(session, project_id=tenant_id, members=given or [], id=id, **owner, **values)
        if body.get("enabled") is False:
            transition(session, BackupJob, id, JobState.PAUSED)
        session.refresh(job)
        headers = {"Location": links.location(id), **etag.headers(job.version)}
        return answer(JobShown, shown(job, jobs.members(session, [id])[id]), 201, headers)

    asked = job_members.ask(tenant_id, body)
    with delegation.trusted() as trust:
        response = services().database.run(lambda session: idempotency.once(session, lambda: do(session, trust)))
    services().wake()
    return response


@NOUN.operation(
    "PUT", "/<id:backupjob_id>", rule="update", allow=Allow.MEMBER, does="Change a backup job, pause or resume it.",
    body=JobChanged, returns=JobShown, if_match=True, errors=(409,),
)  # fmt: skip
def update(tenant_id: str, backupjob_id: str, body: dict[str, Any]) -> Any:
    def work(session: Session) -> tuple[BackupJob, list[BackupJobVm]]:
        job = jobs.get(session, tenant_id, backupjob_id)
        etag.require(job.version, jobs.NOUN, job.id)
        if job.state == JobState.DELETING:
            others = ", ".join(state for state in JobState if state != JobState.DELETING)
            raise StateConflict(noun=jobs.NOUN, id=job.id, found=job.state, wanted=others, to="changed")
        before = jobs.members(session, [job.id])[job.id]
        given = job_members.given(body, before)
        _check(session, tenant_id, body, asked, before)
        has = bool(before if given is None else given)
        if not has and not body.get("vm_selector", job.vm_selector):
            raise _nothing_to_protect()
        values = _columns(session, body, job.id)
        if "schedule" not in body and body.get("enabled") and job.state != JobState.ACTIVE:
            # what went by while it was paused was not missed
            values |= schedules.columns(schedules.of(job), job.id, rows.clock(session) // SECOND)
        jobs.change(session, job.id, job.version, members=given, **values)
        _enable(session, job, body)
        return job, jobs.members(session, [job.id])[job.id]

    with services().database.reading() as session:
        job = jobs.get(session, tenant_id, backupjob_id)
        had = jobs.members(session, [job.id])[job.id]
    asked = job_members.ask(tenant_id, body, had)
    job, members = services().database.run(work)
    services().wake()
    return shown(job, members), etag.headers(job.version)


@NOUN.operation(
    "POST", "/<id:backupjob_id>/take-over", rule="take_over", allow=Allow.MEMBER,
    does="Let a backup job act for the caller from now on, as its owner left or its trust is broken.",
    returns=JobShown,
)  # fmt: skip
def take_over(tenant_id: str, backupjob_id: str) -> Any:
    def work(session: Session, trust: str | None) -> tuple[BackupJob, list[BackupJobVm]]:
        job = jobs.get(session, tenant_id, backupjob_id)
        # also one that is being deleted: that may be what a broken trust holds up
        suspended_for = (job.state_reason or {}).get("code") if job.state == JobState.SUSPENDED else None
        jobs.take_over(session, job.id, job.version, user_id=identity().user_id, trust_id=trust)
        if suspended_for == TrustBroken.code:
            start = {JobState.SUSPENDED}
            transition(session, BackupJob, job.id, JobState.ACTIVE, start=start, state_reason=None)
        session.refresh(job)
        return job, jobs.members(session, [job.id])[job.id]

    with delegation.trusted() as trust:
        job, members = services().database.run(lambda session: work(session, trust))
    services().wake()
    return shown(job, members), etag.headers(job.version)


@NOUN.operation(
    "POST", "/<id:backupjob_id>/verify", rule="verify", allow=Allow.MEMBER,
    does="Look whether the restore points of a job still hold what was stored.", body=VerificationAsked,
    body_optional=True, returns=VerificationShown, status=202, repeatable=True,
)  # fmt: skip
def verify(tenant_id: str, backupjob_id: str, body: dict[str, Any]) -> Any:
    return verifications.begin(tenant_id, backupjob_id, None, body)


class DeleteQuery(Query):
    with_runs = fields.String(
        validate=validate.OneOf(["true", "false"]),
        metadata={"description": "true: its restore points are deleted as well"},
    )


@NOUN.operation(
    "DELETE", "/<id:backupjob_id>", rule="delete", allow=Allow.MEMBER_OR_ADMIN, does="Delete a backup job.",
    query=DeleteQuery, status=202, errors=(400, 409),
)  # fmt: skip
def delete(tenant_id: str, backupjob_id: str, query: dict[str, Any]) -> Any:
    def work(session: Session) -> None:
        job = jobs.get(session, tenant_id, backupjob_id)
        found = runs.restore_points(session, job.id)
        protected = next((id for id, stays in found.items() if stays), None)
        if protected is not None:
            raise Protected(id=protected)
        if found and query.get("with_runs") != "true":
            raise HasRestorePoints(id=job.id, count=len(found))
        jobs.begin_deleting(session, job.id)

    services().database.run(work)
    services().wake()
    return None, {"Location": links.location()}


@NOUN.operation(
    "POST", "/<id:backupjob_id>/full", rule="full", allow=Allow.MEMBER, does="Run a full backup now.",
    body=RunAsked, body_optional=True, returns=RunShown, status=202, repeatable=True,
)  # fmt: skip
def full(tenant_id: str, backupjob_id: str, body: dict[str, Any]) -> Any:
    return run_start.start(tenant_id, backupjob_id, body, BackupKind.FULL)


@NOUN.operation(
    "POST", "/<id:backupjob_id>/incremental", rule="incremental", allow=Allow.MEMBER,
    does="Run an incremental backup now; disks without anything to build on become full ones.",
    body=RunAsked, body_optional=True, returns=RunShown, status=202, repeatable=True,
)  # fmt: skip
def incremental(tenant_id: str, backupjob_id: str, body: dict[str, Any]) -> Any:
    return run_start.start(tenant_id, backupjob_id, body, BackupKind.INCREMENTAL)


# -- what a body asks for -----------------------------------------------------------------------------


def _check(
    session: Session,
    project_id: str,
    body: Mapping[str, Any],
    asked: job_members.Asked,
    had: Sequence[BackupJobVm] = (),
) -> None:
    """What a body refers to is there and may be used. Raises `RequestInvalid`."""
    problems = job_members.problems(session, project_id, body, asked, had)
    chosen = body.get("vault_service_id")
    if chosen is not None and chosen not in {service.id for service in vaults.services(session, project_id)}:
        problems.append(("vault_service_id", f"There is no vault service {chosen}."))
    if problems:
        raise RequestInvalid(problems=problems)


def _columns(session: Session, body: Mapping[str, Any], job_id: str) -> dict[str, Any]:
    now = rows.clock(session) // SECOND
    return columns(body, job_id, now, settings().limits.min_schedule_interval)


def _nothing_to_protect() -> RequestInvalid:
    return RequestInvalid(problems=[("vms", "The job needs VMs, volumes or a selector.")])


def _enable(session: Session, job: BackupJob, body: Mapping[str, Any]) -> None:
    """`enabled: true` also ends a suspension; `false` leaves it, for it says more than a pause."""
    if body.get("enabled") is True and job.state != JobState.ACTIVE:
        transition(session, BackupJob, job.id, JobState.ACTIVE, start={job.state}, state_reason=None)
    elif body.get("enabled") is False and job.state == JobState.ACTIVE:
        transition(session, BackupJob, job.id, JobState.PAUSED, start={JobState.ACTIVE})
