"""What all commands share: the client, errors in one line with an exit code, lists, waiting, many at once.

Commands are classes of cliff, used by two front doors: `raksha` (`raksha.client.shell`) and `openstack protection`
(`raksha.client.osc`). Whichever runs them has `app.client_manager.data_protection`, a `raksha.client.Client`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar, cast

from cliff import command, lister, show
from cliff._argparse import SmartHelpFormatter

from raksha.client import Client, errors, interrupts, progress, words
from raksha.client.commands.columns import register_yaml

_OPENSTACK = "openstack"
T = TypeVar("T")


class _AsWritten(SmartHelpFormatter):
    """Examples keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line if line.startswith("  ") else super(_AsWritten, self)._fill_text(line, width, indent)
            for line in text.splitlines()
        )


class Shared(command.Command):
    """Of every command."""

    #: lines of the help
    examples: ClassVar[Sequence[str]] = ()
    #: what was waited for, if it ended badly; told after the result
    trouble: errors.ClientError | None = None

    @property
    def client(self) -> Client:
        return cast(Client, cast(Any, self.app).client_manager.data_protection)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.formatter_class = _AsWritten
        if self.examples:
            front = "openstack protection" if prog_name.startswith(_OPENSTACK) else "raksha"
            told = [f"  {front} {example}" for example in self.examples]
            parser.epilog = "\n".join(["examples:", *told])
        self.options(parser)
        return parser

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add what the command takes."""

    def run(self, parsed_args: argparse.Namespace) -> int:
        """The exit code: docs/commands.md. No error of ours is a stack trace."""
        if getattr(parsed_args, "formatter", None) == "yaml":
            register_yaml()
        try:
            code = super().run(parsed_args)
        except errors.ClientError as error:
            return self.tell(error)
        except KeyboardInterrupt:
            return self.tell(errors.Interrupted("Interrupted"))
        return self.tell(self.trouble) if self.trouble is not None else code

    def tell(self, error: errors.ClientError, about: str = "") -> int:
        """On standard error; the exit code."""
        front = _OPENSTACK if self._by_openstack else "raksha"
        text = error.told()
        if self._by_openstack:
            text = _in_openstack(text)
        print(f"{front}: {words.plain(about + text)}", file=sys.stderr)
        return error.exit_code

    def say(self, text: str) -> None:
        """Beside the result, for people."""
        if self._by_openstack:
            text = _in_openstack(text)
        print(words.plain(text), file=sys.stderr, flush=True)

    @property
    def _by_openstack(self) -> bool:
        return str(getattr(self.app, "NAME", "")) == _OPENSTACK

    # -- many at once ---------------------------------------------------------------------------------

    def each(self, noun: str, named: Sequence[str], do: Callable[[str], object]) -> int:
        """`do` for each of them, whatever becomes of the others; the exit code: 0 only if none failed."""
        codes = []
        for name in dict.fromkeys(named):
            try:
                do(name)
            except errors.ClientError as error:
                codes.append(self.tell(error, f"{noun} {name}: " if len(named) > 1 else ""))
        if codes and len(named) > 1:
            self.say(f"{len(codes)} of {len(dict.fromkeys(named))} failed")
        return 0 if not codes else codes[0] if len(set(codes)) == 1 else 1

    # -- waiting --------------------------------------------------------------------------------------

    def follow(self, label: str, watched: Iterator[T], good: Sequence[str], goes_on: str) -> T:
        """The last of what comes, with progress. What ends in none of the `good` states is told after the result.

        Raises `Interrupted`, which says what `goes_on`.
        """
        display = progress.display(words.plain(label), sys.stderr)
        last: Any = None
        try:
            with interrupts.noted() as noted:
                for last in watched:
                    display.show(last)
                    if noted():
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise errors.Interrupted("Watching ended", goes_on) from None
        finally:
            display.close()
        if last.state not in good:
            why = f": {last.error.message}" if last.error is not None and last.error.message else ""
            self.trouble = errors.Failed(f"{label} ended as {last.state}{why}", _NEXT.get(last.state, ""))
        return cast(T, last)


class Action(Shared):
    """Without a result to show."""


class Show(Shared, show.ShowOne):
    """One thing."""

    @staticmethod
    def fields(pairs: dict[str, Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        return tuple(pairs), tuple(pairs.values())


class List(Shared, lister.Lister):
    """Several things, a row each."""

    #: of --sort
    sorts: ClassVar[Sequence[str]] = ()

    def paging(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--limit", metavar="N", type=_positive, help="no more than so many")
        parser.add_argument("--marker", metavar="ID", help="only what comes behind the one with this id")
        if self.sorts:
            parser.add_argument(
                "--sort", metavar="KEY[:DIRECTION]",
                help=f"by {', '.join(self.sorts)}; :asc or :desc; several with commas",
            )  # fmt: skip

    @staticmethod
    def table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> tuple[Sequence[str], list[Sequence[Any]]]:
        # all of it before the first line is written: what fails halfway shows no half of a list
        return names, list(rows)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def listed(options: argparse.Namespace) -> dict[str, Any]:
    """Of `paging`, for the library."""
    return {"limit": options.limit, "marker": options.marker, "sort": getattr(options, "sort", None)}


def _in_openstack(text: str) -> str:
    return re.sub(
        r"\braksha (?=(?:job|run|restore|verification|vm|vault|service|usage|limits|schedule) )",
        "openstack protection ",
        text,
    )


_NEXT = {
    "needs_attention": "Tell your operator: neither going on nor undoing is proven safe, and somebody must look.",
}
