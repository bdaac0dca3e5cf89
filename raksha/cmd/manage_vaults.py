"""`raksha-manage vault …`: where the service may store."""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import closing
from typing import Any

import msgspec
from sqlalchemy.orm import Session

from raksha.cmd.output import Output, table
from raksha.db import migrate, vaults
from raksha.db.session import Database
from raksha.errors import BadArgument
from raksha.vault.address import open_store
from raksha.vault.credentials import TokenCredentials

_NAME_LENGTH = 255


def add_to(nouns: Any) -> None:
    verbs = nouns.add_parser("vault", help="where backups may be stored").add_subparsers(
        metavar="COMMAND", required=True
    )

    command = _verb(verbs, "list", _list, "list the vault services: where they are, and who may use them")
    command.add_argument("--json", action="store_true", help="one JSON document")

    command = _verb(verbs, "add", _add, "add a vault service")
    command.add_argument("name")
    command.add_argument("url", help="file:///path, which every agent and scheduler must reach, or swift://[prefix]")
    _settings(command)

    command = _verb(verbs, "set", _set, "change a vault service; what is not named stays")
    command.add_argument("name")
    command.add_argument("--url", help="while nobody has stored anything there")
    _settings(command)

    about = "make rows again of the restore points in a project's vault, after the database was lost or restored"
    command = _verb(verbs, "import", _import, about)
    command.add_argument("name", help="the vault service that holds it: `vault add` it first")
    command.add_argument("project", help="id of the project whose vault it is")
    about = "although another deployment, or a host, writes to it: that one is refused from then on"
    command.add_argument("--take-over", action="store_true", help=about)
    command.add_argument("--dry-run", action="store_true", help="tell what would come back; change nothing")
    command.add_argument("--json", action="store_true", help="one JSON document")

    for word, about in (("enable", "let jobs use a vault service again"),
                        ("disable", "let no new run use a vault service; restores still do")):  # fmt: skip
        command = _verb(verbs, word, _enable, about)
        command.add_argument("name")
        command.set_defaults(enabled=word == "enable")


def _verb(verbs: Any, word: str, call: Any, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = verbs.add_parser(word, help=about, description=about)
    command.set_defaults(call=call)
    return command


def _settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--project", metavar="ID", help="only this project may use it; `all`: every one")
    command.add_argument("--max-runs", metavar="N", help="runs that write to it at once; `any`: any number")
    command.add_argument("--account", choices=["shared", "project", "service"],
                         help="of Swift: all projects in the account of the service; each in its own; or each in an "
                         "account beside its own (SERVICE_) that it opens through the service alone")  # fmt: skip
    command.add_argument("--default", action="store_true", help="for jobs that name none")


def _list(database: Database, _options: argparse.Namespace, output: Output) -> None:
    migrate.check(database)
    with database.reading() as session:
        found = vaults.all_services(session)
        projects = Counter(vault.vault_service_id for vault in vaults.all_vaults(session))
    document = [
        {
            "id": each.id, "name": each.name, "kind": each.kind, "url": each.url, "enabled": each.enabled,
            "is_default": each.is_default, "project": each.project_id, "max_runs": each.max_runs,
            "account": (each.settings or {}).get("account", "shared"), "projects": projects[each.id],
        }
        for each in found
    ]  # fmt: skip
    heads = ("NAME", "URL", "STATE", "FOR", "MAX RUNS", "PROJECTS STORED")
    rows = [(each["name"], each["url"], _state(each), each["project"] or "all", each["max_runs"] or "any",
             each["projects"]) for each in document]  # fmt: skip
    output.result({"vaults": document}, table(heads, rows) if rows else ["no vault services"])


def _state(each: dict[str, Any]) -> str:
    return ("enabled" if each["enabled"] else "disabled") + (", default" if each["is_default"] else "")


def _add(database: Database, options: argparse.Namespace, output: Output) -> None:
    migrate.check(database)
    if not options.name.strip() or len(options.name) > _NAME_LENGTH or not options.name.isprintable():
        raise BadArgument(argument="name", detail=f"it has 1 to {_NAME_LENGTH} characters that can be printed")
    values = {"url": options.url, "kind": _kind(options.url), **_values(options, {})}

    def work(session: Session) -> None:
        made = vaults.add(session, options.name, **values)
        if options.default:
            vaults.make_default(session, made.id)

    database.run(work)
    output.result({}, [f"vault service {options.name} is there"])


def _set(database: Database, options: argparse.Namespace, output: Output) -> None:
    migrate.check(database)

    def work(session: Session) -> None:
        service = vaults.named(session, options.name)
        values = _values(options, service.settings or {})
        if options.url is not None and options.url != service.url:
            if any(vault.vault_service_id == service.id for vault in vaults.all_vaults(session)):
                detail = f"projects have stored at {service.url} already; add another vault service for new backups"
                raise BadArgument(argument="--url", detail=detail)
            values |= {"url": options.url, "kind": _kind(options.url)}
        if not values and not options.default:
            raise BadArgument(argument="vault set", detail="it names nothing to be changed")
        if values:
            vaults.change(session, service.id, **values)
        if options.default:
            vaults.make_default(session, service.id)

    database.run(work)
    output.result({}, [f"vault service {options.name} is changed"])


def _import(database: Database, options: argparse.Namespace, output: Output) -> None:
    # what only this needs
    from raksha.scheduler.importing import import_vault
    from raksha.scheduler.places import vault_url

    migrate.check(database)
    with database.reading() as session:
        service = vaults.named(session, options.name)
    url = vault_url(service, options.project)
    with closing(open_store(url)) as store:
        done = import_vault(
            database, service, options.project, store, take_over=options.take_over, dry_run=options.dry_run
        )
    word = "would come back" if options.dry_run else "are back"
    lines = [f"{len(done.runs)} restore points of {len(done.jobs)} unknown jobs {word}; {done.known} were known"]
    lines += [f"left out: {what}: {why}" for what, why in sorted(done.left_out.items())]
    if done.jobs and not options.dry_run:
        lines.append(
            "The jobs are paused, without schedule and retention: their owners say these anew and take them over."
        )
    output.result({"url": url, **msgspec.to_builtins(done)}, lines)


def _enable(database: Database, options: argparse.Namespace, output: Output) -> None:
    migrate.check(database)
    database.run(lambda s: vaults.change(s, vaults.named(s, options.name).id, enabled=options.enabled))
    output.result({}, [f"vault service {options.name} is {'enabled' if options.enabled else 'disabled'}"])


def _values(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Columns that options name. Raises `BadArgument`."""
    values: dict[str, Any] = {}
    if options.project is not None:
        values["project_id"] = None if options.project == "all" else options.project
    if options.max_runs is not None:
        values["max_runs"] = None if options.max_runs == "any" else _number(options.max_runs)
    if options.account is not None:
        values["settings"] = {**settings, "account": options.account}
    return values


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10000:
        raise BadArgument(argument=f"--max-runs {text}", detail="a number from 1 to 10000, or `any`")
    return int(text)


def _kind(url: str) -> str:
    """Raises `BadVaultUrl`. Nothing is asked of the vault, for it may be in nobody's reach from here."""
    nobody = TokenCredentials(storage_url="http://localhost", token="none")  # noqa: S106 it is never sent
    with closing(open_store(url, credentials=nobody)):
        return "swift" if url.startswith("swift:") else "directory"
