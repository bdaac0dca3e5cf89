"""Measure the service (scheduler, lists, claims over the bus, requests a second) and write docs/benchmarks-service.md.

usage: python -m benchmarks.service [--no-write]

Everything is real: MariaDB, RabbitMQ, gunicorn. What the goals compare is taken in one run; five minutes on two cores.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, update

from benchmarks.report import os_name, processor
from raksha.api.app import create_app
from raksha.api.http_basic import HttpBasic, line
from raksha.api.services import Services
from raksha.config_api import ApiSettings
from raksha.config_database import DatabaseSettings
from raksha.config_scheduler import SchedulerSettings
from raksha.db import migrate, schedules
from raksha.db.columns import SECOND, new_id, now
from raksha.db.models import BackupJob, BackupJobRun, Task
from raksha.db.rows import clock
from raksha.db.session import Database, connect
from raksha.rpc import Bus
from raksha.schedule import Schedule
from raksha.scheduler.serve import handlers
from raksha.scheduler.tick import tick
from raksha.states import BackupKind, RunState, TaskKind, TaskState, Trigger
from raksha.tasks import CLAIM, FINISH, REGISTER, Claim, Finish, Finished, Register
from raksha.wake import SCHEDULERS
from tests.bed.databases import make_job
from tests.bed.mariadb import MariaDb
from tests.bed.rabbitmq import RabbitMq
from tests.bed.swift import free_ports

PATH = Path(__file__).parents[1] / "docs/benchmarks-service.md"
JOBS, DUE, FEW = 10_000, 1_000, 100
RUNS = 100_000
AGENTS, TASKS_EACH = 50, 40
HOUR = 3600
PASSWORD = "benchmark"

Figures = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-write", action="store_true", help="print the page instead of writing it")
    options = parser.parse_args()
    figures: Figures = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raksha-bench-")))
        made = databases(folder, stack)
        for backend, (_, database) in made.items():
            print(f"{backend}: scheduler", file=sys.stderr)
            figures |= {f"{backend} {name}": value for name, value in ticks(database).items()}
        url, database = made["mariadb"]
        print("lists", file=sys.stderr)
        figures |= lists(database, folder)
        print("claims", file=sys.stderr)
        figures |= claims(database, stack.enter_context(broker(folder)))
        print("requests", file=sys.stderr)
        figures |= requests(database, url, folder)
    where = f"{os.cpu_count()} × {processor()}, {os_name()}, Python {platform.python_version()}."
    page = PAGE.format(**{name.replace(" ", "_"): value for name, value in figures.items()}, where=where)
    if options.no_write:
        print(page)
    else:
        PATH.write_text(page)
    return 0


def databases(folder: Path, stack: ExitStack) -> dict[str, tuple[str, Database]]:
    """Their addresses; at head, and empty."""
    urls = {"sqlite": f"sqlite:///{folder}/raksha.db", "mariadb": stack.enter_context(mariadb(folder))}
    made = {name: (url, connect(DatabaseSettings(connection=url))) for name, url in urls.items()}
    for _, database in made.values():
        stack.callback(database.close)
        migrate.upgrade(database)
    return made


@contextmanager
def mariadb(folder: Path) -> Iterator[str]:
    (folder / "mariadb").mkdir()
    server = MariaDb(folder / "mariadb")
    server.prepare()
    server.start()
    try:
        yield server.url()
    finally:
        server.stop()


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    (folder / "rabbitmq").mkdir()
    server = RabbitMq(folder / "rabbitmq")
    server.prepare()
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


# -- scheduler --------------------------------------------------------------------------------------


def ticks(database: Database) -> Figures:
    """An idle look over few and over many enabled jobs, in turns as far as that goes; then many are due at once."""
    add_jobs(database, FEW)
    few = idle(database)
    add_jobs(database, JOBS - FEW)
    many = idle(database)
    database.run(make_due)
    began, fired = time.perf_counter(), 0
    while fired < DUE:
        fired += tick(database).fired
    seconds = time.perf_counter() - began
    with database.reading() as session:
        queued = session.execute(select(func.count()).select_from(BackupJobRun)).scalar_one()
    if queued != DUE:
        raise RuntimeError(f"{queued} runs of {DUE}")
    return {"idle few": few * 1000, "idle many": many * 1000, "idle ratio": many / few, "queued seconds": seconds}


def add_jobs(database: Database, count: int) -> None:
    def work(session: Any) -> None:
        at = clock(session) // SECOND
        for number in range(count):
            job = make_job(session, f"job {count}-{number}")
            values = schedules.columns(Schedule(every=HOUR, anchor=at + HOUR - 1), job.id, at)
            session.execute(update(BackupJob).where(BackupJob.id == job.id).values(**values))

    database.run(work)


def idle(database: Database) -> float:
    """Median seconds."""
    return statistics.median(timed(lambda: tick(database)) for _ in range(50))


def make_due(session: Any) -> None:
    ids = list(session.scalars(select(BackupJob.id).order_by(BackupJob.id).limit(DUE)))
    at = clock(session) // SECOND
    for id in ids:
        columns = schedules.columns(Schedule(every=HOUR, anchor=at - 10), id, at - 11)
        values = {**columns, "fired_upto": (at - 11) * SECOND}
        session.execute(update(BackupJob).where(BackupJob.id == id).values(**values))


# -- lists ------------------------------------------------------------------------------------------


def lists(database: Database, folder: Path) -> Figures:
    """The newest 20 runs of a job with many, and of one with few, in turns."""
    small = database.run(lambda session: with_runs(session, "small", FEW))
    large = database.run(lambda session: with_runs(session, "large", RUNS))
    users = folder / "list-users"
    private(users, line("bench", PASSWORD, "project-a", "member", 4))
    client = create_app(ApiSettings(), Services(database, HttpBasic(users), {})).test_client()

    def ask(job: str) -> None:
        path = f"/v1/project-a/backupjobs/{job}/backupjobruns?limit=20"
        if client.get(path, headers=HEADERS).status_code != 200:
            raise RuntimeError(path)

    ask(small)
    taken: dict[str, list[float]] = {small: [], large: []}
    for _ in range(400):
        for job, seconds in taken.items():
            seconds.append(timed(lambda job=job: ask(job)))  # type: ignore[misc]
    few, many = (p99(taken[job]) * 1000 for job in (small, large))
    return {"list few": few, "list many": many, "list ratio": many / few}


def with_runs(session: Any, name: str, count: int) -> str:
    job = make_job(session, name)
    at = clock(session)
    rows = [
        {
            "id": new_id(), "backupjob_id": job.id, "project_id": job.project_id, "state": RunState.ERROR,
            "trigger": Trigger.REQUEST, "kind": BackupKind.FULL, "created_at": at - number * SECOND,
        }
        for number in range(count)
    ]  # fmt: skip
    for start in range(0, count, 5000):
        session.execute(insert(BackupJobRun), rows[start : start + 5000])
    return str(job.id)


# -- claims -----------------------------------------------------------------------------------------


def claims(database: Database, url: str) -> Figures:
    """Agents, a thread each, that claim one task after the other over the bus and end it."""
    database.run(add_tasks)
    settings = SchedulerSettings(name="benchmark")
    bus = Bus(url)
    start, ended = threading.Barrier(AGENTS + 1), [0] * AGENTS

    def agent(number: int) -> None:
        ask = bus.to(SCHEDULERS)
        named = {"host": f"host-{number}", "instance": f"start-{number}"}
        service = ask.call(REGISTER, Register(**named, version="1", capacity=4, capabilities={})).service_id
        claim = Claim(service_id=service, instance=named["instance"], kinds=(TaskKind.FINISH,), limit=1)
        start.wait(120)
        while found := ask.call(CLAIM, claim, 60).tasks:
            for task in found:
                done = Finish(task_id=task.task_id, epoch=task.epoch, to=TaskState.DONE, result=Finished())
                ask.call(FINISH, done, 60)
                ended[number] += 1

    try:
        with bus.serve(SCHEDULERS, "benchmark", handlers(database, settings, lambda: None)):
            threads = [threading.Thread(target=agent, args=(number,)) for number in range(AGENTS)]
            for thread in threads:
                thread.start()
            start.wait(120)
            began = time.perf_counter()
            for thread in threads:
                thread.join()
            seconds = time.perf_counter() - began
    finally:
        bus.close()
    if sum(ended) != AGENTS * TASKS_EACH:
        raise RuntimeError(f"{sum(ended)} tasks of {AGENTS * TASKS_EACH}")
    return {"claims": sum(ended) / seconds}


def add_tasks(session: Any) -> None:
    rows = []
    for number in range(AGENTS * TASKS_EACH):
        order = {"type": "finish", "backupjob": "job", "backupjobrun": f"run-{number}", "vm": "vm", "number": None}
        rows.append({
            "id": new_id(), "kind": TaskKind.FINISH, "state": TaskState.READY, "project_id": "project-a",
            "host": f"host-{number % AGENTS}", "order": order, "created_at": now(),
        })  # fmt: skip
    for row in rows:
        session.add(Task(**row))


# -- requests ---------------------------------------------------------------------------------------


def requests(database: Database, url: str, folder: Path) -> Figures:
    """gunicorn with two processes, eight clients that keep their connections."""
    (port,) = free_ports(1)
    with database.reading() as session:
        job = session.scalars(select(BackupJob.id).where(BackupJob.name == "small")).one()
    users, config = folder / "users", folder / "raksha.conf"
    private(users, line("bench", PASSWORD, "project-a", "member", 4))
    config.write_text(
        f"[api]\nbind = 127.0.0.1:{port}\nusers_file = {users}\nworkers = 2\n[database]\nconnection = {url}\n"
    )
    command = [sys.executable, "-m", "raksha.cmd.api", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        return {
            "show": per_second(port, f"/v1/project-a/backupjobs/{job}"),
            "list": per_second(port, "/v1/project-a/backupjobs?limit=20"),
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def per_second(port: int, path: str, clients: int = 8, seconds: float = 10.0) -> float:
    counts = [0] * clients
    until = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while time.perf_counter() < until:
            connection.request("GET", path, headers=HEADERS)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status}")
            counts[number] += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def wait_for(port: int) -> None:
    for _ in range(300):
        try:
            http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the API does not listen")


# -- parts ------------------------------------------------------------------------------------------

HEADERS = {"Authorization": "Basic " + base64.b64encode(f"bench:{PASSWORD}".encode()).decode()}


def private(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o600)


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


PAGE = """\
# Benchmarks of the service

Written by `python -m benchmarks.service`; don't edit. Real MariaDB, RabbitMQ and gunicorn on one machine; what is
compared was taken in one run.

| what | goal | measured |
| --- | --- | --- |
| SQLite: an idle look of the scheduler, 10,000 jobs / 100 | no full scan | {sqlite_idle_ratio:.1f} |
| MariaDB: the same | no full scan | {mariadb_idle_ratio:.1f} |
| SQLite: 1,000 of 10,000 jobs due in one minute become queued runs | ≤ 10 s | {sqlite_queued_seconds:.1f} s |
| MariaDB: the same | ≤ 10 s | {mariadb_queued_seconds:.1f} s |
| MariaDB: list of 20 runs, p99, of 100,000 / of 100 | ≤ 3 | {list_ratio:.1f} |
| MariaDB: 50 agents over RabbitMQ, one scheduler: tasks claimed and ended | | {claims:.0f} /s |
| MariaDB: API, two processes, eight clients: show a job | | {show:.0f} /s |
| the same: list 20 of 10,000 jobs | | {list:.0f} /s |

That no query of a look scans a table, `tests/contract/test_db_plans.py` proves with the plans of each server.

{where}
"""


if __name__ == "__main__":
    sys.exit(main())
