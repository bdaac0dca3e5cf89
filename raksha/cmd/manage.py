"""`raksha-manage`: what operators do to the service's database. Exit codes: docs/cli.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from raksha import config_check, config_database
from raksha.db import migrate
from raksha.db.session import Database, connect
from raksha.errors import RakshaError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Never returns."""
    options = _parser().parse_args(arguments)
    try:
        config_check.check(options.config)
        database = connect(config_database.load(options.config, options.database))
        try:
            options.call(database, options)
        finally:
            database.close()
    except RakshaError as error:
        print(f"raksha-manage: {error}", file=sys.stderr)
        if error.advice():
            print(f"  {error.advice()}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raksha-manage", description="Operators' commands for the Raksha service.")
    parser.add_argument("--config", metavar="FILE", type=Path, help="default: /etc/raksha/raksha.conf, if it is there")
    parser.add_argument("--database", metavar="URL", help="instead of [database] connection of the configuration")
    nouns = parser.add_subparsers(metavar="NOUN", required=True)
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


def _upgrade(database: Database, options: argparse.Namespace) -> None:
    migrate.upgrade(database, options.revision)
    _current(database, options)


def _downgrade(database: Database, options: argparse.Namespace) -> None:
    migrate.downgrade(database, options.revision)
    _current(database, options)


def _current(database: Database, _options: argparse.Namespace) -> None:
    found, wanted = migrate.current(database), migrate.head()
    state = "up to date" if found == wanted else f"this Raksha needs {wanted}"
    print(f"{found or 'empty'} ({state})")


if __name__ == "__main__":
    main()
