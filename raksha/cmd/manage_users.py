"""`raksha-manage user …`: the users of `http_basic`. Passwords are asked for, read from standard input, or made."""

from __future__ import annotations

import argparse
import getpass
import secrets
import sys
from pathlib import Path
from typing import Any

from raksha import config, config_api
from raksha.api import user_file
from raksha.cmd.output import Output, table
from raksha.config_api import ApiSettings
from raksha.db.session import Database
from raksha.errors import BadArgument


def add_to(nouns: Any) -> None:
    verbs = nouns.add_parser("user", help="who may log in (http_basic)").add_subparsers(
        metavar="COMMAND", required=True
    )
    command = _verb(verbs, "list", _list, "list the users with their projects and roles")
    command.add_argument("--json", action="store_true", help="one JSON document")

    command = _verb(verbs, "add", _add, "add a user; the file is made if it is not there")
    command.add_argument("name")
    command.add_argument("--project", metavar="ID", required=True, help="whose backups he sees")
    command.add_argument("--roles", metavar="ROLE[,ROLE]", default="member", help="reader, member (default) or admin")
    _password(command)

    command = _verb(verbs, "passwd", _passwd, "give a user another password")
    command.add_argument("name")
    _password(command)

    _verb(verbs, "remove", _remove, "remove a user").add_argument("name")


def _verb(verbs: Any, word: str, call: Any, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = verbs.add_parser(word, help=about, description=about)
    command.add_argument("--users-file", metavar="FILE", type=Path,
                         help="default: [api] users_file, or that of --state-dir")  # fmt: skip
    command.set_defaults(call=call)
    return command


def _password(command: argparse.ArgumentParser) -> None:
    command.add_argument("--generate", action="store_true",
                         help="make a password and print it; otherwise it is asked for, or the first line of standard "
                         "input where that is no terminal")  # fmt: skip


def _file(options: argparse.Namespace) -> Path:
    """Raises `SettingsWrong`."""
    if options.users_file is not None:
        return Path(options.users_file).absolute()
    if options.state_dir is not None:
        return Path(options.state_dir).absolute() / "users"
    configured, embedded = config_api.load(options.config).users_file, config.default_state_dir() / "users"
    # where there is nothing but a `raksha serve`, its users are meant
    alone = configured == ApiSettings().users_file and not configured.exists() and embedded.exists()
    return embedded if alone else configured


def _list(_database: Database, options: argparse.Namespace, output: Output) -> None:
    found = user_file.listed(_file(options))
    document = [{"name": user.name, "project": user.project, "roles": sorted(user.roles)} for user in found]
    lines = [(user["name"], user["project"], ", ".join(user["roles"])) for user in document]
    output.result({"users": document}, table(("NAME", "PROJECT", "ROLES"), lines) if lines else ["no users"])


def _add(_database: Database, options: argparse.Namespace, output: Output) -> None:
    password, told = _asked(options)
    file = _file(options)
    user_file.add(file, options.name, password, options.project, options.roles.split(","))
    output.result({}, [f"user {options.name} is in {file}", *told])


def _passwd(_database: Database, options: argparse.Namespace, output: Output) -> None:
    password, told = _asked(options)
    user_file.change_password(_file(options), options.name, password)
    output.result({}, [f"user {options.name} has another password", *told])


def _remove(_database: Database, options: argparse.Namespace, output: Output) -> None:
    user_file.remove(_file(options), options.name)
    output.result({}, [f"user {options.name} is gone"])


def _asked(options: argparse.Namespace) -> tuple[str, list[str]]:
    """A password, and what is to be said of it. Raises `BadArgument`."""
    if options.generate:
        made = secrets.token_urlsafe(24)
        return made, [f"password: {made}"]
    if not sys.stdin.isatty():
        given = sys.stdin.readline().rstrip("\r\n")
    else:
        given = getpass.getpass(f"password of {options.name}: ")
        if getpass.getpass("again: ") != given:
            raise BadArgument(argument="the password", detail="the two are not the same")
    user_file.check_password(given)
    return given, []
