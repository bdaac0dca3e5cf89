"""A small service around real guests: a database, a vault in a directory, a scheduler, and agents of one host.

The bus is `fake://` where all of it is in this process, RabbitMQ where agents are processes that can be killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from raksha.agent.service import Agent
from raksha.config_agent import AgentSettings
from raksha.config_scheduler import SchedulerSettings
from raksha.db import migrate, tasks, vaults
from raksha.db.jobs import Member
from raksha.db.models import BackupJob, BackupJobRun, Restore, Task
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.rpc import Bus
from raksha.scheduler.loop import Loop
from raksha.states import BackupKind, RunState, TaskKind, TaskState
from tests.bed import Bed
from tests.bed.databases import PROJECT, make_job, make_run, opened
from tests.bed.scheduling import held, runs_of, tasks_of
from tests.functional.local_kit import Local, assert_holds
from tests.functional.overlay_kit import Guest, settings

HOST = "host-a"
#: seconds for anything to come about
PATIENCE = 90.0
SCHEDULER = SchedulerSettings(
    name="scheduler-1", interval=0.2, heartbeat_interval=0.5, task_lease=4.0, unowned_vms_project=PROJECT,
    retries=0, freeze_timeout=8.0,
)  # fmt: skip
AGENT = AgentSettings(host=HOST, poll_interval=0.5, report_interval=0.1, patience=3.0, look_interval=1.0,
                      drain_timeout=20.0)  # fmt: skip
ENDED = (RunState.AVAILABLE, RunState.CANCELLED, RunState.ERROR, RunState.NEEDS_ATTENTION)


def until(true: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what}: not within {patience} s"
        time.sleep(0.02)
    return found


class Running:
    """Something with `run` and `stop`, in a thread."""

    def __init__(self, what: Any) -> None:
        self.what = what
        self._thread = threading.Thread(target=what.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.what.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it does not stop"


class AgentProcess:
    """`raksha-agent`, as operators start it."""

    def __init__(self, config: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "raksha.cmd.agent", "--config", config],
                env={**os.environ, **environment}, stdout=out, stderr=out,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        """As systemd does. Its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


class Service:
    """Everything but the agents."""

    def __init__(self, bed: Bed, folder: Path, database: Database, url: str = "fake://", **changes: Any) -> None:
        self.bed = bed
        self.folder = folder
        self.database = database
        self.bus_url = url
        self.settings = replace(SCHEDULER, **changes)
        self.host = settings(bed)
        self.bus = Bus(url, patience=5)
        root = f"file://{folder}/vaults"
        (folder / "vaults").mkdir()
        database.run(lambda s: vaults.declare(s, "main", kind="directory", url=root, is_default=True))
        self.scheduler: Running | None = None
        self._agents: list[Any] = []
        self.jobs: dict[str, str] = {}
        #: what the disks held at each run
        self.truth: dict[str, dict[str, bytes]] = {}
        #: of a run that is under way
        self.truth_of_next: dict[str, bytes] = {}

    def close(self) -> None:
        for each in self._agents:
            if isinstance(each, AgentProcess) and each.running:
                each.kill()
            elif isinstance(each, Running):
                each.stop()
        self.stop_scheduler()
        self.bus.close()

    # -- processes ----------------------------------------------------------------------------------

    def start_scheduler(self) -> None:
        self.scheduler = Running(Loop(self.database, self.settings, self.bus))

    def stop_scheduler(self) -> None:
        """From now on nobody answers."""
        if self.scheduler is not None:
            self.scheduler.stop()
            self.scheduler = None

    def agent(self, host: str = HOST, **changes: Any) -> Running:
        """In this process."""
        agent = replace(AGENT, host=host, restore_dirs=(self.restores,), **changes)
        made = Running(Agent(self.host, agent, self.bus))
        self._agents.append(made)
        return made

    def process(self, *, crash_at: str = "", **changes: Any) -> AgentProcess:
        """One of its own, which dies at a crash point if that is wanted."""
        config = self.folder / "agent.conf"
        agent = replace(AGENT, restore_dirs=(self.restores,), transport_url=self.bus_url, **changes)
        shown = {name: value for name in agent.__struct_fields__ if (value := getattr(agent, name)) is not None}
        shown["restore_dirs"] = ",".join(map(str, agent.restore_dirs))
        host = {name: getattr(self.host, name) for name in self.host.__struct_fields__}
        sections = {"agent": shown, "host": {name: value for name, value in host.items() if value is not None}}
        config.write_text("".join(f"[{name}]\n{_lines(values)}" for name, values in sections.items()))
        made = AgentProcess(config, self.folder / "agent.log", {"RAKSHA_CRASH_AT": crash_at} if crash_at else {})
        self._agents.append(made)
        return made

    @property
    def restores(self) -> Path:
        place = self.bed.directory / "restores"
        if not place.exists():
            place.mkdir(mode=0o777)
            self.bed.host.give(place)
        return place

    # -- jobs and runs ------------------------------------------------------------------------------

    def job(self, *guests: Any, name: str = "nightly", **more: Any) -> str:
        members = [Member(guest.uuid) for guest in guests]
        id: str = self.database.run(lambda s: make_job(s, name, members=members, **more).id)
        self.jobs[name] = id
        return id

    def queue(self, job_id: str, kind: BackupKind = BackupKind.INCREMENTAL, request_id: str | None = None) -> str:
        more = {"kind": kind, "request_id": request_id}
        run: str = self.database.run(lambda s: make_run(s, s.get_one(BackupJob, job_id), **more).id)
        if self.scheduler is not None:
            self.scheduler.what.wake()
        return run

    def run(self, id: str) -> BackupJobRun:
        return next(run for run in runs_of(self.database) if run.id == id)

    def tasks(self, id: str, kind: TaskKind = TaskKind.BACKUP) -> list[Task]:
        return [task for task in tasks_of(self.database, id) if task.kind == kind]

    def ended(self, id: str, *states: RunState, finished: bool = True) -> BackupJobRun:
        """Wait until it has ended so, and its hosts have done what that meant."""
        run = until(lambda: (row := self.run(id)).state in ENDED and row, f"run {id} ends ({self.run(id).state})")
        assert run.state in (states or (RunState.AVAILABLE,)), (run.state, run.error)
        if finished:
            until(lambda: held(self.database) == {}, "its slots are free")
        return self.run(id)

    def backup(self, job_id: str, guest: Guest, kind: BackupKind = BackupKind.INCREMENTAL) -> str:
        """A new restore point of one guest; what it holds is known."""
        truth = guest.frozen_model()
        id = self.queue(job_id, kind)
        self.ended(id)
        self.truth[id] = truth
        return id

    def restore(self, run_id: str, guest: Any, **target: Any) -> str:
        """The id of a restore with its task, as dispatch makes it."""
        run = self.run(run_id)

        def work(session: Any) -> str:
            restore = Restore(project_id=PROJECT, backupjobrun_id=run_id, target=target)
            session.add(restore)
            session.flush()
            vault = self.tasks(run_id)[0].vault_id
            disks = target.pop("disks", ())
            order = {
                "type": "restore", "restore": restore.id, "backupjob": run.backupjob_id, "backupjobrun": run_id,
                "vm": guest.uuid, "disks": list(disks), "target": target,
            }  # fmt: skip
            task = tasks.add(session, kind=TaskKind.RESTORE, project_id=PROJECT, restore_id=restore.id,
                             vm_id=guest.uuid, host=HOST, order=order, vault_id=vault)  # fmt: skip
            transition(session, Task, task.id, TaskState.READY)
            return str(restore.id)

        return str(self.database.run(work))

    def made(self, restore_id: str) -> list[dict[str, Any]]:
        """What it said it would make."""
        with self.database.reading() as session:
            return list(session.get_one(Restore, restore_id).made)

    def task_of(self, restore_id: str) -> Task:
        with self.database.reading() as session:
            return tasks.of_restore(session, restore_id)[0]

    def restored(self, restore_id: str, *states: TaskState) -> Task:
        over = (*tasks.TERMINAL, TaskState.NEEDS_ATTENTION)
        task = until(lambda: (row := self.task_of(restore_id)).state in over and row, "the restore ends")
        assert task.state in (states or (TaskState.DONE,)), (task.state, task.error)
        return task

    # -- what must hold -----------------------------------------------------------------------------

    @property
    def reader(self) -> Local:
        """Another host that has nothing but the vault."""
        return Local("test:///default", self.folder / "reader", f"file://{self.folder}/vaults/{PROJECT}")

    def assert_holds(self, run_id: str, guest: Guest) -> None:
        assert_holds(self.reader, run_id, self.folder / "out", guest, self.truth[run_id])

    def assert_all_hold(self, guest: Guest) -> None:
        """The vault has exactly these points, they verify, and each gives back its disks to the byte."""
        assert sorted(self.reader.runs()) == sorted(self.truth)
        assert self.reader.good("verify", "--data").json["findings"] == []
        for run_id in self.truth:
            self.assert_holds(run_id, guest)


def _lines(values: Mapping[str, Any]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in values.items())


@contextmanager
def service_on(bed: Bed, folder: Path, url: str = "fake://", **changes: Any) -> Iterator[Service]:
    with opened(f"sqlite:///{folder}/raksha.db") as database:
        migrate.upgrade(database)
        service = Service(bed, folder, database, url, **changes)
        try:
            service.start_scheduler()
            yield service
        finally:
            with suppress(AssertionError):
                service.close()
