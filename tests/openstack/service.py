"""Raksha as a service of the cloud: API, scheduler and an agent on its one hypervisor, as processes."""

from __future__ import annotations

import secrets
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bed.deployment import AGENT, HOST, SCHEDULER, Command
from tests.bed.swift import free_ports
from tests.openstack.canary import Canary, Told
from tests.openstack.cloud.configuration import authtoken, client, ini
from tests.openstack.cloud.daemons import run
from tests.openstack.cloud.infrastructure import bus_of_its_own
from tests.openstack.cloud.layout import HOST as HYPERVISOR
from tests.openstack.cloud.layout import KEYSTONE_URL, LIBVIRT_URI
from tests.openstack.cloud.rest import Api, Cloud, Refused

#: of runs
ENDED = ("available", "degraded", "error", "cancelled")


class Service:
    """A context manager. `account`: where vaults are (`raksha-manage vault add --account`). `agent`: its options."""

    def __init__(self, folder: Path, admin: Cloud, account: str = "project", **agent: object) -> None:
        self.folder = folder
        self._account = account
        #: of containers: no test meets the vault of another
        self.prefix = f"t{secrets.token_hex(4)}"
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        trustee = admin.keystone.get("/users?name=raksha")["users"][0]["id"]
        database = {"connection": f"sqlite:///{folder}/raksha.db"}
        bus = self.bus = {"transport_url": bus_of_its_own(self.prefix)}
        #: it looks on from the beginning to the end
        self.canary = Canary(folder, bus["transport_url"], self._pids)
        state = folder / "state"
        (folder / "scratch").mkdir(mode=0o777)
        sections: dict[str, dict[str, dict[str, Any]]] = {
            "api": {
                "api": {"auth_strategy": "keystone", "bind": f"127.0.0.1:{port}", "min_schedule_interval": 60},
                "scheduler": {**SCHEDULER, **bus, "unowned_vms_project": ""},
                "database": database,
                "keystone_authtoken": authtoken("raksha", "data-protection"),
                # the API knows whom to delegate to, and no password of his
                "trustee": {"user_id": trustee},
            },
            "scheduler": {
                "scheduler": {**SCHEDULER, **bus, "unowned_vms_project": "", "name": "scheduler-1", "retries": 0},
                "database": database,
                "trustee": {**client("raksha"), "user_id": trustee, "auth_url": KEYSTONE_URL},
            },
            "agent": {
                "agent": {**AGENT, **bus, "host": HYPERVISOR, **agent},
                "host": {**HOST, "libvirt_uri": LIBVIRT_URI, "state_dir": state},
            },
        }
        self.commands = {
            name: Command(name, f"raksha.cmd.{name}", folder, parts, {}) for name, parts in sections.items()
        }
        self._config = folder / "manage.conf"
        ini(self._config, {"database": database})

    def __enter__(self) -> Service:
        self.manage("db", "upgrade")
        self.manage("vault", "add", "main", f"swift://{self.prefix}", "--account", self._account, "--default")
        self.canary.__enter__()
        try:
            for command in self.commands.values():
                command.start()
            self.wait(lambda: answers(self.url))
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for command in self.commands.values():
            command.end(signal.SIGTERM)
        self.canary.__exit__()
        if kind is None:
            self.canary.check()

    def _pids(self) -> list[int]:
        return [each.process.pid for each in self.commands.values() if each.process is not None]

    def manage(self, *words: str) -> None:
        run(sys.executable, "-m", "raksha.cmd.manage", "--config", self._config, *words)

    def of(self, cloud: Cloud) -> Api:
        """As this user sees it, in its project."""
        return Told(cloud.login, f"{self.url}/v1/{cloud.project}", self.canary)

    def wait(self, done: Callable[[], object], seconds: float = 90) -> Any:
        """What it says when it says something. Shows the logs if that takes too long."""
        deadline = time.monotonic() + seconds
        while not (found := done()):
            ended = [name for name, command in self.commands.items() if command.ended]
            assert time.monotonic() < deadline and not ended, f"{ended}\n{self.logs()[-6000:]}"
            time.sleep(0.3)
        return found

    def logs(self) -> str:
        return "\n".join(f"== {name}\n{each.log.read_text(errors='replace')}" for name, each in self.commands.items())

    # -- what tests do again and again --------------------------------------------------------------

    def sees(self, cloud: Cloud, vm: str) -> Any:
        """The VM, as soon as its agent has told of it."""

        def seen() -> Any:
            shown = self.of(cloud).get("/vms")["vms"]
            return next((each for each in shown if each["id"] == vm and each["seen_at"] is not None), None)

        return self.wait(seen)

    def run(self, cloud: Cloud, job: str, kind: str = "incremental", seconds: float = 240) -> Any:
        """A run by hand, when it has ended."""
        started = self.of(cloud).post(f"/backupjobs/{job}/{kind}")["id"]

        def ended() -> Any:
            found = self.of(cloud).get(f"/backupjobs/{job}/backupjobruns/{started}")
            return found if found["state"] in ENDED else None

        return self.wait(ended, seconds)


def answers(url: str) -> bool:
    """Whether an API is there, in order or not."""
    try:
        urllib.request.urlopen(f"{url}/healthcheck", timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def gone(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except Refused as error:
        return error.status == 404
    return False


def canary(raksha: Service, *clouds: Cloud) -> None:
    """No secret is in a log, a row, an argument, an answer or a message. At the end of each deployment it is looked
    for once more, whoever used it."""
    raksha.canary.tokens |= {cloud.token for cloud in clouds}
    raksha.canary.check()
