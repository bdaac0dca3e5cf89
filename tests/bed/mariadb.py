"""A real MariaDB server on loopback, with a data directory of its own. It dies with the test run.

Its data go to disk as on a real host, but for a power cut: commits are written, not synced.
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

import pymysql
import pytest

from tests.bed.swift import free_ports

SERVER = "/usr/sbin/mariadbd"
SCRIPTS = "/usr/share/mysql"
TABLES = ["mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql"]
SMALL = [
    "--innodb-log-file-size=8M",
    "--innodb-buffer-pool-size=64M",
    "--innodb-data-file-path=ibdata1:4M:autoextend",
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-use-native-aio=0",
    "--max-connections=300",
]


class MariaDb:
    """One server. `url` gives a database of its own to whoever asks."""

    user = "raksha"
    password = "s3cret/%40"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        (self.port,) = free_ports(1)

    def prepare(self) -> None:
        """Make the data directory, with our user in it. 2 s."""
        (self._folder / "data").mkdir()
        parts = ["create database mysql;\nuse mysql;\nset @auth_root_socket=NULL;\n"]
        parts += [Path(SCRIPTS, name).read_text() for name in TABLES]
        password = self.password.replace("'", "''")
        parts += [
            "flush privileges;\n",
            f"create user '{self.user}'@'127.0.0.1' identified by '{password}';\n",
            f"grant all on *.* to '{self.user}'@'127.0.0.1';\n",
        ]
        command = [*self._command(), "--bootstrap", "--silent-startup", "--log-warnings=0"]
        done = subprocess.run(command, input="".join(parts).encode(), capture_output=True, timeout=120, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"mariadbd --bootstrap: {done.stderr.decode()[-2000:]}")

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            # setpriv: the kernel ends the server when the process that runs the tests is gone
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._command(), f"--socket={self._folder}/socket",
                 f"--port={self.port}", "--bind-address=127.0.0.1", f"--pid-file={self._folder}/pid"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._wait(self._process)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(60)

    def kill(self) -> None:
        """-9, as a power cut of the process."""
        self.stop(signal.SIGKILL)

    def url(self) -> str:
        """The address of a new, empty database."""
        name = f"t{uuid.uuid4().hex[:16]}"
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"create database {name} character set latin1")
        password = self.password.replace("%", "%25").replace("/", "%2F")
        return f"mysql+pymysql://{self.user}:{password}@127.0.0.1:{self.port}/{name}"

    def connect(self) -> pymysql.Connection:
        return pymysql.connect(host="127.0.0.1", port=self.port, user=self.user, password=self.password)

    def _command(self) -> list[str]:
        user = ["--user=root"] if os.geteuid() == 0 else []
        return [SERVER, "--no-defaults", *user, f"--datadir={self._folder}/data", *SMALL]

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connect().close()
                return
            except pymysql.OperationalError:
                if process.poll() is not None or time.monotonic() > deadline:
                    log = (self._folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"MariaDB does not answer: {log}") from None
                time.sleep(0.05)


@contextmanager
def running_mariadb() -> Iterator[MariaDb]:
    """A server for the length of a `with`."""
    if not Path(SERVER).exists():
        raise RuntimeError("MariaDB is not installed: run scripts/setup --tests")
    folder = Path(tempfile.mkdtemp(prefix="rk-mariadb-"))
    server = MariaDb(folder)
    try:
        server.prepare()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """One MariaDB for the whole run; tests keep apart by databases."""
    with running_mariadb() as server:
        yield server
