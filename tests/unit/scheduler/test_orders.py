"""What a job says of its disks and its vault is what is stored, and where."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from raksha.db import vaults
from raksha.db.jobs import Member
from raksha.db.session import Database
from raksha.states import RunState
from raksha.tasks import BackupOrder
from tests.bed.databases import PROJECT, make_job
from tests.bed.pretend import check_restores
from tests.bed.scheduling import tasks_of
from tests.unit.scheduler.service import Service


@pytest.fixture
def service(sqlite: Database, tmp_path: Path) -> Service:
    made = Service(sqlite, tmp_path)
    made.agent()
    return made


def test_disks_that_are_left_out_are_neither_ordered_nor_stored(service: Service) -> None:
    (agent,) = service.agents
    agent.have("web", "vda", "vdb", "vdc", clusters=2)
    agent.have("db", "vda", "vdb", clusters=2)
    members = [Member("web", ("vdb", "vdc")), Member("db")]
    job = service.database.run(lambda s: make_job(s, "some", members=members, consistency_group=False).id)
    run = service.backup(job)
    orders = {order.vm: order.exclude for order in agent.orders}
    assert orders == {"web": ("vdb", "vdc"), "db": ()}
    assert all(isinstance(order, BackupOrder) for order in agent.orders)
    assert set(agent.captured[run]) == {("web", "vda"), ("db", "vda"), ("db", "vdb")}
    service.check(job, run)


def declare(service: Service, name: str, **more: object) -> str:
    """Another vault service. Its id."""
    folder = service.folder / name
    folder.mkdir()

    def work(session: Session) -> str:
        return vaults.declare(session, name, kind="directory", url=f"file://{folder}", **more).id

    return service.database.run(work)


@pytest.mark.parametrize("name", ["archive", "zeta"])
def test_a_job_is_stored_in_the_vault_that_it_names(service: Service, name: str) -> None:
    """Before and after the default one in every order there is."""
    (agent,) = service.agents
    agent.have("web", clusters=2)
    other = declare(service, name)
    elsewhere = service.job("web", name="elsewhere", vault_service_id=other)
    as_usual = service.job("web", name="as usual")
    runs = {job: service.backup(job) for job in (elsewhere, as_usual)}
    folders = {elsewhere: service.folder / name / PROJECT, as_usual: service.folder / "vaults" / PROJECT}
    for job, run in runs.items():
        with service.database.reading() as session:
            vault = vaults.get(session, tasks_of(service.database, run)[0].vault_id)
            assert vault.url == f"file://{folders[job]}"
        check_restores(vault.url, job, service.agents, service.folder / "spool", [run])
    there = {job: [each.name for each in (folder / "backupjobs").iterdir()] for job, folder in folders.items()}
    assert elsewhere in there[elsewhere] and as_usual not in there[elsewhere]
    assert as_usual in there[as_usual] and elsewhere not in there[as_usual]


def test_a_vault_that_is_not_to_be_used_is_not_replaced_by_another(service: Service) -> None:
    service.agents[0].have("web", clusters=2)
    other = declare(service, "archive", enabled=False)
    run = service.queue(service.job("web", vault_service_id=other))
    service.round()
    row = service.run_row(run)
    assert (row.state, row.queued_reason["code"]) == (RunState.QUEUED, "no_vault")
