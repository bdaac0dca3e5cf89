"""Daemons that outlive whoever starts them. Each is a session of its own, known by pid and start time, and is ended by
that alone: a pid that belongs to another process by now is left alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.openstack.cloud.layout import IP, LOG, RUN, VENV, environment

#: seconds
_ANSWER = 90.0
_END = 20.0


class CloudError(Exception):
    """The cloud does not come up. Says what the log has."""


def start(name: str, command: Sequence[str | Path], **variables: str) -> None:
    """Start it, unless it runs."""
    if running(name):
        return
    with (LOG / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*map(str, command)], env=environment(**variables), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    (RUN / f"{name}.pid").write_text(f"{process.pid} {_started(process.pid)}")


def stop(name: str) -> None:
    """End it with all it started, in order at first."""
    file = RUN / f"{name}.pid"
    if running(name):
        pid = int(file.read_text().split()[0])
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _END
        while running(name) and time.monotonic() < deadline:
            time.sleep(0.05)
        # what is left of its session, whether or not it went by itself
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    file.unlink(missing_ok=True)


def running(name: str) -> bool:
    try:
        pid, started = (RUN / f"{name}.pid").read_text().split()
    except (FileNotFoundError, ValueError):
        return False
    return _started(int(pid)) == started


def names() -> list[str]:
    return sorted(path.stem for path in RUN.glob("*.pid"))


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty for one that is gone or not yet waited for."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def wait_for_port(name: str, port: int) -> None:
    """Until a daemon takes connections. Raises `CloudError`."""
    deadline = time.monotonic() + _ANSWER
    while True:
        try:
            socket.create_connection((IP, port), 2).close()
        except OSError:
            if time.monotonic() > deadline or not running(name):
                raise CloudError(f"{name} does not answer on port {port}:\n{tail(name)}") from None
            time.sleep(0.1)
        else:
            return


def tail(name: str) -> str:
    try:
        return (LOG / f"{name}.log").read_text(errors="replace")[-3000:]
    except FileNotFoundError:
        return "(no log)"


def run(*command: str | Path, timeout: float = 180, log: str = "", **variables: str) -> str:
    """A command's output. Raises `CloudError`."""
    words = [*map(str, command)]
    try:
        done = subprocess.run(
            words, env=environment(**variables), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CloudError(f"{' '.join(words)}: not done in {timeout} s") from error
    if log:
        (LOG / f"{log}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise CloudError(f"{' '.join(words)}: {done.stdout[-1500:]}{done.stderr[-2500:]}")
    return done.stdout


def uwsgi(name: str, port: int, module: str, *options: str, processes: int = 2, **variables: str) -> None:
    """A service's API."""
    start(
        name,
        [
            VENV / "bin/uwsgi", "--http-socket", f"{IP}:{port}", "--virtualenv", VENV, "--module", module,
            "--master",
            "--processes", str(processes), "--enable-threads", "--threads", "4", "--lazy-apps", "--buffer-size",
            "65535",
            "--die-on-term", "--no-orphans", "--need-app", "--thunder-lock", "--add-header", "Connection: close",
            # Glance takes uploads of unknown length, in pieces that need not come at once
            "--http-chunked-input", "--http-raw-body", "--chunked-input-limit", str(64 << 20),
            "--chunked-input-timeout", "60", *options,
        ],
        **variables,
    )  # fmt: skip
