"""Finds the verb, runs it, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import threading
from collections.abc import Sequence

import raksha
from raksha.cmd import local, serve
from raksha.cmd.output import Output
from raksha.errors import HostFailed, Interrupted, NeedsAttention, RakshaError


def call(arguments: Sequence[str] | None, cancel: threading.Event) -> int:
    """The exit code: docs/cli.md. `cancel` is set to end what is under way at the next safe moment."""
    parser = argparse.ArgumentParser(prog="raksha", description="Data protection for virtual machines.")
    parser.add_argument("--version", action="version", version=f"raksha {raksha.__version__}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    words = list(sys.argv[1:] if arguments is None else arguments)
    local.add_to(verbs, words[1] if words[:1] == ["local"] and words[1:] else None)
    serve.add_to(verbs)
    options = parser.parse_args(words)
    output = Output(as_json=options.json, quiet=options.quiet)
    try:
        return int(options.call(options, output, cancel))
    except RakshaError as error:
        # what was broken off fails in many ways; only what is left half-done must be told
        asked = cancel.is_set() and not isinstance(error, NeedsAttention)
        return _failed(output, Interrupted() if asked else error)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, sqlite3.Error) as error:  # spool files, the journal: whatever this host is asked to keep for us
        return _failed(output, Interrupted() if cancel.is_set() else HostFailed(detail=error))


def _failed(output: Output, error: RakshaError) -> int:
    output.error(error)
    return error.exit_code
