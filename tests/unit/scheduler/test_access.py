"""Jobs that act by a trust: what is lent, what a broken one means, and when it ends.

Keystone is played: that it refuses or is away at a given step cannot be had otherwise. A real one is in
tests/openstack/test_trusts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from raksha.db import jobs, restores, runs, vaults
from raksha.db.models import BackupJob, Restore
from raksha.db.session import Database
from raksha.errors import IdentityUnavailable, RakshaError, RowNotFound, TrustBroken
from raksha.openstack.trusts import Lent, LentCloud
from raksha.scheduler import deleting, housekeeping, restore_start, trust_ends
from raksha.scheduler.access import Access
from raksha.states import JobState, RestoreState, RunState, TaskKind, TaskState
from raksha.tasks import CLAIM, RENEW, Claim, Held, Restored
from tests.unit.scheduler.service import Service

URL = "http://swift/v1/AUTH_project"
BROKEN, AWAY = TrustBroken(detail="Unauthorized (401)"), IdentityUnavailable(detail="ConnectFailure")


class Keystone:
    """Fulfils what `Access` needs of `Trusts`."""

    def __init__(self) -> None:
        self.fault: RakshaError | None = None
        self.broken: set[str] = set()
        self.asked = 0
        self.lent: list[str] = []
        self.ended: list[str] = []
        self.catalog = {"compute", "image"}

    def lend(self, trust_id: str, *, account: str | None = None) -> Lent:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        if trust_id in self.broken:
            raise BROKEN
        self.lent.append(trust_id)
        token = f"token {len(self.lent)} by {trust_id}"
        return Lent(URL, token) if account is None else Lent(f"http://swift/v1/{account}project", token, "service")

    def cloud(self, trust_id: str, services: Sequence[str]) -> LentCloud:
        there = {name: f"http://{name}" for name in services if name in self.catalog}
        return LentCloud(self.lend(trust_id).token, there)

    def check(self, trust_id: str) -> None:
        self.lend(trust_id)

    def end(self, trust_id: str) -> None:
        if self.fault is AWAY:
            raise self.fault
        self.ended.append(trust_id)


@pytest.fixture
def keystone() -> Keystone:
    return Keystone()


@pytest.fixture
def service(sqlite: Database, tmp_path: Path, keystone: Keystone) -> Service:
    made = Service(sqlite, tmp_path, access=Access(keystone))  # type: ignore[arg-type]
    made.agent().have("vm-1")
    in_its_account(made, "project")
    return made


def in_its_account(service: Service, account: str) -> None:
    def work(session: Any) -> None:
        vaults.change(session, vaults.named(session, "main").id, settings={"account": account})

    service.database.run(work)


def row(service: Service, job: str) -> BackupJob:
    with service.database.reading() as session:
        return jobs.get(session, None, job)


def test_agents_are_lent_a_token_with_the_claim_and_newer_ones_with_the_lease(
    service: Service, keystone: Keystone
) -> None:
    service.queue(service.job("vm-1", trust_id="trust-1"))
    service.round()
    (agent,) = service.agents
    (task,) = agent.claim()
    assert task.vault is not None
    lent = {"OS_STORAGE_URL": URL, "OS_AUTH_TOKEN": f"token {len(keystone.lent) - 1} by trust-1"}
    assert task.vault.credentials == lent
    # and what asks the cloud about the server
    assert task.cloud is not None and task.cloud.token == f"token {len(keystone.lent)} by trust-1"
    assert task.cloud.endpoints == {"compute": "http://compute", "image": "http://image"}
    assert "by trust-1" not in repr(task)
    renewed = service.ask[RENEW](Held(task_id=task.task_id, epoch=task.epoch))
    assert renewed.credentials == {**lent, "OS_AUTH_TOKEN": f"token {len(keystone.lent) - 1} by trust-1"}
    assert renewed.cloud is not None and renewed.cloud.token == f"token {len(keystone.lent)} by trust-1"
    assert renewed.credentials != lent and "by trust-1" not in repr(renewed)
    # a lease is not lost because Keystone is away
    keystone.fault = AWAY
    assert service.ask[RENEW](Held(task_id=task.task_id, epoch=task.epoch)).credentials is None


def test_a_cloud_without_nova_is_none(service: Service, keystone: Keystone) -> None:
    keystone.catalog = {"image"}
    service.queue(service.job("vm-1", trust_id="trust-1"))
    service.round()
    (task,) = service.agents[0].claim()
    assert task.cloud is None and task.vault is not None and task.vault.credentials


def test_an_account_beside_the_project_s_needs_the_service_s_token_too(service: Service) -> None:
    in_its_account(service, "service")
    service.queue(service.job("vm-1", trust_id="trust-1"))
    service.round()
    (task,) = service.agents[0].claim()
    assert task.vault is not None and task.vault.credentials is not None
    assert task.vault.credentials["OS_STORAGE_URL"] == "http://swift/v1/SERVICE_project"
    assert task.vault.credentials["OS_SERVICE_TOKEN"] == "service"


def test_nothing_is_lent_where_all_share_an_account(service: Service, keystone: Keystone) -> None:
    in_its_account(service, "shared")
    service.queue(service.job("vm-1"))
    service.round()
    (task,) = service.agents[0].claim()
    assert task.vault is not None and task.vault.credentials is None and keystone.lent == []


def test_a_broken_trust_suspends_the_job_and_never_its_backups(service: Service, keystone: Keystone) -> None:
    job = service.job("vm-1", trust_id="trust-1")
    point = service.backup(job)
    keystone.fault = BROKEN
    run = service.queue(job)
    service.round()
    assert service.run_row(run).state == RunState.ERROR
    assert service.run_row(run).error["code"] == "trust_broken"
    found = row(service, job)
    assert found.state == JobState.SUSPENDED and found.state_reason["code"] == "trust_broken"
    assert "trust-1" not in str(found.state_reason)
    service.round()
    # nothing is tried again until somebody has seen to it
    assert [each.state for each in _all(service, job)].count(RunState.QUEUED) == 0
    assert service.run_row(point).state == RunState.AVAILABLE
    service.check(job, point)


def _all(service: Service, job: str) -> list[Any]:
    with service.database.reading() as session:
        return list(session.query(runs.BackupJobRun).filter_by(backupjob_id=job))


def test_while_keystone_is_away_runs_wait(service: Service, keystone: Keystone) -> None:
    job = service.job("vm-1", trust_id="trust-1")
    keystone.fault = AWAY
    run = service.queue(job)
    service.round()
    assert service.run_row(run).state == RunState.QUEUED
    assert service.run_row(run).queued_reason["code"] == "identity_away"
    keystone.fault = None
    _at_once(service, run)
    service.round()
    assert service.run_row(run).state == RunState.READY


def _at_once(service: Service, run: str) -> None:
    service.database.run(lambda s: setattr(s.get_one(runs.BackupJobRun, run), "not_before", 0))


@pytest.mark.parametrize(
    ("fault", "state"), [(BROKEN, RunState.ERROR), (AWAY, RunState.RUNNING)], ids=["broken", "away"]
)
def test_a_task_whose_vault_cannot_be_opened_is_not_given_away(
    service: Service, keystone: Keystone, fault: RakshaError, state: RunState
) -> None:
    run = service.queue(service.job("vm-1", trust_id="trust-1"))
    service.round()
    keystone.fault = fault
    assert service.agents[0].claim() == ()
    service.round()
    service.round()
    assert service.run_row(run).state == state


def test_a_commit_waits_for_keystone(service: Service, keystone: Keystone) -> None:
    run = service.to_commit(service.job("vm-1", trust_id="trust-1"))
    keystone.fault = AWAY
    assert service.commit(run) == RunState.COMMITTING
    keystone.fault = None
    service.lease_over(run)
    assert service.commit(run) == RunState.AVAILABLE


def test_a_trust_ends_with_its_job_and_not_before_its_last_restore_point(service: Service, keystone: Keystone) -> None:
    job = service.job("vm-1", trust_id="trust-1")
    point = service.backup(job)
    service.database.run(lambda s: jobs.begin_deleting(s, job))
    assert deleting.remove_jobs(service.database, access=service.access) == 0
    assert keystone.ended == []
    service.go_on_deleting()
    assert service.files("backupjobs") and point not in str(service.files("backupjobs"))
    keystone.fault = AWAY
    assert deleting.remove_jobs(service.database, access=service.access) == 0
    assert row(service, job).state == JobState.DELETING
    keystone.fault = None
    assert deleting.remove_jobs(service.database, access=service.access) == 1
    assert keystone.ended == ["trust-1"]
    with pytest.raises(RowNotFound):
        row(service, job)


def test_what_the_last_job_of_a_project_leaves_is_collected_while_somebody_can(
    service: Service, keystone: Keystone
) -> None:
    job = service.job("vm-1", trust_id="trust-1")
    service.backup(job)
    assert service.files()
    service.database.run(lambda s: jobs.begin_deleting(s, job))
    deleting.remove_jobs(service.database, access=service.access)
    service.go_on_deleting()
    # another scheduler collects at this moment: not yet
    assert deleting.remove_jobs(service.database, access=service.access, collect=lambda _: None) == 0
    assert keystone.ended == []
    collected = deleting.remove_jobs(service.database, access=service.access, collect=lambda _: service.collect())
    assert (collected, keystone.ended, service.files()) == (1, ["trust-1"], set())


def test_a_job_whose_owner_left_is_deleted_by_another_s_trust(service: Service, keystone: Keystone) -> None:
    job, other = service.job("vm-1", trust_id="trust-1"), service.job("vm-1", name="other", trust_id="trust-2")
    service.backup(job)
    keystone.broken.add("trust-1")
    service.database.run(lambda s: jobs.begin_deleting(s, job))
    deleting.remove_jobs(service.database, access=service.access)
    service.go_on_deleting()
    assert deleting.remove_jobs(service.database, access=service.access) == 1
    assert row(service, other).trust_id == "trust-2"


def test_a_take_over_during_the_removal_of_a_job_is_not_lost(service: Service, keystone: Keystone) -> None:
    job = service.job("vm-1", trust_id="trust-1")
    service.database.run(lambda s: jobs.begin_deleting(s, job))
    end = keystone.end

    def meanwhile(trust: str) -> None:
        keystone.end = end  # type: ignore[method-assign]
        end(trust)
        version = row(service, job).version
        service.database.run(lambda s: jobs.take_over(s, job, version, user_id="ben", trust_id="trust-2"))

    keystone.end = meanwhile  # type: ignore[method-assign]
    assert deleting.remove_jobs(service.database, access=service.access) == 0
    assert deleting.remove_jobs(service.database, access=service.access) == 1
    assert set(keystone.ended) == {"trust-1", "trust-2"}


def test_keystone_that_is_away_is_asked_once_a_round(service: Service, keystone: Keystone) -> None:
    service.agents[0].have("vm-2")
    keystone.fault = AWAY
    for vm, trust in (("vm-1", "trust-1"), ("vm-2", "trust-2")):
        service.queue(service.job(vm, name=vm, trust_id=trust))
    service.round()
    assert keystone.asked == 1


def test_a_task_under_way_is_claimed_again_without_keystone(service: Service, keystone: Keystone) -> None:
    """The agent goes on with what it was lent: its work must not be given up."""
    service.queue(service.job("vm-1", trust_id="trust-1"))
    service.round()
    agent = service.agents[0]
    (task,) = agent.claim()
    keystone.fault = AWAY
    held = (Held(task_id=task.task_id, epoch=task.epoch - 1),)
    said = Claim(service_id=agent.id, instance=agent.instance, kinds=(TaskKind.BACKUP,), limit=0, holding=held)
    (again,) = service.ask[CLAIM](said).tasks
    assert again.epoch == task.epoch + 1 and again.vault is not None and again.vault.credentials is None


def test_the_trust_of_who_had_a_job_before_is_ended(service: Service, keystone: Keystone) -> None:
    job = service.job("vm-1", trust_id="trust-1", user_id="anna")

    def taken(by: str, trust: str) -> Callable[[Any], None]:
        return lambda s: jobs.take_over(s, job, jobs.get(s, None, job).version, user_id=by, trust_id=trust)

    service.database.run(taken("ben", "trust-2"))
    service.database.run(taken("carl", "trust-3"))
    keystone.fault = AWAY
    housekeeping.tidy(service.database, service.settings, service.access)
    assert row(service, job).former_trusts == ["trust-1", "trust-2"]
    keystone.fault = None
    housekeeping.tidy(service.database, service.settings, service.access)
    assert keystone.ended == ["trust-1", "trust-2"]
    found = row(service, job)
    assert (found.former_trusts, found.trust_id, found.user_id) == ([], "trust-3", "carl")


# -- restores into another project ------------------------------------------------------------------


def elsewhere(service: Service, point: str, trust: str = "trust-there") -> str:
    """A restore of it into another project, with its task ready."""
    target = {"kind": "volume", "directory": None, "format": None, "start": False, "host": None, "cloud": {},
              "project": "there", "vms": [{"vm": "vm-1", "disks": [], "name": "new"}]}  # fmt: skip

    def work(session: Any) -> str:
        found = runs.get(session, None, point)
        return restores.create(session, found, target=target, user_id="anna", trust_id=trust).id

    id = service.database.run(work)
    restore_start.start(service.database, service.settings)
    return id


def restore_of(service: Service, id: str) -> Restore:
    with service.database.reading() as session:
        return restores.get(session, None, id)


def claimed(service: Service) -> Any:
    (task,) = service.agents[0].claim(kinds=[TaskKind.RESTORE])
    return task


@pytest.fixture
def point(service: Service) -> str:
    return service.backup(service.job("vm-1", trust_id="trust-1"))


def test_its_vault_is_read_with_one_project_and_its_cloud_is_the_other(
    service: Service, keystone: Keystone, point: str
) -> None:
    id = elsewhere(service, point)
    task = claimed(service)
    assert task.vault.credentials["OS_AUTH_TOKEN"].endswith("by trust-1")
    assert task.cloud.token.endswith("by trust-there")
    renewed = service.ask[RENEW](Held(task_id=task.task_id, epoch=task.epoch))
    assert renewed.credentials["OS_AUTH_TOKEN"].endswith("by trust-1")
    assert renewed.cloud.token.endswith("by trust-there")
    # nothing that agents are told names it
    assert "there" not in str(task.order.target)
    # it acts: its trust stays
    assert trust_ends.of_restores(service.database, service.access) == 0
    service.agents[0].finish(task, Restored(name="new"))
    keystone.fault = AWAY
    assert trust_ends.of_restores(service.database, service.access) == 0
    assert restore_of(service, id).trust_id == "trust-there"
    keystone.fault = None
    assert trust_ends.of_restores(service.database, service.access) == 1
    assert trust_ends.of_restores(service.database, service.access) == 0
    assert (keystone.ended, restore_of(service, id).trust_id) == (["trust-there"], None)


def test_where_the_other_trust_is_broken_none_of_the_project_s_own_is_tried(
    service: Service, keystone: Keystone, point: str
) -> None:
    id = elsewhere(service, point)
    keystone.broken.add("trust-there")
    assert service.agents[0].claim(kinds=[TaskKind.RESTORE]) == ()
    restore_start.start(service.database, service.settings)
    failed = restore_of(service, id)
    assert (failed.state, failed.error["code"]) == (RestoreState.ERROR, "trust_broken")
    assert "trust-there" not in str(failed.error)


def test_without_a_trust_any_more_nothing_is_lent(service: Service, keystone: Keystone, point: str) -> None:
    id = elsewhere(service, point)
    service.database.run(lambda s: setattr(s.get_one(Restore, id), "trust_id", None))
    lent = len(keystone.lent)
    assert service.agents[0].claim(kinds=[TaskKind.RESTORE]) == () and len(keystone.lent) == lent
    restore_start.start(service.database, service.settings)
    assert restore_of(service, id).error["code"] == "trust_broken"


def _cancelled_before(service: Service, id: str) -> None:
    service.database.run(lambda s: restores.request_cancel(s, id))


def _cancelled(service: Service, id: str) -> None:
    task = claimed(service)
    service.database.run(lambda s: restores.request_cancel(s, id))
    restore_start.start(service.database, service.settings)
    assert trust_ends.of_restores(service.database, service.access) == 0, "what it has made is removed by it"
    service.agents[0].finish(task, None, TaskState.CANCELLED)


def _failed(service: Service, id: str) -> None:
    service.agents[0].finish(claimed(service), None, TaskState.ERROR)


def _held(service: Service, id: str) -> None:
    service.agents[0].finish(claimed(service), None, TaskState.NEEDS_ATTENTION)


@pytest.mark.parametrize("end", [_cancelled_before, _cancelled, _failed, _held])
def test_its_trust_ends_however_it_ends(
    service: Service, keystone: Keystone, point: str, end: Callable[[Service, str], None]
) -> None:
    id = elsewhere(service, point)
    end(service, id)
    restore_start.start(service.database, service.settings)
    assert restore_of(service, id).state in restores.OVER
    assert trust_ends.of_restores(service.database, service.access) == 1
    assert (keystone.ended, restore_of(service, id).trust_id) == (["trust-there"], None)
