"""The whole service in one process: what `raksha serve` runs.

::

    api         gunicorn's threads: HTTP, the database
    scheduler   its loop; agents' questions are answered by threads of the bus
    agent       its threads: libvirt, the vault
    this one    waits for signals, and for any of the others to end by itself, which ends all

The three are those of raksha-api, raksha-scheduler and raksha-agent; only the bus stays within the process, and the
database is a file. They end in the order in which they need each other: the API takes nothing new; the agent ends what
is under way, or hands it back, for which it needs the scheduler; the scheduler comes last. Killed at any moment, each
of them recovers at the next start as it does by itself.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from gunicorn.http.errors import ParseException
from msgspec import Struct
from msgspec.structs import replace

from raksha import config, config_agent, config_database, config_notifications, logs
from raksha.agent.service import Agent
from raksha.api.http_basic import HttpBasic, LocalUser, create_default_users
from raksha.api.request_id import current
from raksha.api.waker import Waker
from raksha.cmd import api, state_folder
from raksha.cmd.http_thread import HttpThread
from raksha.cmd.output import Output
from raksha.cmd.scheduler import serve_metrics, within
from raksha.config import Settings
from raksha.config_agent import AgentSettings
from raksha.config_api import ApiSettings
from raksha.config_database import DatabaseSettings
from raksha.config_scheduler import SchedulerSettings
from raksha.db.session import Database
from raksha.errors import ServiceEnded, SettingsWrong
from raksha.rpc import Bus
from raksha.scheduler.loop import Loop

_log = logging.getLogger(__name__)

PROJECT = "default"
#: seconds for the scheduler's step under way, and for the agent beyond what it may drain
_LAST_STEP = 30.0
#: seconds for either of them after a second signal
_HURRIED = 15.0
_STOP = (signal.SIGTERM, signal.SIGINT)


class Asked(Struct, frozen=True):
    """Options of the command line; None: as configured."""

    state_dir: Path | None
    bind: str | None
    vault: str | None
    connect: str | None
    config: Path | None


class Parts(Struct, frozen=True):
    """What each part is told."""

    host: Settings
    api: ApiSettings
    scheduler: SchedulerSettings
    agent: AgentSettings
    database: DatabaseSettings


def serve(asked: Asked, output: Output, cancel: threading.Event) -> int:
    """Until a signal ends it, or a part of it ends by itself.

    Raises what is wrong at the start: `SettingsWrong`, `ServiceRunning`, `HypervisorUnavailable`,
    `DatabaseUnavailable`, `BadArgument`, `HostFailed`; and `ServiceEnded` if a part ended by itself.
    """
    with _signals(cancel) as stop:
        parts = settings(asked)
        folder = parts.host.state_dir
        with ExitStack() as stack:
            stack.enter_context(state_folder.alone(folder))
            database = stack.enter_context(state_folder.opened(parts.database, folder))
            vault = state_folder.first_vault(database, folder, asked.vault)
            user = create_default_users(parts.api.users_file) if parts.api.users_file.parent == folder else None
            _log_to_stderr()
            service = Service(parts, database)
            service.start()
            told = _told(service.http, folder, vault, user)
            output.result(told, _lines(told))
            sys.stdout.flush()
            stop.wait(service.all_run)
            by_itself = service.ended()
            service.stop(stop)
        if by_itself:
            raise ServiceEnded(parts=" and ".join(by_itself))
        return 0


def settings(asked: Asked) -> Parts:
    """From the configuration, as one process needs it. Raises `SettingsWrong`."""
    host = config.load(asked.config, state_dir=asked.state_dir, libvirt_uri=asked.connect)
    folder = host.state_dir
    api_settings, scheduling = api.load(asked.config)
    agent = config_agent.load(asked.config)
    given, own = config_database.load(asked.config), state_folder.database_url(folder)
    standard = state_folder.database_url(config.default_state_dir())
    foreign = {
        "[database] connection": given.connection not in (own, standard),
        "[scheduler] transport_url": bool(scheduling.transport_url),
        "[agent] transport_url": bool(agent.transport_url),
        "[notifications] enabled": config_notifications.load(asked.config).enabled,
        "[api] auth_strategy": api_settings.auth_strategy != "http_basic",
    }
    if wrong := [name for name, found in foreign.items() if found]:
        raise SettingsWrong(detail=f"{wrong[0]} is for a service of several processes; raksha serve has its own")
    scheduling = within(scheduling, api_settings.limits)
    scheduling = replace(scheduling, unowned_vms_project=scheduling.unowned_vms_project or PROJECT)
    users = api_settings.users_file
    api_settings = replace(
        api_settings,
        bind=asked.bind or api_settings.bind,
        users_file=folder / "users" if users == ApiSettings().users_file else users,
        unowned_vms_project=scheduling.unowned_vms_project,
    )
    return Parts(host, api_settings, scheduling, agent, replace(given, connection=own))


class Service:
    """The three parts with the bus between them."""

    def __init__(self, parts: Parts, database: Database) -> None:
        """Nothing runs yet, but the API's address is taken. Raises `SettingsWrong`, `HypervisorUnavailable`."""
        self._bus = Bus("fake://", parts.agent.patience)
        self._agent = Agent(parts.host, parts.agent, self._bus)
        self._loop = Loop(database, parts.scheduler, self._bus)
        users = HttpBasic(parts.api.users_file)
        application = api.make_application(parts.api, database, users, (ParseException,), Waker(self._bus))
        self.http = HttpThread(application, parts.api)
        self._drain = parts.agent.drain_timeout
        port = parts.scheduler.metrics_port
        self._end_metrics = serve_metrics(self._loop, parts.scheduler) if port else None
        self._scheduler_thread = _thread("scheduler", self._loop.run)
        self._agent_thread = _thread("agent", self._agent.run)

    def start(self) -> None:
        for thread in (self._scheduler_thread, self._agent_thread):
            thread.start()
        self.http.start()

    def ended(self) -> list[str]:
        """Parts that run no more."""
        threads = (self.http.thread, self._scheduler_thread, self._agent_thread)
        return [thread.name for thread in threads if not thread.is_alive()]

    def all_run(self) -> bool:
        return not self.ended()

    def stop(self, stop: Stop) -> None:
        """In the order in which they need each other. A second signal: what is under way is put aside."""
        _log.info("stopping: the API first, then the agent, then the scheduler")
        self.http.stop()
        self._agent.stop()
        _wait(self._agent_thread, self._drain + _LAST_STEP, stop, self._agent.hurry)
        self._loop.stop()
        _wait(self._scheduler_thread, _LAST_STEP, stop)
        if self._end_metrics is not None:
            self._end_metrics()
        if not self._something_runs():
            self._bus.close()

    def _something_runs(self) -> bool:
        """The process ends all the same: it is as if it was killed there."""
        left = [thread.name for thread in (self._agent_thread, self._scheduler_thread) if thread.is_alive()]
        for name in left:
            _log.warning("the %s is left at a step that has not ended; the next start goes on", name)
        return bool(left)


def _wait(thread: threading.Thread, seconds: float, stop: Stop, hurry: Callable[[], None] | None = None) -> None:
    """For its end; less long after a second signal."""
    began = time.monotonic()
    while thread.is_alive():
        if stop.signals > 1 and hurry is not None:
            hurry()
        if time.monotonic() - began > (seconds if stop.signals < 2 else min(seconds, _HURRIED)):
            return
        thread.join(0.1)


class Stop:
    """How often it was asked for."""

    def __init__(self, cancel: threading.Event) -> None:
        self._read, self._write = os.pipe()
        self.signals = int(cancel.is_set())

    def ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """A handler of signals: without a lock. The third signal ends the process, which it survives as any kill."""
        self.signals += 1
        if self.signals > 2:
            os._exit(128 + number)
        os.write(self._write, b".")

    def wait(self, running: Callable[[], bool]) -> None:
        """Until a signal has come, or something runs no more."""
        while not self.signals and running():
            # a call that a signal interrupts begins again, with what its handler wrote
            select.select([self._read], [], [], 1.0)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@contextmanager
def _signals(cancel: threading.Event) -> Iterator[Stop]:
    """Handlers rather than a mask, which child processes would inherit."""
    stop = Stop(cancel)
    before = {number: signal.signal(number, stop.ask) for number in _STOP}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()


def _thread(name: str, run: Callable[[], None]) -> threading.Thread:
    def guarded() -> None:
        try:
            run()
        except Exception:  # the others are to end in order
            _log.exception("the %s failed", name)

    return threading.Thread(target=guarded, name=name, daemon=True)


# -- what is told -------------------------------------------------------------------------------------


def _told(http: HttpThread, folder: Path, vault: str, user: LocalUser | None) -> dict[str, Any]:
    if http.exposed:
        _log.warning("%s: passwords can be read on the way; set [api] tls_certificate and tls_key", http.url)
    login = None
    if user is not None and user.password_file.exists():
        login = {"user": user.name, "project": user.project, "password_file": str(user.password_file)}
    return {"url": http.url, "state_dir": str(folder), "vault": vault, "login": login}


def _lines(told: dict[str, Any]) -> list[str]:
    login, where = told["login"], told["url"]
    lines = [f"listening on {where}; {where}/docs shows what can be asked",
             f"  state  {told['state_dir']}", f"  vault  {told['vault']}"]  # fmt: skip
    if login is None:
        return [*lines, "  users  raksha-manage user list"]
    if where.startswith("unix:"):
        where = f"--unix-socket {where.removeprefix('unix:')} http://localhost"
    user, project, file = login["user"], login["project"], login["password_file"]
    curl = f'curl -u "{user}:$(cat {file})" {where}/v1/{project}/vms'
    return [*lines, f"  login  {user} of project {project}, the password is in {file}", f"  try    {curl}"]


def _log_to_stderr() -> None:
    """Each line says of which task, run and request it is, as far as it is of one."""
    handler = logs.named()
    handler.addFilter(_name_request)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # what it says of each connection is nothing that anybody wants to know
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _name_request(record: logging.LogRecord) -> bool:
    ids = current()
    if ids is not None:
        record.request_id = ids.local
    return True
