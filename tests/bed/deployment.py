"""A whole Raksha of several hosts on one machine: the real commands with real configuration files, as processes.

::

    host-a, host-b, …          a libvirtd, guests, a raksha-agent each, with a state directory of its own
    scheduler-1, scheduler-2   raksha-scheduler
    api-1, api-2               raksha-api
    database, bus, vault       MariaDB, RabbitMQ, Swift

Any of them can be killed by `kill` (SIGKILL, by pid) and started again by `start`. Raksha's own processes that end by
themselves (a scheduler finds no database at its start) are started again by `supervise`, as systemd does.
All starts must come from one thread that lives on: processes end with the thread that started them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from raksha.api.http_basic import line
from raksha.config_database import DatabaseSettings
from raksha.db.session import Database, connect
from tests.bed.bed import Bed
from tests.bed.daemon import SessionHost
from tests.bed.mariadb import MariaDb
from tests.bed.rabbitmq import RabbitMq
from tests.bed.rest import Rest
from tests.bed.swift import SwiftBed, free_ports

PROJECT = "cloud"
USER, PASSWORD = "operator", "correct horse"
#: bcrypt's lowest
_COST = 4
_MIB = 1024 * 1024

SCHEDULER = {
    "interval": 0.5, "agent_timeout": 10, "unowned_vms_project": PROJECT, "heartbeat_interval": 1, "task_lease": 6,
    "commit_lease": 6, "gather_timeout": 30, "freeze_timeout": 8, "host_patience": 120, "max_wait": 120,
    "retention_interval": 10, "collect_interval": 15, "retries": 4, "retry_delay": 2,
}  # fmt: skip
AGENT = {"poll_interval": 1, "report_interval": 0.2, "patience": 4, "look_interval": 2, "drain_timeout": 30}
HOST = {"overlay_reserve_min": _MIB, "overlay_watermark": 0, "commit_timeout": 30, "workers": 2, "trash_hours": 0,
        "freeze_deadline": 6, "vault_patience": 60}  # fmt: skip


class Command:
    """One of Raksha's commands with its configuration."""

    def __init__(self, name: str, module: str, folder: Path, sections: Mapping[str, Mapping[str, Any]],
                 environment: Mapping[str, str]) -> None:  # fmt: skip
        self.log = folder / f"{name}.log"
        self._config = folder / f"{name}.conf"
        self._config.write_text("".join(_section(each, values) for each, values in sections.items()))
        self._command = [sys.executable, "-m", module, "--config", str(self._config)]
        self._environment = {**os.environ, **environment}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def ended(self) -> bool:
        """By itself."""
        return self.process is not None and self.process.poll() is not None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._command],
                env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def end(self, number: signal.Signals) -> int | None:
        process, self.process = self.process, None
        if process is None:
            return None
        process.send_signal(number)
        return process.wait(90)


class HostOfDeployment:
    """A hypervisor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.libvirt = SessionHost()
        self.libvirt.start()
        self.bed = Bed(self.libvirt)
        self.restores = self.bed.directory / "restores"
        self.restores.mkdir(mode=0o777)
        self.libvirt.give(self.restores)

    @property
    def state(self) -> Path:
        return self.bed.directory / "state"

    def close(self) -> None:
        self.bed.close()
        self.libvirt.close()


class Deployment:
    """A context manager: everything runs within it, and nothing is left."""

    def __init__(self, folder: Path, hosts: Sequence[str]) -> None:
        self.folder = folder
        self._host_names = hosts
        self._stack = ExitStack()
        self.hosts: dict[str, HostOfDeployment] = {}
        self.commands: dict[str, Command] = {}
        #: of the killed that are to stay away for now
        self.down: set[str] = set()
        #: how often a command was started again because it had ended by itself
        self.ended: dict[str, int] = {}

    def __enter__(self) -> Deployment:
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- making it ----------------------------------------------------------------------------------

    def _start(self) -> None:
        for name in ("mariadb", "rabbitmq", "swift", "spool"):
            (self.folder / name).mkdir()
        self.mariadb = MariaDb(self.folder / "mariadb")
        self.rabbitmq = RabbitMq(self.folder / "rabbitmq")
        self.swift = SwiftBed(self.folder / "swift")
        for server in (self.mariadb, self.rabbitmq):
            server.prepare()
            server.start()
            self._stack.callback(server.stop)
        self.swift.start()
        self._stack.callback(self.swift.stop)
        for name in self._host_names:
            self.hosts[name] = HostOfDeployment(name)
            self._stack.callback(self.hosts[name].close)
        self._stack.callback(self._end_commands)
        self.database_url = self.mariadb.url()
        self.database: Database = connect(DatabaseSettings(self.database_url))
        self._stack.callback(self.database.close)
        self._manage("db", "upgrade")
        self._manage("vault", "add", "main", "swift://raksha", "--default")
        self._configure()
        for name in self.commands:
            self.start(name)

    def _manage(self, *words: str) -> None:
        config = self.folder / "manage.conf"
        config.write_text(_section("database", {"connection": self.database_url}))
        command = [sys.executable, "-m", "raksha.cmd.manage", "--config", str(config), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120,
                              env={**os.environ, **self.swift.env})  # fmt: skip
        assert done.returncode == 0, done.stderr

    def _configure(self) -> None:
        url = {"transport_url": self.rabbitmq.url}
        database = {"connection": self.database_url}
        users = self.folder / "users"
        users.touch(0o600)
        users.write_text(line(USER, PASSWORD, PROJECT, "admin", _COST))
        for name in ("scheduler-1", "scheduler-2"):
            scheduler = {**SCHEDULER, **url, "name": name, "spool_dir": self.folder / "spool"}
            self._command(name, "scheduler", {"scheduler": scheduler, "database": database})
        self.api_ports = free_ports(2)
        for name, port in zip(("api-1", "api-2"), self.api_ports, strict=True):
            api = {"bind": f"127.0.0.1:{port}", "users_file": users, "min_schedule_interval": 60}
            self._command(name, "api", {"api": api, "scheduler": {**SCHEDULER, **url}, "database": database})
        for name, host in self.hosts.items():
            agent = {**AGENT, **url, "host": name, "restore_dirs": host.restores}
            settings = {**HOST, "libvirt_uri": host.libvirt.uri, "state_dir": host.state}
            self._command(name, "agent", {"agent": agent, "host": settings})

    def _command(self, name: str, kind: str, sections: Mapping[str, Mapping[str, Any]]) -> None:
        self.commands[name] = Command(name, f"raksha.cmd.{kind}", self.folder, sections, self.swift.env)

    def _end_commands(self) -> None:
        for command in self.commands.values():
            command.end(signal.SIGKILL)

    # -- killing ------------------------------------------------------------------------------------

    @property
    def processes(self) -> list[str]:
        """Everything that can be killed."""
        return [*self.commands, *self._libvirts(), "database", "bus", "swift-proxy", "swift-object"]

    def _libvirts(self) -> dict[str, SessionHost]:
        """Guests outlive them."""
        return {f"libvirtd of {name}": host.libvirt for name, host in self.hosts.items()}

    def kill(self, name: str) -> None:
        self.down.add(name)
        if name in self.commands:
            self.commands[name].end(signal.SIGKILL)
        elif name in self._libvirts():
            self._libvirts()[name].kill()
        elif name == "database":
            self.mariadb.kill()
        elif name == "bus":
            self.rabbitmq.kill()
        else:
            self.swift.kill(_SWIFT[name], signal.SIGKILL)

    def start(self, name: str) -> None:
        """Servers answer when this returns; Raksha's commands have been started."""
        self.down.discard(name)
        if name in self.commands:
            self.commands[name].start()
        elif name in self._libvirts():
            self._libvirts()[name].start()
        elif name == "database":
            self.mariadb.start()
        elif name == "bus":
            self.rabbitmq.start()
        else:
            self.swift.restart(_SWIFT[name])

    def supervise(self) -> None:
        """Start what has ended by itself."""
        for name, command in self.commands.items():
            if command.ended:
                self.ended[name] = self.ended.get(name, 0) + 1
                command.start()

    def stop(self, name: str) -> int | None:
        """As systemd does. Its exit code."""
        self.down.add(name)
        return self.commands[name].end(signal.SIGTERM)

    def rest(self) -> Rest:
        return Rest(self.api_ports, USER, PASSWORD, PROJECT)

    @property
    def vault_url(self) -> str:
        return f"swift://raksha-{PROJECT}"

    def tracebacks(self) -> list[str]:
        """Those that Raksha has logged, something that nobody had thought of: the line before, and what was raised."""
        found = []
        for name, command in self.commands.items():
            lines = command.log.read_text(errors="replace").splitlines()
            told = [at for at, (before, line) in enumerate(pairwise(lines)) if _is_ours(before, line)]
            found += [f"{name}: {lines[at]}: {_raised(lines[at + 2 :])}" for at in told]
        return found


def _is_ours(before: str, line: str) -> bool:
    return line.startswith("Traceback") and " raksha." in before


def _raised(lines: list[str]) -> str:
    return next((line for line in lines if not line.startswith(" ")), "cut off")


_SWIFT = {"swift-proxy": "proxy", "swift-object": "object0"}


def _section(name: str, values: Mapping[str, Any]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
