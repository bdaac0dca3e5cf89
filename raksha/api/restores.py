"""`restores`: what becomes of a restore. They are begun by a POST on a restore point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flask
from marshmallow import Schema, fields, validate
from sqlalchemy.orm import Session

from raksha.api import allowed, delegation, idempotency, links, request_id, restore_plan, servers, target_project
from raksha.api.answers import Instant, Said, page_of, said
from raksha.api.bodies import Text
from raksha.api.nouns import IdConverter, Noun, answer
from raksha.api.pagination import Choice, When, collection, page_query, wanted
from raksha.api.policy import Allow, Rule
from raksha.api.restore_body import KINDS
from raksha.api.services import frame, identity, services, settings
from raksha.api.target_project import Target
from raksha.db import backups, restores, runs
from raksha.db import services as agents
from raksha.db.columns import new_id
from raksha.db.models import BackupJobRun, Restore
from raksha.errors import RequestInvalid, StateConflict
from raksha.states import PinHolder, RestoreState
from raksha.tasks import CLOUD_KINDS

NOUN = Noun("restores", "/v1/<project:tenant_id>/restores", "What was restored, and how far it is.")

ANYWHERE = Rule(
    "backupjobruns:restore_anywhere", Allow.ADMIN, "Say to which host and directory a restore goes.", "POST",
    "/v1/{tenant_id}/backupjobs/{backupjob_id}/backupjobruns/{backupjobrun_id}",
)  # fmt: skip


class VmOfRestore(Schema):
    id = fields.String(required=True)
    disks = fields.List(fields.String(), required=True)
    name = fields.String(required=True, allow_none=True, metadata={"description": "Of the new VM"})
    overwrite = fields.Dict(required=True, metadata={"description": "Volumes that are written over, by disk"})


class TargetShown(Schema):
    """As it was asked for; null: as the agent is set up."""

    kind = fields.String(required=True, validate=validate.OneOf(KINDS))
    directory = fields.String(required=True, allow_none=True)
    host = fields.String(required=True, allow_none=True)
    format = fields.String(required=True, allow_none=True)
    start = fields.Boolean(required=True)
    project = fields.String(
        required=True, allow_none=True, metadata={"description": "Another project that it goes into; null: its own"}
    )
    cloud = fields.Dict(required=True, metadata={"description": "What a new server or volume is to be like"})


class RestoreProgress(Schema):
    bytes_total = fields.Integer(required=True)
    bytes_done = fields.Integer(required=True)
    percent = fields.Integer(required=True, allow_none=True, metadata={"description": "null: not known yet"})


class RestoreShown(Schema):
    """One restore."""

    id = fields.String(required=True)
    project_id = fields.String(required=True)
    user_id = fields.String(required=True, allow_none=True)
    backupjobrun_id = fields.String(
        required=True, allow_none=True, metadata={"description": "The restore point; null: it is gone since"}
    )
    state = fields.String(required=True, validate=validate.OneOf(list(RestoreState)))
    target = fields.Nested(TargetShown, required=True)
    vms = fields.List(fields.Nested(VmOfRestore), required=True)
    progress = fields.Nested(RestoreProgress, required=True)
    made = fields.List(
        fields.Dict(), required=True, metadata={"description": "What it has made or was about to: files, VMs"}
    )
    result = fields.Dict(required=True, allow_none=True, metadata={"description": "What there is now, once it is done"})
    error = fields.Nested(Said, required=True, allow_none=True)
    created_at = Instant(required=True)
    started_at = Instant(required=True, allow_none=True)
    finished_at = Instant(required=True, allow_none=True)
    cancel_requested_at = Instant(required=True, allow_none=True)
    request_id = fields.String(required=True, allow_none=True)


_SAME = ("id", "project_id", "user_id", "backupjobrun_id", "state", "made", "result", "created_at", "started_at",
         "finished_at", "cancel_requested_at", "request_id")  # fmt: skip
_TARGET = ("kind", "directory", "host", "format", "start")
#: in the place of words that may name what another project has
_NOT_HERE = "what it says of the other project is shown to whoever began it"


def shown(restore: Restore) -> dict[str, Any]:
    """For `RestoreShown`, as the caller may see it: what is in another project is shown to whoever began it, and to
    operators."""
    who = identity()
    whole = _whole(restore)
    if whole["target"]["project"] is None or who.is_admin or restore.user_id == who.user_id:
        return whole
    return {
        **whole,
        "target": {**whole["target"], "cloud": {}},
        "vms": [{**vm, "overwrite": {}} for vm in whole["vms"]],
        "made": [],
        "result": None,
        "error": whole["error"] and {"code": whole["error"]["code"], "message": _NOT_HERE},
    }


def _whole(restore: Restore) -> dict[str, Any]:
    total, done = restore.bytes_total, restore.bytes_done
    return {
        **{name: getattr(restore, name) for name in _SAME},
        "target": {
            **{name: restore.target[name] for name in _TARGET},
            "project": restore.target.get("project"),
            "cloud": restore.target.get("cloud", {}),
        },
        "vms": [
            {"id": vm["vm"], "disks": vm["disks"], "name": vm["name"], "overwrite": vm.get("overwrite", {})}
            for vm in restore.target["vms"]
        ],
        "error": said(restore.error),
        "progress": {
            "bytes_total": total,
            "bytes_done": done,
            "percent": min(100, done * 100 // total) if total else None,
        },
    }


@NOUN.operation(
    "GET", "", rule="list", allow=Allow.READER_OR_ADMIN, does="List the restores.",
    query=page_query(
        restores.COLUMNS, state=Choice(RestoreState), created_at=When(),
        backupjobrun_id=Text(most=36, pattern=IdConverter.regex),
    ),
    returns=page_of("restores", RestoreShown), errors=(400,),
)  # fmt: skip
def list_restores(tenant_id: str, query: dict[str, Any]) -> Any:
    where = []
    if "state" in query:
        where.append(Restore.state.in_([RestoreState(word) for word in query["state"]]))
    if "created_at" in query:
        where.append(query["created_at"](Restore.created_at))
    if "backupjobrun_id" in query:
        where.append(Restore.backupjobrun_id == query["backupjobrun_id"])
    with services().database.reading() as session:
        page = restores.listed(session, tenant_id, wanted(query, settings().limits.max_page_size), where)
    return collection("restores", [shown(row) for row in page.rows], page.rows[-1].id if page.more else None)


@NOUN.operation(
    "GET", "/<id:restore_id>", rule="show", allow=Allow.READER_OR_ADMIN, does="Show a restore.", returns=RestoreShown
)
def show(tenant_id: str, restore_id: str) -> Any:
    with services().database.reading() as session:
        return shown(restores.get(session, tenant_id, restore_id))


@NOUN.operation(
    "POST", "/<id:restore_id>/cancel", rule="cancel", allow=Allow.MEMBER_OR_ADMIN, does="Cancel a restore.",
    returns=RestoreShown, status=202, repeatable=True,
)  # fmt: skip
def cancel(tenant_id: str, restore_id: str) -> Any:
    def do(session: Session) -> flask.Response:
        restore = restores.get(session, tenant_id, restore_id)
        restores.request_cancel(session, restore.id)
        location = links.address(tenant_id, "restores", restore.id)
        return answer(RestoreShown, shown(restore), 202, {"Location": location})

    response = services().database.run(lambda session: idempotency.once(session, lambda: do(session)))
    services().wake()
    return response


def begin(tenant_id: str, run_of: Any, body: Mapping[str, Any]) -> flask.Response:
    """A restore, queued, with all that it reads pinned; or, with `dry_run`, its plan. `run_of`: of a session the run.

    Raises `NotAllowed`, `RequestInvalid`, `StateConflict`, `RowNotFound`, `LimitExceeded`, `TargetTokenRefused`,
    `TrustRefused`, `IdentityUnavailable`, `CloudRefused`, `CloudUnavailable`.
    """
    if {"directory", "host"} & body["target"].keys():
        frame().policy.require(ANYWHERE.name, identity(), tenant_id)
    target = target_project.of(tenant_id, body)
    _require_owned(tenant_id, run_of, body)
    _require_volumes(tenant_id, run_of, body, target)
    if body["dry_run"]:
        return _planned(run_of, body, target)
    with delegation.trusted_in(target) as trust:
        response = services().database.run(
            lambda session: idempotency.once(session, lambda: _queued(session, tenant_id, run_of(session), body, trust))
        )
    services().wake()
    return response


def _require_owned(tenant_id: str, run_of: Any, body: Mapping[str, Any]) -> None:
    """What is overwritten belongs to the project now: Nova's word counts, also while a server is on no host, as in the
    moment when Nova defines it anew. Raises `RowNotFound`."""
    if body["target"]["kind"] != "in_place":
        return
    with services().database.reading() as session:
        ids = frozenset(vm.vm_id for vm in _chosen(session, run_of(session), body, new_id()))
    named = servers.among(tenant_id, ids)
    unowned = tenant_id == settings().unowned_vms_project
    with services().database.reading() as session:
        for id in sorted(ids - named.servers):
            agents.vm(session, tenant_id, id, unowned=unowned, owned=named.agents_say)


def _require_volumes(tenant_id: str, run_of: Any, body: Mapping[str, Any], target: Target | None) -> None:
    """What is written over is the project's that it goes into, as the caller's token for that shows it. Raises
    `RequestInvalid`."""
    if not any(vm.get("overwrite") for vm in body.get("vms") or ()):
        return
    with services().database.reading() as session:
        wanted = restore_plan.overwritten(_chosen(session, run_of(session), body, new_id()))
    if target is None:
        problems = servers.unfit(tenant_id, wanted)
    else:
        problems = servers.unfit(target.project_id, wanted, target.access)
    if problems:
        raise RequestInvalid(problems=problems)


def _planned(run_of: Any, body: Mapping[str, Any], target: Target | None) -> flask.Response:
    with services().database.reading() as session:
        run = run_of(session)
        vms = _chosen(session, run, body, new_id())
        made = restore_plan.plan(session, run, body, vms, settings().agent_timeout)
    if body["target"]["kind"] in CLOUD_KINDS:
        lacking = servers.lacking(restore_plan.needs(body, vms), target and target.access)
        made["problems"] += [{"code": code, "message": message} for code, message in lacking]
    return answer(restore_plan.RestorePlan, made, 200)


def _queued(
    session: Session, tenant_id: str, run: BackupJobRun, body: Mapping[str, Any], trust: str | None
) -> flask.Response:
    allowed.one_more_restore(session, tenant_id)
    id, ids = new_id(), request_id.current()
    vms = _chosen(session, run, body, id)
    restore = restores.create(
        session, run, id=id, target=restore_plan.document(body, vms), user_id=identity().user_id,
        trust_id=trust, request_id=ids.local if ids else None,
        bytes_total=sum(disk.size for vm in vms for disk in vm.disks),
    )  # fmt: skip
    read = {copy.id for vm in vms for disk in vm.disks for copy in disk.chain}
    backups.pin(session, PinHolder.RESTORE, id, read)
    session.refresh(restore)
    return answer(RestoreShown, shown(restore), 202, {"Location": links.address(tenant_id, "restores", id)})


def _chosen(session: Session, run: BackupJobRun, body: Mapping[str, Any], restore_id: str) -> list[restore_plan.Vm]:
    if run.state not in runs.POINTS:
        points = ", ".join(runs.POINTS)
        raise StateConflict(noun=runs.NOUN, id=run.id, found=run.state, wanted=points, to="restored from")
    vms = restore_plan.chosen(session, run, body, restore_id)
    if body["target"]["kind"] in CLOUD_KINDS and services().grantor is None:
        raise RequestInvalid(problems=[("target.kind", "This service has no cloud to restore into.")])
    return vms
