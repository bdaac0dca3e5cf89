"""Commands of `raksha`, each in a process of its own, without paying for the start of Python each time.

One process imports everything, opens nothing and starts no thread; every command is a child that it forks. So a
command can be killed like any other, and has its own environment, standard output and error.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.functional.local_kit import Answer, Local


class Forker:
    """The process that forks. Ends with this one."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rk-forked-")
        #: of all commands so far
        self.pids: set[int] = set()
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.functional.forked"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def run(self, arguments: list[str], environment: dict[str, str], meanwhile: Callable[[int], None]) -> Answer:
        """`meanwhile` is called with the process id while the command runs; it is waited for."""
        out, err = Path(self._folder.name, "out"), Path(self._folder.name, "err")
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"arguments": arguments, "environment": environment, "out": str(out), "err": str(err)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        self.pids.add(pid)
        meanwhile(pid)
        status = int(self._process.stdout.readline())
        return Answer(os.waitstatus_to_exitcode(status), out.read_text(), err.read_text())


@dataclass
class ForkedLocal(Local):
    """`raksha local`, quickly."""

    forker: Forker = field(default_factory=Forker)

    def __call__(self, verb: str, *arguments: object, json: bool = True) -> Answer:
        return self.during(lambda _pid: None, {}, verb, *arguments, *(["--json"] if json else []))

    def during(
        self, meanwhile: Callable[[int], None], environment: dict[str, str], verb: str, *arguments: object
    ) -> Answer:
        command = self.command(verb, *arguments)
        words = command[command.index("local") :]
        return self.forker.run(words, {**self.environment, **environment}, meanwhile)


def alive(pid: int) -> bool:
    """Whether the command still runs; one that has ended may not have been waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _serve() -> None:
    # nothing of what these import may start a thread: it would not be there after the fork
    import raksha.agent.local
    import raksha.cmd.main
    import raksha.crash

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_be_the_command(request, raksha.cmd.main.main, raksha.crash))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


def _be_the_command(request: dict[str, Any], main: Callable[[list[str]], int], crash: Any) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["environment"])
    importlib.reload(crash)
    code = 1
    try:
        code = main(request["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
