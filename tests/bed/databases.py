"""Databases with the service's schema on every server that Raksha works with, and rows to start from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from raksha.db import backups, jobs, migrate, runs, services, tasks, vaults
from raksha.db.columns import new_id
from raksha.db.models import (
    BackupJob,
    BackupJobRun,
    BackupJobRunVm,
    BackupJobRunVmResource,
    Base,
    Service,
    Task,
    Vault,
    VmResourceBackup,
)
from raksha.db.session import Database, DatabaseSettings, connect
from raksha.db.transition import transition
from raksha.states import BackupKind, BackupState, ServiceKind, TaskKind, TaskState, Trigger

BACKENDS = ["sqlite", "mariadb", "postgresql"]
PROJECT = "project-a"


def new_url(backend: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """The address of an empty database."""
    if backend == "sqlite":
        return f"sqlite:///{folder}/raksha.db"
    url: str = request.getfixturevalue(backend).url()
    return url


@contextmanager
def opened(url: str, **settings: Any) -> Iterator[Database]:
    database = connect(DatabaseSettings(connection=url, **settings))
    try:
        yield database
    finally:
        database.close()


@pytest.fixture(scope="session")
def schemas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """By backend: the address of a database at head, made once a session."""
    made: dict[str, str] = {}

    def url(backend: str) -> str:
        if backend not in made:
            made[backend] = new_url(backend, request, tmp_path_factory.mktemp(backend))
            with opened(made[backend]) as database:
                migrate.upgrade(database)
        return made[backend]

    return url


@pytest.fixture(params=BACKENDS)
def database(request: pytest.FixtureRequest, schemas: Callable[[str], str]) -> Iterator[Database]:
    """An empty database at head, on every server."""
    with opened(schemas(request.param)) as found:
        try:
            yield found
        finally:
            empty(found)


def empty(database: Database) -> None:
    """Remove all rows."""

    def work(session: Session) -> None:
        # those that refer to their own table, newest first
        session.execute(text("UPDATE vm_resource_backups SET vm_resource_backup_backing_id = NULL"))
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())

    database.run(work)


# -- rows -------------------------------------------------------------------------------------------


def make_job(session: Session, name: str = "nightly", **more: Any) -> BackupJob:
    definition = {"project_id": PROJECT, "members": [jobs.Member("vm-1")], **more}
    return jobs.create(session, name=name, **definition)


def make_run(session: Session, job: BackupJob, **more: Any) -> BackupJobRun:
    given = {"kind": BackupKind.FULL, "trigger": Trigger.REQUEST, **more}
    return runs.create(session, job, **given)


def make_vault(session: Session, project_id: str = PROJECT, *, made: bool = True) -> Vault:
    """The row of a project's vault; `made`: as if its `vault.json` was there."""
    service = vaults.declare(session, "main", kind="directory", url="file:///srv/vault", is_default=True)
    vault = vaults.of_project(session, service, project_id, f"file:///srv/vault/{project_id}")
    if made and vault.vault_uuid is None:
        vaults.established(session, vault.id, new_id())
    return vault


def make_copy(
    session: Session, run: BackupJobRun, vault: Vault, *, parent: VmResourceBackup | None = None,
    available: bool = True, resource: str = "vda", **more: Any,
) -> VmResourceBackup:  # fmt: skip
    """A stored disk copy with the VM and the disk of the run that it belongs to."""
    vm = session.query(BackupJobRunVm).filter_by(backupjobrun_id=run.id, vm_id="vm-1").one_or_none()
    if vm is None:
        vm = BackupJobRunVm(backupjobrun_id=run.id, vm_id="vm-1", name="web")
        session.add(vm)
        session.flush()
    disk = BackupJobRunVmResource(backupjobrun_vm_id=vm.id, resource=resource, size=1 << 30)
    session.add(disk)
    session.flush()
    kind = BackupKind.FULL if parent is None else BackupKind.INCREMENTAL
    copy = backups.create(
        session, disk, vault, backupjob_id=run.backupjob_id, backupjobrun_id=run.id, vm_id="vm-1", kind=kind,
        size=1 << 30, cluster_size=65536, map_digest=f"{run.id:0<64}"[:64], bytes_stored=1000,
        vm_resource_backup_backing_id=parent.id if parent else None, **more,
    )  # fmt: skip
    if available:
        transition(session, VmResourceBackup, copy.id, BackupState.AVAILABLE)
    return copy


def make_agent(session: Session, host: str = "host-a", **more: Any) -> Service:
    facts = {"host": host, "instance": f"start of {host}", "version": "1", "capacity": 4, **more}
    return services.register(session, ServiceKind.AGENT, host, **facts)


def make_task(session: Session, *, ready: bool = True, **more: Any) -> Task:
    task = tasks.add(session, **{"kind": TaskKind.BACKUP, "project_id": PROJECT, **more})
    if ready:
        transition(session, Task, task.id, TaskState.READY)
    return task


# -- races ------------------------------------------------------------------------------------------


def race(database: Database, *works: Callable[[Session], Any]) -> list[Any]:
    """Each work in a thread and on a connection of its own, all at once. What each returned or raised, in order."""
    start = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)

    def one(index: int) -> None:
        def work(session: Session) -> Any:
            session.execute(text("SELECT 1"))  # the connection is there before anybody starts
            return works[index](session)

        start.wait(30)
        try:
            results[index] = database.run(work)
        except Exception as error:  # the outcome is what is tested
            results[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results
