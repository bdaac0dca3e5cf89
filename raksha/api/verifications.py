"""`verifications`: whether restore points still hold what was stored. They are begun by a POST on one, or on a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flask
from marshmallow import Schema, ValidationError, fields, validate, validates_schema
from sqlalchemy.orm import Session

from raksha.api import idempotency, links, request_id
from raksha.api.answers import Instant, Said, page_of, said
from raksha.api.bodies import Body, Flag, Items, Text, Whole
from raksha.api.job_body import LEAST_TIMEOUT, MOST_TIMEOUT, identifier
from raksha.api.nouns import IdConverter, Noun, answer
from raksha.api.pagination import Choice, When, collection, page_query, wanted
from raksha.api.policy import Allow
from raksha.api.services import identity, services, settings
from raksha.db import jobs, runs, verifications
from raksha.db.models import Verification
from raksha.errors import RequestInvalid, StateConflict
from raksha.states import BootOutcome, ProvenBy, Trigger, VerificationState

NOUN = Noun(
    "verifications", "/v1/<project:tenant_id>/verifications", "Whether restore points still hold what was stored."
)


class VerificationAsked(Body):
    """Without a body: all data is read. With `boot`: a test restore."""

    boot = Flag(
        load_default=False,
        metadata={
            "description": "Boot the VMs of the restore point (of a job: of its newest) where they reach nobody, and "
            "see whether they come up"
        },
    )
    vms = Items(identifier(), most=1000, metadata={"description": "With boot: which of them; default: all"})
    marker = Text(
        least=1, most=255,
        metadata={"description": "With boot: text on its serial console by which a VM says that it is up; default: "
                  "its guest agent answers"},
    )  # fmt: skip
    timeout = Whole(
        least=LEAST_TIMEOUT, most=MOST_TIMEOUT,
        metadata={"description": "With boot: seconds that each VM has; default: the operator's"},
    )  # fmt: skip

    data = Flag(
        load_default=True,
        metadata={"description": "Read and compare what is stored; false: only look whether it is there"},
    )
    percent = Whole(
        least=1, most=100, load_default=100, metadata={"description": "How much of the data is read; which is chance"}
    )

    @validates_schema(pass_original=True)
    def check_boot(self, data: Mapping[str, Any], given: Any, **_: Any) -> None:
        others = ("data", "percent") if data.get("boot") else ("vms", "marker", "timeout")
        for name in others:
            if isinstance(given, Mapping) and name in given:
                raise ValidationError("It goes without boot." if data.get("boot") else "It goes with boot.", name)


class CopyShown(Schema):
    """A stored disk copy."""

    backupjob = fields.String(required=True)
    backupjobrun = fields.String(required=True)
    vm = fields.String(required=True)
    resource = fields.String(required=True)


class FindingShown(Schema):
    """Something that is wrong with an object of the vault."""

    object = fields.String(required=True)
    code = fields.String(required=True)
    detail = fields.String(required=True)
    hits = fields.List(
        fields.Nested(CopyShown), required=True, metadata={"description": "What cannot be restored because of it"}
    )


class BootReason(Schema):
    code = fields.String(required=True)
    message = fields.String(required=True)


class BootShown(Schema):
    """A VM of a test restore."""

    id = fields.String(required=True)
    name = fields.String(required=True, allow_none=True)
    outcome = fields.String(
        required=True, allow_none=True, validate=validate.OneOf([*BootOutcome, None]),
        metadata={"description": "unknown: it ran, and nothing could tell whether it is up; null: not known yet"},
    )  # fmt: skip
    proven_by = fields.String(required=True, allow_none=True, validate=validate.OneOf([*ProvenBy, None]))
    reason = fields.Nested(BootReason, required=True, allow_none=True, metadata={"description": "Why it is not proven"})
    seconds = fields.Float(required=True, allow_none=True, metadata={"description": "From its start to the outcome"})


class VerificationProgress(Schema):
    bytes_total = fields.Integer(required=True)
    bytes_done = fields.Integer(required=True)
    percent = fields.Integer(required=True, allow_none=True, metadata={"description": "null: not known yet"})


class VerificationShown(Schema):
    """One verification."""

    id = fields.String(required=True)
    project_id = fields.String(required=True)
    user_id = fields.String(required=True, allow_none=True, metadata={"description": "null: it was time for it"})
    backupjob_id = fields.String(required=True)
    backupjobrun_id = fields.String(
        required=True, allow_none=True, metadata={"description": "null: all restore points of the job"}
    )
    state = fields.String(required=True, validate=validate.OneOf(list(VerificationState)))
    boot = fields.Boolean(required=True, metadata={"description": "A test restore"})
    vms = fields.List(fields.Nested(BootShown), required=True, metadata={"description": "Of a test restore"})
    marker = fields.String(required=True, allow_none=True)
    timeout = fields.Integer(required=True, allow_none=True)
    data = fields.Boolean(required=True)
    percent = fields.Integer(required=True, metadata={"description": "Of the data"})
    trigger = fields.String(required=True, validate=validate.OneOf([Trigger.SCHEDULE, Trigger.REQUEST]))
    progress = fields.Nested(VerificationProgress, required=True)
    copies = fields.Integer(required=True, metadata={"description": "Stored disk copies that were looked at"})
    findings = fields.List(fields.Nested(FindingShown), required=True)
    healed = fields.List(
        fields.String(), required=True, metadata={"description": "Objects that were damaged, and are whole again"}
    )
    error = fields.Nested(
        Said, required=True, allow_none=True, metadata={"description": "Why it came to no end; damage is no error"}
    )
    created_at = Instant(required=True)
    started_at = Instant(required=True, allow_none=True)
    finished_at = Instant(required=True, allow_none=True)
    cancel_requested_at = Instant(required=True, allow_none=True)
    request_id = fields.String(required=True, allow_none=True)


_SAME = ("id", "project_id", "user_id", "backupjob_id", "backupjobrun_id", "state", "boot", "marker", "timeout", "data",
         "percent", "trigger", "copies", "findings", "healed", "created_at", "started_at", "finished_at",
         "cancel_requested_at", "request_id")  # fmt: skip


#: of a VM that was asked for, and is not booted yet
_UNTRIED = {"name": None, "outcome": None, "proven_by": None, "reason": None, "seconds": None}


def shown(row: Verification) -> dict[str, Any]:
    """For `VerificationShown`."""
    total, done = row.bytes_total, row.bytes_done
    return {
        **{name: getattr(row, name) for name in _SAME},
        "error": said(row.error),
        "vms": [{**_UNTRIED, **vm} for vm in row.vms],
        "progress": {
            "bytes_total": total,
            "bytes_done": done,
            "percent": min(100, done * 100 // total) if total else None,
        },
    }


def _how(body: Mapping[str, Any]) -> dict[str, Any]:
    """Columns."""
    if not body["boot"]:
        return {"data": body["data"], "percent": body["percent"]}
    asked = {name: body[name] for name in ("marker", "timeout") if name in body}
    return {"boot": True, "data": False, "percent": 0, "vms": [{"id": id} for id in body.get("vms", ())], **asked}


def _check_vms(session: Session, run_id: str | None, how: Mapping[str, Any]) -> None:
    """Raises `RequestInvalid`."""
    asked = [vm["id"] for vm in how.get("vms", ())]
    there = {vm.vm_id for vm in runs.detail(session, runs.get(session, None, run_id)).vms} if asked and run_id else ()
    for number, id in enumerate(asked):
        if id not in there:
            raise RequestInvalid(problems=[(f"vms.{number}", f"The restore point has no VM {id}.")])


def begin(tenant_id: str, backupjob_id: str, backupjobrun_id: str | None, body: dict[str, Any]) -> flask.Response:
    """A verification, queued. Raises `RowNotFound`, `StateConflict`, `RequestInvalid`."""

    def do(session: Session) -> flask.Response:
        job = jobs.get(session, tenant_id, backupjob_id)
        run_id, how = backupjobrun_id, _how(body)
        if run_id is not None:
            run = runs.get(session, tenant_id, run_id, job_id=backupjob_id)
            if run.state not in runs.POINTS:
                points = ", ".join(runs.POINTS)
                raise StateConflict(noun=runs.NOUN, id=run.id, found=run.state, wanted=points, to="verified")
        elif body["boot"]:
            newest = verifications.newest_whole(session, job.id)
            if newest is None:
                raise StateConflict(noun=jobs.NOUN, id=job.id, found="without restore point", wanted="one", to="tested")
            run_id, how = newest.id, {"marker": job.test_marker, "timeout": job.test_timeout, **how}
        _check_vms(session, run_id, how)
        ids = request_id.current()
        made = verifications.create(
            session, job, run_id, trigger=Trigger.REQUEST, user_id=identity().user_id,
            request_id=ids.local if ids else None, **how,
        )  # fmt: skip
        session.refresh(made)
        location = links.address(tenant_id, "verifications", made.id)
        return answer(VerificationShown, shown(made), 202, {"Location": location})

    response = services().database.run(lambda session: idempotency.once(session, lambda: do(session)))
    services().wake()
    return response


@NOUN.operation(
    "GET", "", rule="list", allow=Allow.READER_OR_ADMIN, does="List the verifications.",
    query=page_query(
        verifications.COLUMNS, state=Choice(VerificationState), created_at=When(),
        backupjob_id=Text(most=36, pattern=IdConverter.regex),
        backupjobrun_id=Text(most=36, pattern=IdConverter.regex),
    ),
    returns=page_of("verifications", VerificationShown), errors=(400,),
)  # fmt: skip
def list_verifications(tenant_id: str, query: dict[str, Any]) -> Any:
    same = ("backupjob_id", "backupjobrun_id")
    where = [getattr(Verification, name) == query[name] for name in same if name in query]
    if "state" in query:
        where.append(Verification.state.in_([VerificationState(word) for word in query["state"]]))
    if "created_at" in query:
        where.append(query["created_at"](Verification.created_at))
    with services().database.reading() as session:
        page = verifications.listed(session, tenant_id, wanted(query, settings().limits.max_page_size), where)
    return collection("verifications", [shown(row) for row in page.rows], page.rows[-1].id if page.more else None)


@NOUN.operation(
    "GET", "/<id:verification_id>", rule="show", allow=Allow.READER_OR_ADMIN, does="Show a verification.",
    returns=VerificationShown,
)  # fmt: skip
def show(tenant_id: str, verification_id: str) -> Any:
    with services().database.reading() as session:
        return shown(verifications.get(session, tenant_id, verification_id))


@NOUN.operation(
    "POST", "/<id:verification_id>/cancel", rule="cancel", allow=Allow.MEMBER_OR_ADMIN, does="Cancel a verification.",
    returns=VerificationShown, status=202, repeatable=True,
)  # fmt: skip
def cancel(tenant_id: str, verification_id: str) -> Any:
    def do(session: Session) -> flask.Response:
        row = verifications.get(session, tenant_id, verification_id)
        verifications.request_cancel(session, row.id)
        location = links.address(tenant_id, "verifications", row.id)
        return answer(VerificationShown, shown(row), 202, {"Location": location})

    response = services().database.run(lambda session: idempotency.once(session, lambda: do(session)))
    services().wake()
    return response
