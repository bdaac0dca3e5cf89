"""What people meet of the programs: commands from the client's table and from argparse's parsers; errors."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import re
import textwrap
from typing import Any

from cliff.sphinxext import AutoprogramCliffDirective
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from raksha import errors
from raksha.client.commands import COMMANDS
from raksha.cmd import local, manage, serve


class RakshaCommands(AutoprogramCliffDirective):
    """As cliff's own, of commands that `raksha` finds in a table in the place of entry points.

    `.. raksha-commands:: job *`: the words that it answers to.
    """

    def _load_commands(self) -> dict[str, Any]:
        found = {}
        for words, where in COMMANDS.items():
            module, _, name = where.partition(":")
            if any(fnmatch.fnmatch(words, pattern) for pattern in self.arguments[0].split(",")):
                found[words] = getattr(importlib.import_module(module), name)
        if not found:
            raise self.error(f"there is no command {self.arguments[0]!r}")
        return found

    def _load_app(self) -> None:
        return None


RakshaCommands.final_argument_whitespace = True


class Errors(SphinxDirective):
    """`.. raksha-errors::`: the classes of raksha/errors.py with their texts."""

    def run(self) -> list[nodes.Node]:
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", "", "   * - code", "     - exit code"]
        lines += ["     - message", "     - hint"]
        for error in vars(errors).values():
            if isinstance(error, type) and issubclass(error, errors.RakshaError) and "code" in vars(error):
                cells = [f"``{error.code}``", error.exit_code, _text(error.message), _text(error.hint)]
                lines += [f"   * - {cells[0]}", *(f"     - {cell}" for cell in cells[1:])]
        section = nodes.section()
        section.document = self.state.document
        self.state.nested_parse(StringList(lines, source="raksha/errors.py"), 0, section)
        return section.children


def _text(message: str) -> str:
    """As reStructuredText: fields in braces stay, `names` are code."""
    parts = re.split(r"`([^`]+)`", message)
    for number, part in enumerate(parts):
        parts[number] = f"``{part}``" if number % 2 else re.sub(r"([\\*|_])", r"\\\1", part).replace("\n", " ")
    return "".join(parts)


def of_this_host() -> argparse.ArgumentParser:
    """`raksha local` and `raksha serve`."""
    parser = argparse.ArgumentParser(prog="raksha")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    local.add_to(verbs, None)
    serve.add_to(verbs)
    return _readable(parser)


def of_operators() -> argparse.ArgumentParser:
    """`raksha-manage`."""
    return _readable(manage._parser())


def _readable(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """With texts as reStructuredText, which is what autoprogram takes them for; of all its commands as well."""
    parser.description = _text(parser.description or "")
    if parser.epilog:  # examples, lines as they stand
        head, _, lines = parser.epilog.partition("\n")
        parser.epilog = f"{_text(head)}:\n\n{textwrap.indent(lines, '   ')}"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _readable(each)
        elif action.help:
            action.help = _text(action.help)
    return parser


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("raksha-commands", RakshaCommands)
    app.add_directive("raksha-errors", Errors)
    return {"parallel_read_safe": True}
