"""`raksha-manage limit …`: projects that may have more, or less, than the configuration says."""

from __future__ import annotations

import argparse
from typing import Any

from raksha.api.allowed import OF_A_PROJECT
from raksha.cmd.output import Output, table
from raksha.db import migrate, usage
from raksha.db.session import Database

_FIELDS = {name: field for field, name in OF_A_PROJECT.items()}
_MOST = 2**63 - 1


def add_to(nouns: Any) -> None:
    verbs = nouns.add_parser("limit", help="what single projects may have").add_subparsers(
        metavar="COMMAND", required=True
    )
    about = "list the projects with limits of their own; all others have those of the configuration"
    command = verbs.add_parser("list", help=about, description=about)
    command.add_argument("project", nargs="?", metavar="PROJECT", help="of this one only")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(call=_list)

    about = "give a project a limit of its own"
    command = verbs.add_parser("set", help=about, description=about)
    command.add_argument("project", metavar="PROJECT")
    command.add_argument("limit", metavar="LIMIT", choices=list(OF_A_PROJECT), help=", ".join(OF_A_PROJECT))
    command.add_argument("value", metavar="NUMBER", type=_number, help="-1: any number")
    command.set_defaults(call=_set)

    about = "let the limit of the configuration hold for a project again"
    command = verbs.add_parser("unset", help=about, description=about)
    command.add_argument("project", metavar="PROJECT")
    command.add_argument("limit", metavar="LIMIT", choices=list(OF_A_PROJECT), help=", ".join(OF_A_PROJECT))
    command.set_defaults(call=_set, value=None)


def _number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -2
    if not -1 <= number <= _MOST:
        raise argparse.ArgumentTypeError("a number, or -1 for any number")
    return number


def _list(database: Database, options: argparse.Namespace, output: Output) -> None:
    migrate.check(database)
    with database.reading() as session:
        found = [each for each in usage.all_limits(session) if options.project in (None, each.project_id)]
    document = [
        {"project": each.project_id, "limit": _FIELDS.get(each.name, each.name), "value": each.value} for each in found
    ]
    lines = [(each["project"], each["limit"], each["value"] if each["value"] != -1 else "any") for each in document]
    output.result({"limits": document}, table(("PROJECT", "LIMIT", "NUMBER"), lines) if lines else ["no limits"])


def _set(database: Database, options: argparse.Namespace, output: Output) -> None:
    migrate.check(database)
    database.run(lambda s: usage.set_limit(s, options.project, OF_A_PROJECT[options.limit], options.value))
    now = "as configured" if options.value is None else "any number" if options.value == -1 else options.value
    output.result({}, [f"{options.limit} of project {options.project}: {now}"])
