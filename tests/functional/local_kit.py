"""`raksha local` as a person calls it: a process of its own, its exit code, its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def run(self) -> str:
        """Id of the restore point that was made."""
        return str(self.json["run"]["backupjobrun"])

    @property
    def error(self) -> str:
        """Code of the error."""
        return str(self.json["error"]["code"])

    def disks(self) -> dict[str, dict[str, Any]]:
        return {disk["resource"]: disk for vm in self.json["run"]["vms"] for disk in vm["resources"]}


@dataclass
class Local:
    """One host's command line, with a vault."""

    uri: str
    state: Path
    vault: str
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, verb: str, *arguments: object) -> list[str]:
        vault = [] if verb in ("vms", "release", "--help") else ["--vault", self.vault]
        words = [sys.executable, "-m", "raksha.cmd.main", "local", verb, "--connect", self.uri]
        return [*words, "--state-dir", str(self.state), *vault, *map(str, arguments)]

    def start(self, verb: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(verb, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._env()
        )

    def __call__(self, verb: str, *arguments: object, json: bool = True) -> Answer:
        process = self.start(verb, *arguments, *(["--json"] if json else []))
        out, err = process.communicate(timeout=240)
        return Answer(process.returncode, out, err)

    def good(self, verb: str, *arguments: object) -> Answer:
        """Fails the test unless the command succeeds."""
        answer = self(verb, *arguments)
        assert answer.code == 0, answer
        return answer

    def refused(self, code: str, verb: str, *arguments: object) -> Answer:
        """Fails the test unless the command ends with this error."""
        answer = self(verb, *arguments)
        assert answer.code != 0 and answer.error == code, answer
        return answer

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.environment}
