"""The service that the quickstart starts, and its REST API: asked as curl would, and shown as what one would type."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: seconds for anything to come about
PATIENCE = 180.0
_OVER = ("available", "done", "error", "cancelled", "needs_attention")


class QuickstartFailed(Exception):
    """Something is not as it should be; the message says what."""


class Service:
    """`raksha serve` with a folder of its own, on a port that is free."""

    def __init__(self, raksha: Path, state: Path, uri: str) -> None:
        self._log = state.with_name("serve.log")
        #: what one would type; the port is only chosen here because another service may have the usual one
        self.command = f"raksha serve --state-dir {state} --connect {uri}"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [raksha, *self.command.split()[1:], "--bind", "127.0.0.1:0", "--json"],
                stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            line = self._process.stdout.readline()
            if not line:
                raise QuickstartFailed(f"raksha serve did not start:\n{''.join(lines)}{self._log.read_text()[-2000:]}")
            lines.append(line)
        told = json.loads("".join(lines))
        login = told["login"]
        self.vault: str = told["vault"]
        self.api = f"{told['url']}/v1/{login['project']}"
        self.password_file: str = login["password_file"]
        secret = f"{login['user']}:{Path(self.password_file).read_text().strip()}"
        self._headers = {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            if self._process.wait(PATIENCE):
                raise QuickstartFailed(f"raksha serve did not end well:\n{self._log.read_text()[-2000:]}")

    def ask(self, path: str, body: Any = None, method: str = "GET") -> Any:
        """What curl would get, as JSON."""
        headers, data = self._headers, None
        if body is not None:
            headers, data = headers | {"Content-Type": "application/json"}, json.dumps(body).encode()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{self.api}/{path}", data, headers, method=method), timeout=60
            ) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise QuickstartFailed(f"{method} {path}: {error.code} {error.read().decode()}") from error

    def post(self, path: str, body: Any = None) -> Any:
        """For all to see."""
        words = f" -d '{json.dumps(body)}'" if body is not None else ""
        print(f"   $ ask{'' if words else ' -X POST'} $API/{path}{words}", flush=True)
        return self.ask(path, body, "POST")

    def until(self, true: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := true()):
            if time.monotonic() > deadline:
                log = self._log.read_text()[-2000:]
                raise QuickstartFailed(f"{what}: not within {PATIENCE:.0f} s; the log:\n{log}")
            time.sleep(0.1)
        return found

    def ended(self, path: str, how: str) -> Any:
        """What a run or a restore is when it has ended, which has to be well."""
        found = self.until(lambda: (now := self.ask(path))["state"] in _OVER and now, path)
        if found["state"] != how:
            log = self._log.read_text()[-2000:]
            raise QuickstartFailed(f"{path} is {found['state']}: {found['error']}; the log:\n{log}")
        return found
