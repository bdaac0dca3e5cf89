"""A real RabbitMQ broker on loopback, with an Erlang port mapper of its own. It dies with the test run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.bed.image import BedError
from tests.bed.swift import free_ports

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
#: seconds
_START = 60


class RabbitMq:
    """One broker."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._names: subprocess.Popen[bytes] | None = None
        self.port, self._mapper, self._cluster = free_ports(3)
        self.url = f"rabbit://raksha:secret@127.0.0.1:{self.port}/"

    def prepare(self) -> None:
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "default_user = raksha\ndefault_pass = secret\n"
            "vm_memory_high_watermark.absolute = 512MB\ndisk_free_limit.absolute = 50MB\n"
            "log.file.level = warning\n"
        )
        (self._folder / "enabled_plugins").write_text("[].\n")

    def start(self) -> None:
        """Returns when it takes connections. 3 to 6 s."""
        environment = {
            "HOME": str(self._folder),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._mapper),
            "RABBITMQ_NODENAME": f"raksha{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._cluster),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }
        # a port mapper that the broker starts would outlive it
        self._names = self._spawn(["epmd", "-address", "127.0.0.1", "-port", str(self._mapper)], environment)
        self._process = self._spawn([SERVER], environment)
        deadline = time.monotonic() + _START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise BedError(f"RabbitMQ does not start: {(self._folder / 'out').read_text()[-2000:]}")
            time.sleep(0.05)

    def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self._folder / "out").open("ab") as out:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(2)
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(connection.recv(1))
        except OSError:
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """The broker with the script around it, and the port mapper."""
        for process in filter(None, (self._process, self._names)):
            os.killpg(process.pid, number)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)
        self._process = self._names = None

    def kill(self) -> None:
        """-9, as a power cut of the process."""
        self.stop(signal.SIGKILL)
