"""`services`: the processes of Raksha, for operators: who is there, who takes new work."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields, validate
from sqlalchemy.orm import Session

from raksha.api import etag
from raksha.api.answers import Instant, page_of
from raksha.api.bodies import Body, Text
from raksha.api.nouns import Noun
from raksha.api.pagination import Choice, collection, page_query, wanted
from raksha.api.policy import Allow
from raksha.api.services import services, settings
from raksha.db import rows
from raksha.db import services as processes
from raksha.db.columns import SECOND
from raksha.db.models import Service
from raksha.states import ServiceKind, ServiceState

NOUN = Noun("services", "/v1/<project:tenant_id>/services", "The processes of Raksha.")

#: seconds of silence after which a service can be forgotten
_SILENT = 600.0


class ServiceShown(Schema):
    """A process. What its operator wants of it is its state; whether it is there, its heartbeat tells."""

    id = fields.String(required=True)
    kind = fields.String(required=True, validate=validate.OneOf(list(ServiceKind)))
    name = fields.String(required=True)
    host = fields.String(required=True)
    zone = fields.String(required=True, allow_none=True)
    state = fields.String(required=True, validate=validate.OneOf(list(ServiceState)))
    state_reason = fields.String(required=True, allow_none=True)
    alive = fields.Boolean(required=True, metadata={"description": "It gave a heartbeat lately"})
    version = fields.String(required=True)
    capabilities = fields.Dict(required=True)
    capacity = fields.Integer(required=True, metadata={"description": "Tasks that it may hold at once"})
    running = fields.Integer(required=True, metadata={"description": "Tasks that it holds"})
    started_at = Instant(required=True)
    heartbeat_at = Instant(required=True)


_SAME = ("id", "kind", "name", "host", "zone", "state", "state_reason", "version", "capabilities", "capacity",
         "started_at", "heartbeat_at")  # fmt: skip


def shown(service: Service, now: int) -> dict[str, Any]:
    """For `ServiceShown`. `now`: by the database's clock."""
    alive = service.heartbeat_at > now - round(settings().agent_timeout * SECOND)
    return {**{name: getattr(service, name) for name in _SAME}, "running": service.load, "alive": alive}


@NOUN.operation(
    "GET", "", rule="list", allow=Allow.ADMIN, does="List the processes of Raksha.",
    query=page_query(
        processes.COLUMNS, kind=Choice(ServiceKind), state=Choice(ServiceState), host=Text(least=1, most=255)
    ),
    returns=page_of("services", ServiceShown), errors=(400,),
)  # fmt: skip
def list_services(tenant_id: str, query: dict[str, Any]) -> Any:  # noqa: ARG001 they are nobody's
    where = []
    if "kind" in query:
        where.append(Service.kind.in_([ServiceKind(word) for word in query["kind"]]))
    if "state" in query:
        where.append(Service.state.in_([ServiceState(word) for word in query["state"]]))
    if "host" in query:
        where.append(Service.host == query["host"])
    with services().database.reading() as session:
        page = processes.listed(session, wanted(query, settings().limits.max_page_size), where)
        now = rows.clock(session)
    return collection("services", [shown(row, now) for row in page.rows], page.rows[-1].id if page.more else None)


@NOUN.operation(
    "GET", "/<id:service_id>", rule="show", allow=Allow.ADMIN, does="Show a process of Raksha.", returns=ServiceShown
)
def show(tenant_id: str, service_id: str) -> Any:  # noqa: ARG001
    with services().database.reading() as session:
        service, now = processes.get(session, service_id), rows.clock(session)
    return shown(service, now), etag.headers(_version(service))


class ServiceChanged(Body):
    """What its operator wants of it."""

    state = fields.String(
        required=True, validate=validate.OneOf([ServiceState.ENABLED, ServiceState.DRAINING, ServiceState.DISABLED]),
        metadata={"description": "draining: it ends what it has and takes nothing new; disabled: nothing new"},
    )  # fmt: skip
    reason = Text(most=255, load_default=None, allow_none=True)


@NOUN.operation(
    "PUT", "/<id:service_id>", rule="update", allow=Allow.ADMIN, does="Enable, drain or disable a process of Raksha.",
    body=ServiceChanged, returns=ServiceShown, if_match=True, errors=(409,),
)  # fmt: skip
def update(tenant_id: str, service_id: str, body: dict[str, Any]) -> Any:  # noqa: ARG001
    def work(session: Session) -> tuple[Service, int]:
        service = processes.get(session, service_id)
        etag.require(_version(service), processes.NOUN, service.id)
        processes.want(session, service.id, ServiceState(body["state"]), body["reason"])
        return service, rows.clock(session)

    service, now = services().database.run(work)
    services().wake()
    return shown(service, now), etag.headers(_version(service))


@NOUN.operation(
    "DELETE", "/<id:service_id>", rule="delete", allow=Allow.ADMIN,
    does="Forget a process that has been silent for ten minutes.", status=204, errors=(409,),
)  # fmt: skip
def delete(tenant_id: str, service_id: str) -> Any:  # noqa: ARG001
    services().database.run(lambda session: processes.remove(session, service_id, _SILENT))


def _version(service: Service) -> str:
    return etag.digest(service.state, service.state_reason)
