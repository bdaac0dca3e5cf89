"""A real PostgreSQL server on loopback: nothing in raksha/db may keep it out. It dies with the test run.

Debian's package is unpacked, not installed: installing it would make and start a server of the host's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.bed.swift import CHECKOUT, free_ports

UNPACKED = CHECKOUT / ".cache" / "postgresql"
NOBODY = 65534


class PostgreSql:
    """One server. `url` gives a database of its own to whoever asks."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder = folder
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        (self.port,) = free_ports(1)

    def prepare(self) -> None:
        if os.geteuid() == 0:  # it refuses to work for root
            os.chown(self._folder, NOBODY, NOBODY)
        options = ["--no-sync", "--auth=trust", "--username=raksha", "--encoding=UTF8", "--locale=C.UTF-8"]
        self._call("initdb", *options, "-D", str(self._folder / "data"))

    def start(self) -> None:
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "jit": "off",
                   "max_connections": "300", "shared_buffers": "32MB", "timezone": "America/New_York"}  # fmt: skip
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self._folder.parent / f"{self._folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user(), "--pdeathsig", "KILL", self._programs / "postgres", "-D", self._folder / "data",
                 "-p", str(self.port), *settings],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                self._connect("postgres").close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("PostgreSQL does not answer") from None
                time.sleep(0.05)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)  # fast: it does not wait for clients
            process.wait(60)

    def url(self) -> str:
        """The address of a new, empty database."""
        name = f"t{uuid.uuid4().hex[:16]}"
        with self._connect("postgres") as connection:
            connection.autocommit = True
            connection.execute(f"create database {name}".encode())
        return f"postgresql+psycopg://raksha@127.0.0.1:{self.port}/{name}"

    def _connect(self, name: str) -> psycopg.Connection:
        return psycopg.connect(host="127.0.0.1", port=self.port, user="raksha", dbname=name)

    def _call(self, program: str, *arguments: str) -> None:
        command = [*self._as_user(), self._programs / program, *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=120, cwd="/")

    def _as_user(self) -> list[str]:
        other = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"] if os.geteuid() == 0 else []
        return ["setpriv", *other]


@contextmanager
def running_postgresql() -> Iterator[PostgreSql]:
    """A server for the length of a `with`."""
    found = sorted(UNPACKED.glob("usr/lib/postgresql/*/bin"))
    if not found:
        raise RuntimeError("PostgreSQL is not there: run scripts/setup --tests")
    folder = Path(tempfile.mkdtemp(prefix="rk-postgresql-"))
    server = PostgreSql(folder, found[-1])
    try:
        server.prepare()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSql]:
    """One PostgreSQL for the whole run; tests keep apart by databases."""
    with running_postgresql() as server:
        yield server
