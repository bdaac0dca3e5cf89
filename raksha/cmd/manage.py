"""`raksha-manage`: what operators do to the service's database and its users. Exit codes: docs/cli.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from raksha import config_check, config_database
from raksha.cmd import manage_catalog, manage_limits, manage_services, manage_users, manage_vaults
from raksha.cmd.output import Output
from raksha.cmd.state_folder import database_url
from raksha.db import migrate
from raksha.db.session import Database, connect
from raksha.errors import BadArgument, RakshaError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Never returns."""
    options = _parser().parse_args(arguments)
    as_json = getattr(options, "json", False)
    try:
        config_check.check(options.config)
        database = connect(config_database.load(options.config, _url(options)))
        try:
            options.call(database, options, Output(as_json=as_json))
        finally:
            database.close()
    except RakshaError as error:
        _tell(error, as_json)
        sys.exit(error.exit_code)
    sys.exit(0)


def _url(options: argparse.Namespace) -> str | None:
    """Of the database that options name. Raises `BadArgument`."""
    folder: Path | None = options.state_dir
    if folder is None:
        return options.database  # type: ignore[no-any-return]
    if not (folder / "raksha.db").exists():
        raise BadArgument(argument=f"--state-dir {folder}", detail="no `raksha serve` has a database there")
    return database_url(folder.absolute())


def _tell(error: RakshaError, as_json: bool) -> None:
    if as_json:
        Output(as_json=True).error(error)
        return
    print(f"raksha-manage: {error}", file=sys.stderr)
    if error.advice():
        print(f"  {error.advice()}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raksha-manage", description="Operators' commands for the Raksha service.")
    parser.add_argument("--config", metavar="FILE", type=Path, help="default: /etc/raksha/raksha.conf, if it is there")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--database", metavar="URL", help="instead of [database] connection of the configuration")
    place.add_argument("--state-dir", metavar="DIR", type=Path, help="of a `raksha serve`: its database and its users")
    nouns = parser.add_subparsers(metavar="NOUN", required=True)
    for part in (manage_vaults, manage_services, manage_limits, manage_users, manage_catalog):
        part.add_to(nouns)
    db = nouns.add_parser("db", help="the schema of the database").add_subparsers(metavar="COMMAND", required=True)

    about = "bring the database to the schema of this Raksha"
    command = db.add_parser("upgrade", help=about, description=about)
    command.add_argument("revision", nargs="?", default="head", help="default: the newest")
    command.set_defaults(call=_upgrade)

    about = "tell which schema the database has, and which this Raksha needs"
    db.add_parser("current", help=about, description=about).set_defaults(call=_current)

    about = "bring the database back to an older schema; what that has no place for is lost"
    command = db.add_parser("downgrade", help=about, description=about)
    command.add_argument("revision", help="`base` leaves nothing")
    command.set_defaults(call=_downgrade)
    return parser


def _upgrade(database: Database, options: argparse.Namespace, output: Output) -> None:
    migrate.upgrade(database, options.revision)
    _current(database, options, output)


def _downgrade(database: Database, options: argparse.Namespace, output: Output) -> None:
    migrate.downgrade(database, options.revision)
    _current(database, options, output)


def _current(database: Database, _options: argparse.Namespace, output: Output) -> None:
    found, wanted = migrate.current(database), migrate.head()
    state = "up to date" if found == wanted else f"this Raksha needs {wanted}"
    output.result({}, [f"{found or 'empty'} ({state})"])


if __name__ == "__main__":
    main()
