"""The command `raksha` for the service: `raksha job list`. Its commands are those of `openstack protection` as well.

Exit codes: docs/commands.md. Whatever goes wrong is one line that says what to do next; `--debug` shows what was sent
and where it failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from cliff.app import App
from cliff.commandmanager import CommandManager

from raksha.client import Client, errors, login, words
from raksha.client.commands import COMMANDS

_NOUNS = {
    "job": "what is protected, and when",
    "run": "executions of jobs, and the restore points that they leave",
    "restore": "what is given back",
    "verification": "whether restore points still hold what was stored",
    "vm": "what can be protected",
    "vault": "where jobs may store",
    "schedule": "when something would run",
    "usage": "what the project has",
    "limits": "what it may have",
    "service": "the processes of Raksha, for operators",
}
_HELP = """\
usage: raksha [--os-cloud CLOUD | --state-dir DIR] [--url URL] COMMAND ...

Data protection for virtual machines.

{nouns}
  complete                                    completion for bash: raksha complete > /etc/bash_completion.d/raksha

On a host by itself:
  serve                                       the whole service for this host, in one process
  local                                       protect the VMs of this host, without any service

`raksha help COMMAND` or `raksha COMMAND --help` has the options and examples of each.

examples:
  raksha vm list
  raksha job create nightly --vm web --every day --at 02:00 --timezone Europe/Paris --keep-daily 7
  raksha job run nightly --wait
  raksha restore create latest --job nightly --name web-again --start --wait

who you are:
  on the host of a `raksha serve`: nothing has to be said; --state-dir DIR (RAKSHA_STATE_DIR) if it has its own folder
  from elsewhere: OS_AUTH_TYPE=http_basic, OS_ENDPOINT, OS_USERNAME, OS_PASSWORD, OS_PROJECT_ID
  in a cloud: OS_CLOUD and clouds.yaml, or the OS_* variables of an openrc file
  --url URL (RAKSHA_URL): where the API is; `raksha help options` has all options of the login
"""


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    given = list(arguments)
    if not given or given in (["-h"], ["--help"], ["help"]):
        print(overview(), end="", file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    try:
        return Shell(given).run(given)
    except errors.ClientError as error:  # before any command was found
        print(f"raksha: {words.plain(error.told())}", file=sys.stderr)
        return error.exit_code


def overview() -> str:
    """What `raksha --help` says."""
    lines = []
    for noun, about in _NOUNS.items():
        verbs = "|".join(name.split()[1] for name in COMMANDS if name.split()[0] == noun)
        lines.append(f"  {f'{noun} {verbs}':42}  {about}" if len(verbs) < 36 else f"  {noun} {verbs}\n{'':46}{about}")
    return _HELP.format(nouns="\n".join(lines))


class Managed:
    """What commands find as `app.client_manager`."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    @cached_property
    def data_protection(self) -> Client:
        """Raises `NotLoggedIn`."""
        return login.client(self._shell.options, self._shell.config)


class Shell(App):
    """One call of `raksha`."""

    NAME = "raksha"

    def __init__(self, arguments: list[str]) -> None:
        # what openstacksdk says to those who develop with it
        warnings.filterwarnings("ignore", module="openstack")
        from openstack.config import OpenStackConfig

        self._arguments = arguments
        self.config: Any = OpenStackConfig(pw_func=login.asked)
        self.client_manager = Managed(self)
        manager = CommandManager(None)
        for name, where in COMMANDS.items():
            manager.commands[name] = importlib.metadata.EntryPoint(name, where, "raksha")
        version = importlib.metadata.version("raksha")
        super().__init__("Data protection for virtual machines.", version, manager, deferred_help=True)

    def build_option_parser(
        self, description: str | None, version: str | None, _: Any = None
    ) -> argparse.ArgumentParser:
        # an option of a command, such as --state, is no short form of one of these
        strict = {"allow_abbrev": False, "prog": self.NAME}
        parser: argparse.ArgumentParser = super().build_option_parser(description, version, strict)
        parser.add_argument("--url", metavar="URL", help="where the API is (Env: RAKSHA_URL)")
        parser.add_argument(
            "--state-dir",
            metavar="DIR",
            help="of a `raksha serve` on this host, to log in as its user (Env: RAKSHA_STATE_DIR)",
        )
        self.config.register_argparse_arguments(parser, self._arguments, ["data-protection"])
        if "--os-project-id" not in parser.format_usage():  # of Keystone's plugins alone
            parser.add_argument("--os-project-id", metavar="ID", help="whose things these are (Env: OS_PROJECT_ID)")
        return parser

    def configure_logging(self) -> None:
        """Only what we say ourselves, unless somebody wants to know more."""
        super().configure_logging()
        if not self.options.debug:
            for name in ("keystoneauth", "openstack", "requests", "urllib3", "stevedore", "cliff", "os_client_config"):
                logging.getLogger(name).setLevel(logging.ERROR)

    def print_help_if_requested(self) -> None:
        if self.options.deferred_help:
            self.interact()
            sys.exit(0)

    def interact(self) -> None:
        """No command was given."""
        print(overview(), end="", file=self.stdout)

    def run_subcommand(self, argv: list[str]) -> int:
        if argv == ["help", "options"]:
            self.parser.print_help()
            return 0
        if argv[0] == "help" or self._known(argv):
            return int(super().run_subcommand(argv))
        return self._unknown(argv)

    def _known(self, argv: list[str]) -> bool:
        try:
            self.command_manager.find_command(argv)
        except ValueError:
            return False
        return True

    def _unknown(self, argv: list[str]) -> int:
        noun = argv[0]
        like = [name for name in COMMANDS if name.split()[0] == noun] or self.get_fuzzy_matches(noun)
        asked = " ".join(word for word in argv if not word.startswith("-"))
        hint = f"There is: {', '.join(like)}." if like else "`raksha --help` shows what there is."
        print(f"raksha: {words.plain(asked)!r} is no command. {hint}", file=sys.stderr)
        return 0 if {"-h", "--help"} & set(argv) and noun in _NOUNS else 2
