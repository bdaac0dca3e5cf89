"""The command line in this process, on the API of `conftest`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from raksha.client import Client, login, shell


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Raksha = Callable[..., Result]


@contextmanager
def called(client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Raksha]:
    """`raksha WORD…`; what it sets up for logging is put away."""
    monkeypatch.setattr(login, "client", lambda *_: client)
    # the API's own log, which is in this process only here
    monkeypatch.setattr(logging.getLogger("raksha.api"), "propagate", False)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level

    def call(*words: str) -> Result:
        capsys.readouterr()
        try:
            code = shell.main(words)
        except SystemExit as done:
            code = int(done.code or 0)
        found = capsys.readouterr()
        assert "Traceback" not in found.err + found.out
        return Result(code, found.out, found.err)

    yield call
    root.handlers[:], root.level = before, level
