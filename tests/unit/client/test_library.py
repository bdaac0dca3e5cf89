"""The library: every manager against the real API, pages, changes at the same time, what goes wrong."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import requests
from keystoneauth1.session import Session

import raksha.client
from raksha.client import Client, errors, records, transport
from raksha.db.session import Database
from raksha.states import RunState
from tests.unit.api import world
from tests.unit.api.conftest import PASSWORD
from tests.unit.client.conftest import URL, Wire, logged_in

VMS = [{"id": world.WEB, "excluded_disks": ["vdb"]}]


def test_it_brings_in_no_other_part_of_raksha() -> None:
    names = [f"raksha.client.{path.stem}" for path in Path(raksha.client.__file__).parent.glob("*.py")]
    assert len(names) > 8
    code = f"import sys, importlib; [importlib.import_module(n) for n in {names!r}]; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    modules = found.stdout.split()
    assert [name for name in modules if name.startswith("raksha.") and not name.startswith("raksha.client")] == []
    assert {"flask", "sqlalchemy", "libvirt", "nbd", "oslo_config"} & set(modules) == set()


def test_a_job_from_its_making_to_its_end(client: Client) -> None:
    schedule = {"cron": "0 2 * * *", "zone": "Europe/Paris"}
    made = client.jobs.create("nightly", vms=VMS, schedule=schedule, retention={"daily": 7}, metadata={"a": "b"})
    assert made.vms == (records.VmOfJob(id=world.WEB, excluded_disks=("vdb",)),)
    assert made.schedule is not None and (made.schedule.cron, made.schedule.zone) == ("0 2 * * *", "Europe/Paris")
    assert made.next_run_at is not None and made.next_run_at.tzinfo is not None
    assert client.jobs.find("nightly") == client.jobs.find(made.id) == made
    assert client.jobs.pause(made.id).state == "paused"
    assert client.jobs.resume(made.id).state == "active"
    assert client.jobs.update(made.id, description="x", retention=None).retention is None
    assert [job.id for job in client.jobs.list(state=("active", "paused"), vm_id=world.WEB)] == [made.id]
    assert list(client.jobs.list(state="paused")) == []
    client.jobs.delete(made.id)
    assert client.jobs.get(made.id).state == "deleting"


def test_two_who_change_the_same_thing(client: Client) -> None:
    made = client.jobs.create("nightly", vms=VMS)
    client.jobs.update(made.id, description="first")
    with pytest.raises(errors.ChangedMeanwhile) as caught:
        client.jobs.update(made.id, etag=made.etag, description="second")
    assert "nothing was done" in caught.value.told() and caught.value.request_id is not None
    assert client.jobs.get(made.id).description == "first"


def test_names_that_several_things_have(client: Client) -> None:
    ids = sorted(client.jobs.create("twin", vms=VMS).id for _ in range(2))
    with pytest.raises(errors.Ambiguous) as caught:
        client.jobs.find("twin")
    assert sorted(caught.value.ids) == ids and all(id in str(caught.value) for id in ids)
    with pytest.raises(errors.NoSuch, match="no job 'nightly'"):
        client.jobs.find("nightly")
    with pytest.raises(errors.NoSuch, match=world.NOBODY):
        client.jobs.find(world.NOBODY)


def test_pages_are_fetched_as_they_are_needed(client: Client, wire: Wire) -> None:
    made = [client.jobs.create(f"job{number}", vms=VMS).id for number in range(5)]
    wire.sent.clear()
    first = client.jobs.page(limit=2, sort="name:asc")
    assert ([job.id for job in first.entries], first.marker) == (made[:2], made[1])
    assert [job.id for job in client.jobs.list(marker=first.marker, sort="name:asc")] == made[2:]
    wire.sent.clear()
    listed = client.transport.all(records.Job, "backupjobs", "/backupjobs", {"sort": "name:asc", "limit": 2}, None)
    assert [job.id for job in itertools.islice(listed, 3)] == made[:3]
    assert len(wire.sent) == 2
    assert [job.id for job in listed] == made[3:]
    assert len(wire.sent) == 3
    assert [job.id for job in client.jobs.list(limit=3, sort="name:desc")] == made[:1:-1]


def test_runs_and_restores(client: Client, database: Database) -> None:
    job = client.jobs.create("nightly", vms=VMS)
    point = world.point(database, job.id)
    found = client.runs.get(job.id, point.id)
    assert found.vms is not None and found.vms[0].resources[0].backup is not None and found.restorable and found.ended
    ids = [client.jobs.create("other", vms=VMS).id, job.id]
    assert [client.runs.find(text, ids) for text in (point.id, point.id[:8], "latest")] == [found] * 3
    for nothing in (world.NOBODY, "ffffffff-", "nonsense"):
        with pytest.raises(errors.NoSuch):
            client.runs.find(nothing, ids)
    assert client.runs.update(job.id, point.id, protected=True).protected
    with pytest.raises(errors.Conflict) as caught:
        client.jobs.delete(job.id, with_runs=True)
    assert caught.value.reason == "protected" and "--unprotect" in caught.value.told()

    plan = client.restores.plan(job.id, point.id, {"kind": "domain"}, [{"id": world.WEB, "name": "again"}])
    assert plan.vms[0].new_name == "again" and plan.vms[0].disks[0].resource == "vda"
    assert list(client.restores.list()) == []
    restore = client.restores.create(job.id, point.id, {"kind": "domain"})
    assert client.restores.find(restore.id) == client.restores.find(restore.id[:8]) == restore
    assert [each.id for each in client.restores.list(backupjobrun_id=point.id)] == [restore.id]
    assert client.restores.cancel(restore.id).cancel_requested_at is not None

    queued = client.runs.start(job.id, kind="full", description="by hand")
    assert (queued.state, queued.kind, queued.description, queued.ended) == ("queued", "full", "by hand", False)
    assert client.runs.cancel(job.id, queued.id).state in ("cancelled", "queued")
    with pytest.raises(errors.Conflict):
        client.runs.delete(job.id, point.id)
    assert [run.id for run in client.runs.list(job.id, protected=True)] == [point.id]


def test_the_others(client: Client, wire: Wire, database: Database) -> None:
    assert {vm.name: vm.refusal is None for vm in client.vms.list()} == {"web": True, "db": False}
    assert client.vms.find("web").tags == ("gold", "x") and client.vms.find(world.WEB).backupjobs == ()
    assert client.vaults.find("main").is_default
    assert client.usage.get() == records.Usage()
    assert client.limits.get().max_page_size == 1000
    preview = client.previews.schedule({"cron": "0 2 * * *"}, count=3)
    assert len(preview.fire_times) == 3 and "02:00" in preview.in_words
    job = client.jobs.create("nightly", vms=VMS)
    for day in (1, 2, 3):
        world.point(database, job.id, taken_at=day * 86400)
    kept = client.previews.retention(job.id, {"keep_last": 1})
    assert (kept.kept, kept.deleted) == (1, 2) and kept.decisions[-1].kept
    with pytest.raises(errors.NotAllowed) as caught:
        list(client.services.list())
    assert "admin operates" in caught.value.told()
    admin = Client(logged_in(wire, "admin"), project_id="p1")
    agent = next(each for each in admin.services.list(kind="agent") if each.name == "host-a")
    assert admin.services.update(agent.id, state="disabled", reason="work").state == "disabled"
    assert admin.limits.update(max_jobs=7).max_jobs == 7


@pytest.mark.parametrize("url", [URL, f"{URL}/", f"{URL}/v1", f"{URL}/v1/", f"{URL}/v1/p1", f"{URL}/v1/p1/"])
def test_an_address_in_any_form(wire: Wire, url: str) -> None:
    own = None if "p1" in url else "p1"
    client = Client(logged_in(wire, url=url), project_id=own)
    assert (client.project_id, client.transport.url) == ("p1", f"{URL}/v1/p1")
    assert Client(logged_in(wire), endpoint_override=url, project_id=own).usage.get().jobs == 0


def test_the_project_cannot_be_guessed(wire: Wire) -> None:
    with pytest.raises(errors.ProjectUnknown) as caught:
        Client(logged_in(wire)).usage.get()
    assert "--os-project-id" in caught.value.told()
    assert wire.sent == []


def test_a_project_is_one_part_of_an_address(wire: Wire) -> None:
    with pytest.raises(errors.NotFound):
        Client(logged_in(wire), project_id="../../p1").usage.get()
    assert "/v1/..%2F..%2Fp1/usage" in str(wire.sent[-1].url)


def test_what_the_api_refuses(client: Client, wire: Wire) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        client.jobs.create("", vms=VMS, engine="steam", nonsense=1)
    error = caught.value
    assert len(error.problems) == 3 and error.code == "data-protection.request_invalid"
    assert error.request_id is not None and error.request_id in error.told()
    with pytest.raises(errors.NotAuthenticated) as refused:
        Client(logged_in(wire, password="wrong"), project_id="p1").usage.get()
    assert "OS_PASSWORD" in refused.value.told() and PASSWORD not in refused.value.told()
    with pytest.raises(errors.NotFound):
        Client(logged_in(wire), project_id="p2").usage.get()


def test_headers_of_requests(client: Client, wire: Wire) -> None:
    client.jobs.create("nightly", vms=VMS)
    sent = wire.sent[-1].headers
    assert sent["OpenStack-API-Version"] == "data-protection 1.0"
    assert len(sent["Idempotency-Key"]) == 36


def test_a_post_is_sent_again_and_done_once(client: Client, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystoneauth1.session.time.sleep", lambda _: None)
    lost = iter([True, False])

    def lose_the_answer(request: requests.PreparedRequest) -> None:
        if request.method == "POST" and next(lost):
            wire._asked(request)
            raise requests.exceptions.ConnectionError("gone")

    wire.before = lose_the_answer
    made = client.jobs.create("nightly", vms=VMS)
    assert [job.id for job in client.jobs.list()] == [made.id]


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [(200, b"<html>hello</html>", errors.UnexpectedAnswer), (200, b"[1]", errors.UnexpectedAnswer),
     (302, b"", errors.UnexpectedAnswer), (500, b"<html>", errors.ServiceFailed), (401, b"no", errors.NotAuthenticated),
     (418, b'{"errors": []}', errors.UnexpectedAnswer)],
)  # fmt: skip
def test_answers_that_are_not_of_the_api(
    client: Client, wire: Wire, status: int, content: bytes, kind: type[errors.ClientError]
) -> None:
    wire.before = lambda _: (status, {"Location": "http://evil.example/"}, content)
    with pytest.raises(kind):
        client.usage.get()
    with pytest.raises(kind):
        list(client.jobs.list())
    assert {str(each.url).split("/v1")[0] for each in wire.sent} == {URL}


def test_nobody_answers() -> None:
    with pytest.raises(errors.Unreachable) as caught:
        Client(Session(), endpoint_override="http://127.0.0.1:1/v1/p1").usage.get()
    assert "does the service run" in caught.value.told()


def test_what_a_later_api_adds_is_passed_over(client: Client, wire: Wire) -> None:
    job = client.jobs.create("nightly", vms=VMS)

    def with_more(request: requests.PreparedRequest) -> tuple[int, dict[str, str], bytes]:
        status, headers, data = wire._asked(request)
        return status, headers, json.dumps({**json.loads(data), "novel": {"a": 1}, "state": "dozing"}).encode()

    wire.before = with_more
    assert client.jobs.get(job.id).state == "dozing"


def test_records_have_the_fields_of_the_documented_api() -> None:
    """A field that the API gains is noticed here."""
    schemas = json.loads((Path(__file__).parents[3] / "docs/openapi.json").read_text())["components"]["schemas"]
    pairs = {
        "JobShown": records.Job, "ScheduleShown": records.Schedule, "RetentionShown": records.Retention,
        "RunDetail": records.Run, "RunVmShown": records.VmOfRun, "ResourceShown": records.DiskOfRun,
        "BackupShown": records.Backup, "RestoreShown": records.Restore, "TargetShown": records.Target,
        "RestorePlan": records.RestorePlan, "VmDetail": records.Vm, "VaultShown": records.Vault,
        "ServiceShown": records.Service, "Usage": records.Usage, "Limits": records.Limits, "Progress": records.Progress,
        "PreviewShown": records.SchedulePreview, "RetentionPreview": records.RetentionPreview,
        "DecisionShown": records.Decision, "VerificationShown": records.Verification, "FindingShown": records.Finding,
        "BootShown": records.VmBooted, "RestoreTestShown": records.RestoreTest,
    }  # fmt: skip
    for name, kind in pairs.items():
        known = {field.name for field in msgspec.structs.fields(kind)}
        assert set(schemas[name]["properties"]) - known == set(), name


@pytest.mark.parametrize(
    ("given", "word"), [(True, "true"), (("a",), "a"), (("b", "a"), "in:a,b"), ("x", "x"), (7, "7"), (None, None)]
)
def test_parameters(given: object, word: str | None) -> None:
    assert transport.worded({"name": given}) == ({} if word is None else {"name": word})


def test_the_latest_run_of_a_state_is_found_among_others(client: Client, database: Database) -> None:
    job = client.jobs.create("nightly", vms=VMS)
    point = world.point(database, job.id)
    world.run(database, job.id, RunState.ERROR)
    assert client.runs.find("latest", [job.id]).id == point.id


def test_another_project_needs_keystone(client: Client, database: Database, wire: Wire) -> None:
    job = client.jobs.create("nightly", vms=VMS)
    point = world.point(database, job.id)
    target = {"kind": "volume", "project": "other"}
    wire.sent.clear()
    with pytest.raises(errors.NotLoggedIn, match="for one project"):
        client.restores.create(job.id, point.id, target)
    assert wire.sent == []
    # a token that is given goes with the request, and this service has no use for it
    with pytest.raises(errors.ApiError, match="Without Keystone"):
        client.restores.create(job.id, point.id, target, target_token="gAAAA")
