"""Where there is a Nova, runs go to the host that it has a server on, and to servers that it shows to the job's trust.

Nova is played over HTTP: what agents and Nova say has to differ, which a real cloud cannot be made to at a given
moment. A real one is in tests/openstack/test_servers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy.orm import Session

from raksha.db import services, slots
from raksha.db.jobs import Member
from raksha.db.models import BackupJob, BackupJobRun, BackupJobRunVm, SeenVm
from raksha.db.session import Database
from raksha.db.slots import Slot
from raksha.errors import CloudUnavailable
from raksha.openstack import compute
from raksha.openstack.compute import host_id, placed
from raksha.openstack.lent import LentLogin
from raksha.openstack.trusts import LentCloud
from raksha.scheduler.access import Access
from raksha.scheduler.dispatch import dispatch
from raksha.states import RunState, RunVmState
from tests.bed.databases import PROJECT, make_job, make_run, make_vault
from tests.bed.scheduling import SETTINGS, aged, agent_with, run_of, tasks_of
from tests.contract.identity import Seen, serving
from tests.unit.api import nova as played
from tests.unit.api.nova import Nova

TOKEN = "gAAAA-by-trust"


class Trusts:
    """Keystone lends by any trust. Fulfils what `Access` needs of it here."""

    def __init__(self, url: str) -> None:
        self.endpoints = {"compute": f"{url}/v2.1"}

    def check(self, trust_id: str) -> None:
        pass

    def cloud(self, _trust_id: str, _services: Any) -> LentCloud:
        return LentCloud(TOKEN, self.endpoints)


@pytest.fixture
def nova() -> Nova:
    made = Nova(server("web", "host-a"), server("db", "host-b"))
    made.tokens[TOKEN] = (PROJECT, False)
    return made


@pytest.fixture
def served(nova: Nova) -> Iterator[tuple[str, Seen]]:
    with serving(nova.answer) as found:
        yield found


@pytest.fixture
def access(served: tuple[str, Seen]) -> Access:
    def ask(lent: LentCloud, project: str, ids: frozenset[str] | None) -> dict[str, compute.ListedServer]:
        return placed(LentLogin(lent.token, lent.endpoints), project, ids)

    return Access(Trusts(served[0]), ask)  # type: ignore[arg-type]


@pytest.fixture
def go(sqlite: Database, access: Access) -> Callable[..., None]:
    def one_round(**settings: Any) -> None:
        sqlite.run(lambda s: s.query(BackupJobRun).update({"not_before": 0}) and None)
        dispatch(sqlite, replace(SETTINGS, **{"retries": 0, **settings}), access)

    sqlite.run(lambda s: make_vault(s).id)
    return one_round


def server(id: str, host: str | None, **more: Any) -> dict[str, Any]:
    """As Nova shows it to its project: the host as a digest."""
    return played.server(id, id, PROJECT, hostId=host_id(PROJECT, host) if host else "", **more)


def queue(database: Database, *vms: str | Member, **more: Any) -> BackupJobRun:
    def work(session: Session) -> BackupJobRun:
        members = [Member(vm) if isinstance(vm, str) else vm for vm in vms]
        return make_run(session, make_job(session, "nightly", members=members, trust_id="trust-1", **more))

    return database.run(work)


def reason(database: Database, run: BackupJobRun) -> tuple[RunState, str | None]:
    found = run_of(database, run.backupjob_id)
    said = found.queued_reason if found.state == RunState.QUEUED else found.error
    return found.state, said and said["code"]


def test_a_run_goes_to_the_host_that_nova_has_the_server_on(sqlite: Database, go: Callable[..., None]) -> None:
    """Whatever the others say: where a server has been before, or a host that is not one's friend."""
    sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    sqlite.run(lambda s: agent_with(s, "host-z", ["web", "db"]))
    web, db = queue(sqlite, "web"), queue(sqlite, "db")
    go()
    assert [task.host for task in tasks_of(sqlite, web.id)] == ["host-a"]
    assert reason(sqlite, db) == (RunState.QUEUED, "server_elsewhere")
    assert "host-z" in run_of(sqlite, db.backupjob_id).queued_reason["message"]
    # its own host begins to see it
    sqlite.run(lambda s: agent_with(s, "host-b", ["db"]))
    go()
    assert [task.host for task in tasks_of(sqlite, db.id)] == ["host-b"]


def test_what_nova_does_not_show_is_gone_at_once(sqlite: Database, nova: Nova, go: Callable[..., None]) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["web", "gone", "theirs"]))
    nova.servers["theirs"] = {**server("theirs", "host-a"), "tenant_id": "another"}
    runs = [queue(sqlite, "gone"), queue(sqlite, "theirs"), queue(sqlite, "web", "gone")]
    # what is gone is not tried again
    go(retries=2)
    assert [reason(sqlite, run) for run in runs] == [(RunState.ERROR, "server_gone")] * 3


def test_a_job_that_may_lose_vms_goes_on_without_those_that_are_gone(sqlite: Database, go: Callable[..., None]) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["web", "gone"]))
    run = queue(sqlite, "gone", "web", on_vm_failure="degrade")
    go()
    assert [task.vm_id for task in tasks_of(sqlite, run.id)] == ["web"]
    with sqlite.reading() as session:
        vms = {vm.vm_id: (vm.state, vm.error and vm.error["code"]) for vm in session.query(BackupJobRunVm)}
    assert vms["gone"] == (RunVmState.SKIPPED, "server_gone")


def test_a_server_on_no_host_is_waited_for(sqlite: Database, nova: Nova, go: Callable[..., None]) -> None:
    nova.servers["web"] = server("web", None, status="BUILD")
    sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    run = queue(sqlite, "web")
    go()
    assert reason(sqlite, run) == (RunState.QUEUED, "server_on_no_host")
    assert "BUILD" in run_of(sqlite, run.backupjob_id).queued_reason["message"]
    nova.servers["web"] = server("web", "host-a")
    go()
    assert reason(sqlite, run)[0] == RunState.READY


def test_a_server_that_is_shelved_is_any_agent_s(sqlite: Database, nova: Nova, go: Callable[..., None]) -> None:
    """Its disk is an image. Its volumes nobody can read, so whoever wants the rest leaves them out."""
    attached = {"os-extended-volumes:volumes_attached": [{"id": "data"}]}
    nova.servers["web"] = server("web", None, status="SHELVED_OFFLOADED")
    sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    run = queue(sqlite, "web")
    go()
    assert reason(sqlite, run)[1] == "no_storage_agent"
    sqlite.run(lambda s: agent_with(s, "host-c", [], capabilities={"storage": ["nfs"]}))
    go()
    assert reason(sqlite, run)[0] == RunState.READY
    (task,) = tasks_of(sqlite, run.id)
    assert (task.host, task.needs, task.order["source"]) == (None, "storage", "storage")

    nova.servers["db"] = server("db", None, status="SHELVED_OFFLOADED", **attached)
    whole = queue(sqlite, "db")
    boot = queue(sqlite, Member("db", ("vdb",)))
    go()
    assert reason(sqlite, whole) == (RunState.QUEUED, "server_on_no_host")
    assert "volumes" in run_of(sqlite, whole.backupjob_id).queued_reason["message"]
    assert reason(sqlite, boot)[0] == RunState.READY


def test_a_server_in_rescue_is_waited_for(sqlite: Database, nova: Nova, go: Callable[..., None]) -> None:
    """What it runs from is not its own disk, whatever its host says of it."""
    nova.servers["web"] = server("web", "host-a", status="RESCUE")
    sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    run = queue(sqlite, "web")
    go()
    assert reason(sqlite, run) == (RunState.QUEUED, "server_in_rescue")
    nova.servers["web"] = server("web", "host-a")
    go()
    assert reason(sqlite, run)[0] == RunState.READY


def test_vms_beside_nova_are_protected_where_the_operator_has_some(sqlite: Database, go: Callable[..., None]) -> None:
    sqlite.run(lambda s: agent_with(s, "host-c", ["mail"]))
    sqlite.run(lambda s: agent_with(s, "host-d", ["free"], None))
    own, web = queue(sqlite, "mail"), queue(sqlite, "web")
    free = queue(sqlite, "free")
    sqlite.run(lambda s: agent_with(s, "host-z", ["web"]))
    go(libvirt_vms=True, unowned_vms_project=PROJECT)
    assert [task.host for task in tasks_of(sqlite, own.id)] == ["host-c"]
    assert [task.host for task in tasks_of(sqlite, free.id)] == ["host-d"]
    # of servers Nova's word counts all the same
    assert reason(sqlite, web) == (RunState.QUEUED, "server_elsewhere")


def test_vms_of_no_project_are_whose_the_operator_says(sqlite: Database, go: Callable[..., None]) -> None:
    sqlite.run(lambda s: agent_with(s, "host-d", ["free"], None))
    sqlite.run(lambda s: agent_with(s, "host-c", ["mail"]))
    free, own = queue(sqlite, "free"), queue(sqlite, "mail")
    go(unowned_vms_project=PROJECT)
    assert [task.host for task in tasks_of(sqlite, free.id)] == ["host-d"]
    assert reason(sqlite, own) == (RunState.ERROR, "server_gone")


def test_selectors_go_by_what_nova_says_of_servers(sqlite: Database, nova: Nova, go: Callable[..., None]) -> None:
    nova.servers = {
        "web": server("web", "host-a", tags=["gold"], metadata={"tier": "1"}),
        "db": server("db", "host-a", tags=["gold", "blue"]),
        "old": server("old", "host-a"),
        "other": server("other", "host-a", metadata={"tier": "1"}),
    }

    def see(session: Session) -> None:
        agent = agent_with(session, "host-a", [])
        sights = [services.Sight(vm, vm, "running", PROJECT) for vm in ("web", "db", "other")]
        # an agent cannot give a VM tags that its owner did not, nor another VM to the project
        sights += [services.Sight(vm, vm, "running", PROJECT, ("gold",)) for vm in ("old", "mail")]
        services.see(session, agent.id, sights)

    sqlite.run(see)
    tagged = queue(sqlite, vm_selector={"tags": ["gold"]})
    meant = queue(sqlite, vm_selector={"metadata": {"tier": "1"}})
    go(max_runs_per_project=-1)
    assert [task.vm_id for task in tasks_of(sqlite, tagged.id)] == ["db", "web"]
    assert reason(sqlite, meant) == (RunState.QUEUED, "vm_busy")
    for run in (tagged, meant):
        sqlite.run(lambda s, run=run: slots.release(s, run.id))
        sqlite.run(lambda s, run=run: s.query(BackupJobRun).filter_by(id=run.id).update({"state": "error"}) and None)
    beside = queue(sqlite, "old", vm_selector={"tags": ["gold"]})
    go(max_runs_per_project=-1, libvirt_vms=True)
    assert [task.vm_id for task in tasks_of(sqlite, beside.id)] == ["db", "mail", "old", "web"]


@pytest.mark.parametrize("status", [500, 401, 403])
def test_nova_being_away_is_waited_for_and_no_agent_believed(
    sqlite: Database, nova: Nova, go: Callable[..., None], status: int
) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["web", "db"]))
    first, second = queue(sqlite, "web"), queue(sqlite, "db")
    asked: list[str] = []

    def fail(path: str) -> Any:
        asked.append(path)
        return status, {"Content-Type": "application/json"}, b'{"error": {"code": 1, "message": "no"}}'

    nova.fault = fail
    go()
    code = "cloud_away" if status == 500 else "cloud_refused"
    assert reason(sqlite, first) == reason(sqlite, second) == (RunState.QUEUED, code)
    # one that is away, or refuses what acts by a trust, is asked once in a round
    assert len(asked) == 1
    nova.fault = lambda path: None
    go()
    assert reason(sqlite, first)[0] == RunState.READY
    # and what waits too long has failed
    nova.fault = fail
    sqlite.run(lambda s: aged(s, BackupJobRun, second.id, SETTINGS.max_wait + 60))
    go()
    assert reason(sqlite, second) == (RunState.ERROR, code)


# -- how often it is asked --------------------------------------------------------------------------


def asked(served: tuple[str, Seen]) -> list[str]:
    """What Nova was asked since the last look."""
    found = [path.removeprefix("/v2.1/servers/") for _, path, _, _ in served[1].requests]
    served[1].requests.clear()
    return found


def test_each_server_is_asked_for_once_in_a_round(
    sqlite: Database, served: tuple[str, Seen], go: Callable[..., None]
) -> None:
    runs = [queue(sqlite, *vms) for vms in (["web"], ["web", "db"], ["db"], ["gone"], ["gone", "web"])]
    go()
    assert asked(served) == ["web", "db", "gone"]
    codes = ["vm_not_seen"] * 3 + ["server_gone"] * 2
    assert [reason(sqlite, run)[1] for run in runs] == codes
    # the next round believes nothing that the last one heard
    go()
    assert asked(served) == ["web", "db"]


def test_the_list_is_read_once_in_a_round_and_is_enough_for_all(
    sqlite: Database, nova: Nova, served: tuple[str, Seen], go: Callable[..., None]
) -> None:
    nova.most = 10
    for tag in ("gold", "blue"):
        queue(sqlite, vm_selector={"tags": [tag]})
    queue(sqlite, "web", "gone")
    go()
    assert [path.partition("?")[0] for path in asked(served)] == ["detail", "detail"], "a page, and no more"


def test_a_list_that_is_too_long_is_asked_for_once_and_holds_up_no_job_that_names_its_servers(
    sqlite: Database, served: tuple[str, Seen], go: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "MOST", 1)
    sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    selecting = [queue(sqlite, vm_selector={"tags": ["gold"]}) for _ in range(2)]
    run = queue(sqlite, "web")
    go()
    assert [reason(sqlite, each) for each in selecting] == [(RunState.QUEUED, "too_many_servers")] * 2
    assert reason(sqlite, run)[0] == RunState.READY
    assert [path.partition("?")[0] for path in asked(served)] == ["detail", "web"]


def test_another_trust_that_is_refused_holds_up_nobody_else(
    sqlite: Database, access: Access, go: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusts: Any = access._trusts
    lend = trusts.cloud

    def cloud(trust_id: str, services: Any) -> LentCloud:
        lent: LentCloud = lend(trust_id, services)
        return replace(lent, token="gAAAA-without-roles") if trust_id == "poor" else lent

    monkeypatch.setattr(trusts, "cloud", cloud)
    sqlite.run(lambda s: agent_with(s, "host-a", ["web", "db"]))
    poor = queue(sqlite, "web")
    sqlite.run(lambda s: s.query(BackupJob).filter_by(id=poor.backupjob_id).update({"trust_id": "poor"}) and None)
    run = queue(sqlite, "web")
    go()
    assert reason(sqlite, poor) == (RunState.QUEUED, "cloud_refused")
    assert reason(sqlite, run)[0] == RunState.READY


@pytest.mark.parametrize(
    ("code", "settings"),
    [("vm_busy", {}), ("project_busy", {"max_runs_per_project": 1}), ("max_runs_reached", {"max_runs": 0})],
)
def test_what_has_to_wait_anyway_asks_nobody(
    sqlite: Database, served: tuple[str, Seen], go: Callable[..., None], code: str, settings: dict[str, int]
) -> None:
    sqlite.run(lambda s: agent_with(s, "host-a", ["web"]))
    taken = [Slot("vm", "web")] if code == "vm_busy" else [Slot("project", PROJECT)]
    sqlite.run(lambda s: slots.reserve(s, "another", taken))
    run = queue(sqlite, "web")
    go(**settings)
    assert reason(sqlite, run) == (RunState.QUEUED, code)
    assert asked(served) == []
    sqlite.run(lambda s: slots.release(s, "another"))
    go()
    assert asked(served) == ["web"] and reason(sqlite, run)[0] == RunState.READY


def test_who_may_leave_a_vm_out_does_not_wait_for_it_unasked(
    sqlite: Database, nova: Nova, served: tuple[str, Seen], go: Callable[..., None]
) -> None:
    """What is gone for good, and in use by nobody who says so, is not what such a run waits for."""
    del nova.servers["db"]
    sqlite.run(lambda s: agent_with(s, "host-a", ["web", "db"]))
    sqlite.run(lambda s: slots.reserve(s, "another", [Slot("vm", "db")]))
    run = queue(sqlite, "web", "db", on_vm_failure="degrade")
    go()
    assert [task.vm_id for task in tasks_of(sqlite, run.id)] == ["web"]
    assert sorted(asked(served)) == ["db", "web"]


def test_who_was_overtaken_too_long_still_says_what_is_to_be_kept(sqlite: Database, go: Callable[..., None]) -> None:
    """Also where its project has no slot left: the ones of its host are not given to those behind it."""
    sqlite.run(lambda s: agent_with(s, "host-a", ["web", "other"], capacity=1))
    sqlite.run(lambda s: slots.reserve(s, "another", [Slot("project", PROJECT)]))
    old = queue(sqlite, "web")
    sqlite.run(lambda s: aged(s, BackupJobRun, old.id, SETTINGS.max_overtaken + 60))
    theirs = sqlite.run(lambda s: make_run(s, make_job(s, "theirs", project_id="b", members=[Member("other")])))
    sqlite.run(lambda s: s.query(SeenVm).filter_by(vm_id="other").update({"project_id": "b"}) and None)
    go(max_runs_per_project=1)
    assert reason(sqlite, old) == (RunState.QUEUED, "project_busy")
    assert reason(sqlite, theirs) == (RunState.QUEUED, "overtaken")


def test_a_cloud_without_nova_leaves_it_to_agents(sqlite: Database, access: Access, go: Callable[..., None]) -> None:
    access._trusts.endpoints = {}  # type: ignore[union-attr]
    sqlite.run(lambda s: agent_with(s, "host-z", ["web"]))
    run = queue(sqlite, "web")
    go()
    assert [task.host for task in tasks_of(sqlite, run.id)] == ["host-z"]


def test_many_servers_are_asked_for_in_one_list(nova: Nova, served: tuple[str, Seen]) -> None:
    login = LentLogin(TOKEN, {"compute": f"{served[0]}/v2.1"})
    nova.servers |= {f"s{number:02}": server(f"s{number:02}", "host-a") for number in range(20)}
    nova.servers["theirs"] = {**server("theirs", "host-a"), "tenant_id": "another"}
    nova.most = 7
    some = frozenset({*(f"s{number:02}" for number in range(12)), "absent", "theirs"})
    assert set(placed(login, PROJECT, some)) == some - {"absent", "theirs"}
    few = placed(login, PROJECT, frozenset({"s01", "absent", "theirs"}))
    assert set(few) == {"s01"} and few["s01"].host_id == host_id(PROJECT, "host-a")
    assert len(placed(login, PROJECT, None)) == 22
    nova.fault = lambda path: (200, {"Content-Type": "application/json"}, b'{"servers": [{}]}')
    with pytest.raises(CloudUnavailable):
        placed(login, PROJECT, None)
