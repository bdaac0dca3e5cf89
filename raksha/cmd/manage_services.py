"""`raksha-manage service …`: the processes of the service, and whether they take new work."""

from __future__ import annotations

import argparse
from typing import Any

from sqlalchemy.orm import Session

from raksha import config_scheduler
from raksha.cmd.output import Output, table
from raksha.db import migrate, rows, services
from raksha.db.columns import SECOND
from raksha.db.models import Service
from raksha.db.session import Database
from raksha.errors import BadArgument, RowNotFound
from raksha.states import ServiceKind, ServiceState

_WANTED = {
    "enable": (ServiceState.ENABLED, "let it take new work again"),
    "disable": (ServiceState.DISABLED, "let it take nothing new"),
    "drain": (ServiceState.DRAINING, "let it end what it has and take nothing new; the list says when it is drained"),
}


def add_to(nouns: Any) -> None:
    verbs = nouns.add_parser("service", help="the processes of the service").add_subparsers(
        metavar="COMMAND", required=True
    )
    about = "list the processes: where they run, whether they are alive, what is wanted of them"
    command = verbs.add_parser("list", help=about, description=about)
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(call=_list)
    for word, (state, about) in _WANTED.items():
        command = verbs.add_parser(word, help=about, description=about)
        command.add_argument("name", help="its name or id, as the list has it")
        command.add_argument("--kind", choices=list(ServiceKind), help="where an agent and a scheduler share a name")
        command.add_argument("--reason", metavar="TEXT", help="for whoever looks at the list")
        command.set_defaults(call=_want, state=state)


def _list(database: Database, options: argparse.Namespace, output: Output) -> None:
    migrate.check(database)
    timeout = config_scheduler.load(options.config).agent_timeout
    with database.reading() as session:
        found, now = services.everyone(session), rows.clock(session)
    document = [_shown(each, now, timeout) for each in found]
    heads = ("KIND", "NAME", "ZONE", "STATE", "ALIVE", "WORK", "VERSION", "REASON")
    lines = [(each["kind"], each["name"], each["zone"], each["state"], _alive(each),
              f"{each['running']}/{each['capacity']}", each["version"], each["reason"])
             for each in document]  # fmt: skip
    output.result({"services": document}, table(heads, lines) if lines else ["no processes have registered"])


def _shown(service: Service, now: int, timeout: float) -> dict[str, Any]:
    silent = max(now - service.heartbeat_at, 0) / SECOND
    return {
        "id": service.id, "kind": str(service.kind), "name": service.name, "host": service.host, "zone": service.zone,
        "state": str(service.state), "reason": service.state_reason, "alive": silent < timeout,
        "silent_seconds": round(silent, 1), "running": service.load, "capacity": service.capacity,
        "version": service.version,
    }  # fmt: skip


def _alive(shown: dict[str, Any]) -> str:
    return "yes" if shown["alive"] else f"silent for {shown['silent_seconds']:.0f} s"


def _want(database: Database, options: argparse.Namespace, output: Output) -> None:
    migrate.check(database)

    def work(session: Session) -> Service:
        service = _one(session, options.name, options.kind)
        services.want(session, service.id, options.state, options.reason)
        return services.get(session, service.id)

    service = database.run(work)
    output.result({}, [f"{service.kind} {service.name} is {service.state}; it hears of it with its next heartbeat"])


def _one(session: Session, name: str, kind: str | None) -> Service:
    """Raises `RowNotFound`, `BadArgument` for a name that two have."""
    named = [each for each in services.everyone(session) if name in (each.name, each.id) and kind in (None, each.kind)]
    if not named:
        raise RowNotFound(noun=kind or services.NOUN, id=name)
    if len(named) > 1:
        kinds = " and a ".join(each.kind for each in named)
        raise BadArgument(argument=name, detail=f"a {kinds} have this name: say which with --kind")
    return named[0]
