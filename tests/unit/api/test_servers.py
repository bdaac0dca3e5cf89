"""VMs of a project that Nova shows to the caller's token: listed, named by jobs; and Nova failing at each of that."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
from sqlalchemy.orm import Session

from raksha.api import keystone
from raksha.db import jobs
from raksha.db.models import BackupJob, Service
from raksha.db.session import Database
from raksha.openstack import compute
from raksha.openstack.compute import Servers
from tests.bed.scheduling import silent
from tests.contract.identity import Seen, serving
from tests.unit.api import nova as played
from tests.unit.api import world
from tests.unit.api.conftest import Api, basic, error
from tests.unit.api.nova import Answer, Nova, WithTokens, catalog
from tests.unit.api.test_keystone import COMPLETE
from tests.unit.api.world import DB, FOREIGN, NOBODY, UNOWNED, WEB

VMS, JOBS = "/v1/p1/vms", "/v1/p1/backupjobs"
ANY = {"If-Match": "*"}
#: seconds an answer of Nova is waited for: an idle machine needs a hundredth
PATIENCE = 3.0
#: of Nova alone; DB is of libvirt alone, WEB of both
NEW, SHELVED = "00000000-0000-4000-8000-00000000001a", "00000000-0000-4000-8000-00000000001b"
THEIRS = "00000000-0000-4000-8000-0000000000f1"
VOLUME = "00000000-0000-4000-8000-0000000000c1"


@pytest.fixture
def nova() -> Nova:
    return Nova(
        played.server(WEB, "shop", "p1", tags=["gold", "blue"], metadata={"tier": "2", "owner": "ann"},
                      **{"os-extended-volumes:volumes_attached": [{"id": VOLUME}]}),
        played.server(NEW, "new", "p1", status="BUILD", **{"OS-EXT-STS:power_state": 0}),
        played.server(SHELVED, "asleep", "p1", status="SHELVED_OFFLOADED", **{"OS-EXT-STS:power_state": 4}),
        played.server(THEIRS, "theirs", "p2"),
    )  # fmt: skip


@pytest.fixture
def served(nova: Nova) -> Iterator[tuple[str, Seen]]:
    with serving(nova.answer) as found:
        yield found


@pytest.fixture
def who(users_file: Path, nova: Nova, served: tuple[str, Seen]) -> WithTokens:
    return WithTokens(users_file, nova, catalog(served[0]))


@pytest.fixture
def api(make_api: Callable[..., Api], database: Database, who: WithTokens) -> Api:
    """With VMs beside Nova, as an operator may have them."""
    world.agents(database)
    return make_api(authenticator=who, servers=Servers(region="north", patience=PATIENCE), libvirt_vms=True)


@pytest.fixture
def plain_api(make_api: Callable[..., Api], database: Database, who: WithTokens) -> Api:
    """As clouds are that have servers only."""
    world.agents(database)
    return make_api(authenticator=who, servers=Servers(region="north", patience=PATIENCE))


def names(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return [vm["name"] for vm in answer.json["vms"]]


def kept(database: Database) -> list[BackupJob]:
    with database.reading() as session:
        return list(session.query(BackupJob))


@pytest.fixture
def behind_keystone(
    make_api: Callable[..., Api], database: Database, nova: Nova, served: tuple[str, Seen], tmp_path: Path
) -> Iterator[Api]:
    """As `raksha-api` is set up by a file: keystonemiddleware in front, which asks a Keystone that knows one token."""
    nova.tokens["gAAAA-ann"] = ("p1", False)
    north, south = catalog(served[0]), catalog("http://127.0.0.1:9", region="south")
    both = [{**north[0], "endpoints": [*south[0]["endpoints"], *north[0]["endpoints"]]}]

    def answer(method: str, path: str, headers: dict[str, str], _body: bytes) -> Answer:
        if path.startswith("/v3/auth/tokens") and method == "POST":
            inside = {"id": "k", "interface": "internal", "region": "north", "region_id": "north", "url": f"{url}/v3"}
            itself = [{"id": "i", "type": "identity", "name": "keystone", "endpoints": [inside]}]
            body = played.said_of("raksha", "service", ["service"], itself)
            return 201, {"X-Subject-Token": "gAAAA-service"}, json.dumps(body).encode()
        if path.startswith("/v3/auth/tokens") and headers.get("X-Subject-Token") == "gAAAA-ann":
            body = played.said_of("ann", "p1", ["member", "reader"], both)
            return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()
        if path.rstrip("/") == "/v3":
            link = {"rel": "self", "href": f"{url}/v3/"}
            version = {"version": {"id": "v3.14", "status": "stable", "links": [link]}}
            return 200, {"Content-Type": "application/json"}, json.dumps(version).encode()
        return 404, {}, b""

    with serving(answer) as (url, _):
        file = tmp_path / "raksha.conf"
        file.write_text(COMPLETE.replace("http://127.0.0.1:1/v3", f"{url}/v3") + "[trustee]\nregion_name = north\n")
        who, _grantor, servers = keystone.load(file)
        world.agents(database)
        yield make_api(authenticator=who, servers=servers)


def test_the_token_that_came_in_is_the_one_that_nova_sees(
    behind_keystone: Api, served: tuple[str, Seen], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = {"X-Auth-Token": "gAAAA-ann"}
    assert set(names(behind_keystone("GET", VMS, None, headers=token))) == {"asleep", "new", "shop"}
    error(behind_keystone("GET", f"{VMS}/{THEIRS}", None, headers=token), 404, "not_found")
    body = {"name": "x", "vms": [{"id": THEIRS}]}
    error(behind_keystone("POST", JOBS, None, headers=token, json=body), 400, "request_invalid")
    # and no other: that of the service is for Keystone
    shown = [headers for _, _, headers, _ in served[1].requests]
    assert {headers.get("X-Auth-Token") for headers in shown} == {"gAAAA-ann"}
    assert not any("gAAAA-service" in str(headers) for headers in shown)
    assert "gAAAA" not in caplog.text


# -- lists ------------------------------------------------------------------------------------------


def test_a_server_is_listed_with_what_its_agent_sees(api: Api) -> None:
    found = {vm["id"]: vm for vm in api("GET", VMS, "reader").json["vms"]}
    assert set(found) == {WEB, NEW, SHELVED, DB}
    both = found[WEB]
    assert (both["name"], both["power"], both["status"]) == ("shop", "running", "ACTIVE")
    # a selector of a job goes by these
    assert both["tags"] == ["blue", "gold"]
    assert both["metadata"] == {"tier": "2", "owner": "ann"}
    assert both["disks"] == [{"target": "vda", "size": 1 << 30, "reason": None}]
    assert (both["volumes"], both["refusal"]) == ([VOLUME], None)
    assert both["seen_at"] is not None


def test_a_server_that_no_agent_sees_says_so(api: Api) -> None:
    found = api("GET", f"{VMS}/{NEW}").json
    assert (found["power"], found["seen_at"]) == ("unknown", None)
    assert (found["refusal"]["code"], found["disks"], found["backupjobs"]) == ("vm_not_seen", [], [])


def test_a_shelved_server_can_be_protected_where_an_agent_takes_it_from_storage(
    api: Api, database: Database, nova: Nova
) -> None:
    def refusals() -> set[str | None]:
        listed = {vm["id"]: vm for vm in api("GET", VMS).json["vms"]}
        both = (listed[SHELVED], api("GET", f"{VMS}/{SHELVED}").json)
        return {vm["refusal"] and vm["refusal"]["code"] for vm in both}

    found = api("GET", f"{VMS}/{SHELVED}").json
    assert (found["power"], found["status"], found["seen_at"]) == ("shut off", "SHELVED_OFFLOADED", None)
    assert refusals() == {"no_storage_agent"}

    def able(session: Session) -> None:
        for agent in session.query(Service):
            agent.capabilities = {"storage": True}

    database.run(able)
    assert refusals() == {None}
    nova.servers[SHELVED]["os-extended-volumes:volumes_attached"] = [{"id": VOLUME}]
    assert refusals() == {"server_on_no_host"}


def test_of_a_server_whose_agent_is_silent_nova_knows_better(api: Api, database: Database, nova: Nova) -> None:
    nova.servers[WEB]["OS-EXT-STS:power_state"] = 4
    assert api("GET", f"{VMS}/{WEB}").json["power"] == "running", "its host knows first"

    def all_silent(session: Session) -> None:
        for agent in session.query(Service):
            silent(session, agent, 61)

    database.run(all_silent)
    listed = {vm["id"]: vm for vm in api("GET", VMS, "reader").json["vms"]}
    for found in (listed[WEB], api("GET", f"{VMS}/{WEB}").json):
        assert (found["power"], found["refusal"]["code"]) == ("shut off", "agent_gone")
        assert found["seen_at"] is not None
    # what libvirt alone has is as it was seen last
    assert (listed[DB]["power"], listed[DB]["refusal"]["code"]) == ("shut off", "agent_gone")
    assert listed[NEW]["refusal"]["code"] == "vm_not_seen"


def test_a_vm_that_libvirt_alone_has_is_listed_as_before(api: Api) -> None:
    found = api("GET", f"{VMS}/{DB}").json
    assert (found["name"], found["status"], found["volumes"]) == ("db", None, [])
    assert found["refusal"]["code"] == "vm_unsupported"


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("sort=name", ["asleep", "db", "new", "shop"]),
        ("sort=name:desc", ["shop", "new", "db", "asleep"]),
        ("sort=power,name:desc", ["shop", "db", "asleep", "new"]),
        ("sort=id", ["shop", "db", "new", "asleep"]),
        # newest first: what nobody has seen comes last; of the same moment the higher id is first
        ("", ["db", "shop", "asleep", "new"]),
    ],
)
def test_pages_have_each_once_in_one_order(api: Api, sort: str, expected: list[str]) -> None:
    assert names(api("GET", f"{VMS}?{sort}")) == expected
    for limit in (1, 3):
        found: list[str] = []
        path = f"{VMS}?{sort}&limit={limit}"
        while path:
            answer = api("GET", path)
            found += names(answer)
            links = answer.json.get("vms_links", [{"href": ""}])
            path = links[0]["href"].removeprefix("http://localhost")
        assert found == expected


def test_lists_are_filtered(api: Api) -> None:
    assert names(api("GET", f"{VMS}?power=shut off&sort=name")) == ["asleep", "db"]
    assert names(api("GET", f"{VMS}?power=unknown")) == ["new"]
    # by the name that the owner gave it, not by that of the hypervisor
    assert names(api("GET", f"{VMS}?name=shop")) == ["shop"]
    assert names(api("GET", f"{VMS}?name=web")) == []
    error(api("GET", f"{VMS}?marker={THEIRS}"), 400, "marker_unknown")
    error(api("GET", f"{VMS}?name=shop&marker={DB}"), 400, "marker_unknown")


@pytest.mark.parametrize(
    "query", ["", "sort=name", "sort=power:desc,id", "sort=id:desc", "sort_key=name", f"sort=name&marker={DB}",
              f"sort=created_at&marker={WEB}", "power=shut off", "name=web", "limit=1", f"marker={THEIRS}"],
)  # fmt: skip
def test_where_nova_has_none_lists_are_as_without_it(
    api: Api, make_api: Callable[..., Api], nova: Nova, query: str
) -> None:
    nova.servers.clear()
    found, plain = api("GET", f"{VMS}?{query}"), make_api()("GET", f"{VMS}?{query}")
    assert found.status_code == plain.status_code
    if found.status_code == 200:
        assert found.json == plain.json


def test_more_servers_than_a_list_holds_are_said_to_be_too_many(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "MOST", 3)
    assert len(names(api("GET", VMS))) == 4
    monkeypatch.setattr(compute, "MOST", 2)
    assert "more than 2 servers" in error(api("GET", VMS), 403, "too_many_servers")
    assert api("GET", f"{VMS}/{SHELVED}").status_code == 200


# -- whose ------------------------------------------------------------------------------------------


def test_what_only_an_agent_says_is_nobodys_unless_the_operator_says_so(
    plain_api: Api, make_api: Callable[..., Api], who: WithTokens
) -> None:
    """A hypervisor that is not one's friend could give itself anybody's VM."""
    assert set(names(plain_api("GET", VMS))) == {"asleep", "new", "shop"}
    assert error(plain_api("GET", f"{VMS}/{DB}"), 404, "not_found") == f"There is no VM {DB}."
    body = {"name": "x", "vms": [{"id": WEB}, {"id": DB}]}
    said = error(plain_api("POST", JOBS, json=body), 400, "request_invalid")
    assert "vms.1.id" in said and "vms.0" not in said
    assert plain_api("GET", f"{VMS}/{WEB}").json["seen_at"] is not None
    # VMs of no project are those that an operator has given to one
    given = make_api(authenticator=who, servers=Servers(region="north", patience=PATIENCE), unowned_vms_project="p1")
    assert set(names(given("GET", VMS))) == {"asleep", "new", "shop", "unowned"}
    assert given("GET", f"{VMS}/{UNOWNED}").status_code == 200
    assert given("POST", JOBS, json={"name": "x", "vms": [{"id": UNOWNED}]}).status_code == 201
    error(given("GET", f"{VMS}/{DB}"), 404, "not_found")


def test_servers_of_others_are_not_there(api: Api) -> None:
    for user in ("reader", "member", "admin"):
        assert THEIRS not in api("GET", VMS, user).get_data(as_text=True)
        for foreign in (THEIRS, FOREIGN, UNOWNED, NOBODY):
            assert error(api("GET", f"{VMS}/{foreign}", user), 404, "not_found") == f"There is no VM {foreign}."
    assert {vm["id"] for vm in api("GET", "/v1/p2/vms", "stranger").json["vms"]} == {THEIRS, FOREIGN}


def test_an_operator_looks_at_another_project_where_nova_lets_him(
    api: Api, nova: Nova, served: tuple[str, Seen]
) -> None:
    assert {vm["id"] for vm in api("GET", "/v1/p2/vms", "admin").json["vms"]} == {THEIRS, FOREIGN}
    assert api("GET", f"/v1/p2/vms/{THEIRS}", "admin").json["status"] == "ACTIVE"
    assert "all_tenants=1" in served[1].requests[0][1]
    # of his own project he sees what anybody in it does
    served[1].requests.clear()
    api("GET", VMS, "admin")
    assert not any("all_tenants" in path for _, path, _, _ in served[1].requests)
    nova.tokens["gAAAA-admin"] = ("p1", False)
    assert "403" in error(api("GET", "/v1/p2/vms", "admin"), 403, "cloud_refused")


# -- jobs -------------------------------------------------------------------------------------------


def test_a_job_names_servers_of_its_project_seen_or_not(api: Api) -> None:
    made = api("POST", JOBS, json={"name": "x", "vms": [{"id": WEB}, {"id": NEW}, {"id": DB}]})
    assert made.status_code == 201, made.get_data(as_text=True)
    assert api("GET", f"{VMS}/{NEW}").json["backupjobs"] == [made.json["id"]]


@pytest.mark.parametrize("foreign", [THEIRS, FOREIGN, UNOWNED, NOBODY])
def test_a_job_names_no_server_of_others(api: Api, database: Database, foreign: str) -> None:
    for user in ("member", "admin"):
        said = error(api("POST", JOBS, user, json={"name": "x", "vms": [{"id": WEB}, {"id": foreign}]}),
                     400, "request_invalid")  # fmt: skip
        assert said == f"vms.1.id: There is no VM {foreign}."
    made = api("POST", JOBS, json={"name": "x", "vms": [{"id": WEB}]}).json["id"]
    said = error(api("PUT", f"{JOBS}/{made}", json={"vms": [{"id": foreign}]}, headers=ANY), 400, "request_invalid")
    assert said == f"vms.0.id: There is no VM {foreign}."
    (job,) = kept(database)
    with database.reading() as session:
        assert [vm.vm_id for vm in jobs.members(session, [job.id])[job.id]] == [WEB]


def test_a_server_that_the_job_has_may_be_gone(api: Api, nova: Nova, served: tuple[str, Seen]) -> None:
    made = api("POST", JOBS, json={"name": "x", "vms": [{"id": NEW}]}).json["id"]
    del nova.servers[NEW]
    served[1].requests.clear()
    body = {"name": "y", "vms": [{"id": NEW}]}
    assert api("PUT", f"{JOBS}/{made}", json=body, headers=ANY).status_code == 200
    assert served[1].requests == []
    changed = api("PUT", f"{JOBS}/{made}", json={"vms": [{"id": NEW}, {"id": SHELVED}]}, headers=ANY)
    assert [vm["id"] for vm in changed.json["vms"]] == [NEW, SHELVED]
    error(api("POST", JOBS, json={"name": "z", "vms": [{"id": NEW}]}), 400, "request_invalid")


def test_in_place_goes_what_nova_shows_to_the_caller(plain_api: Api, database: Database, nova: Nova) -> None:
    """Also in the moment when it is on no host; what its agent says of a server that changed hands does not count."""

    def asked(api: Api, vm: str) -> Any:
        point = world.point(database, job, vms=(vm,))
        return api("POST", f"{JOBS}/{job}/backupjobruns/{point.id}", json={"target": {"kind": "in_place"}})

    job = plain_api("POST", JOBS, json={"name": "x", "vms": [{"id": WEB}, {"id": NEW}]}).json["id"]
    assert asked(plain_api, WEB).status_code == 202
    assert asked(plain_api, NEW).status_code == 202
    assert error(asked(plain_api, THEIRS), 404, "not_found") == f"There is no VM {THEIRS}."
    del nova.servers[WEB]
    assert error(asked(plain_api, WEB), 404, "not_found") == f"There is no VM {WEB}."


def test_for_many_ids_the_list_is_read(api: Api, nova: Nova, served: tuple[str, Seen]) -> None:
    many = [f"00000000-0000-4000-8000-0000000001{number:02x}" for number in range(40)]
    for id in many:
        nova.servers[id] = played.server(id, "one of many", "p1")
    nova.most = 50
    body = {"name": "x", "vms": [{"id": id} for id in many]}
    assert api("POST", JOBS, json=body).status_code == 201
    assert len(served[1].requests) == 1
    body["vms"].append({"id": THEIRS})  # type: ignore[attr-defined]
    assert error(api("POST", JOBS, json=body), 400, "request_invalid") == f"vms.40.id: There is no VM {THEIRS}."
    # more than a job may have: nobody is asked
    served[1].requests.clear()
    body["vms"] = [{"id": f"00000000-0000-4000-8000-000000000{number:03x}"} for number in range(101)]
    error(api("POST", JOBS, json=body), 403, "limit_exceeded")
    assert served[1].requests == []


# -- Nova fails ---------------------------------------------------------------------------------------


def _late(_path: str) -> Answer | None:
    time.sleep(PATIENCE + 0.5)
    return None


FAULTS: dict[str, tuple[Callable[[str], Answer | None], int, str]] = {
    "broken": (lambda path: (500, {}, b"Unexpected API Error"), 503, "cloud_unavailable"),
    "away": (lambda path: (503, {}, b""), 503, "cloud_unavailable"),
    "busy": (lambda path: (429, {"Retry-After": "1"}, b""), 503, "cloud_unavailable"),
    "late": (_late, 503, "cloud_unavailable"),
    "no JSON": (lambda path: (200, {"Content-Type": "text/html"}, b"<html>"), 503, "cloud_unavailable"),
    "another JSON": (lambda path: (200, {"Content-Type": "application/json"}, b'{"x": [1]}'), 503, "cloud_unavailable"),
    "refused": (lambda path: (403, {}, b""), 403, "cloud_refused"),
    "revoked": (lambda path: (401, {}, b""), 401, "not_authenticated"),
}


@pytest.mark.parametrize(("fault", "status", "code"), FAULTS.values(), ids=FAULTS)
def test_without_an_answer_of_nova_there_is_neither_list_nor_job(
    api: Api, nova: Nova, database: Database, caplog: pytest.LogCaptureFixture,
    fault: Callable[[str], Answer | None], status: int, code: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    nova.fault = fault
    for answer in (
        api("GET", VMS),
        api("GET", f"{VMS}/{WEB}"),
        api("POST", JOBS, json={"name": "x", "vms": [{"id": WEB}]}),
    ):
        said = error(answer, status, code)
        assert "gAAAA" not in said and "127.0.0.1" not in said
        assert ("Retry-After" in answer.headers) == (status == 503)
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    assert kept(database) == []
    assert "gAAAA" not in caplog.text


def test_a_list_that_breaks_off_is_no_list(api: Api, nova: Nova) -> None:
    nova.fault = lambda path: (500, {}, b"") if "marker=" in path else None
    error(api("GET", VMS), 503, "cloud_unavailable")
    # the last one of the first page is deleted before the second is asked for
    nova.fault = lambda path: nova.servers.pop(NEW, None) and None if "marker=" in path else None
    error(api("GET", VMS), 503, "cloud_unavailable")
    assert set(names(api("GET", VMS))) == {"asleep", "db", "shop"}


def page(*servers: dict[str, Any]) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps({"servers": servers}).encode()


def test_a_nova_that_repeats_a_page_comes_to_an_end(api: Api, nova: Nova) -> None:
    nova.fault = lambda path: page(nova.servers[WEB], nova.servers[NEW])
    assert set(names(api("GET", VMS))) == {"db", "new", "shop"}


def test_a_nova_that_shows_servers_of_others_changes_nothing(api: Api, nova: Nova) -> None:
    nova.fault = lambda path: page() if "marker=" in path else page(*nova.servers.values())
    assert set(names(api("GET", VMS))) == {"asleep", "db", "new", "shop"}
    nova.fault = lambda path: page() if "marker=" in path else page(nova.servers[THEIRS])
    many = [f"{THEIRS[:-2]}{number:02x}" for number in range(0xE0, 0xF2)]
    answer = api("POST", JOBS, json={"name": "x", "vms": [{"id": id} for id in many]})
    assert (answer.status_code, THEIRS in many) == (400, True)
    assert len(answer.json["errors"]) == len(many)


def test_a_token_does_not_follow_a_redirect(api: Api, nova: Nova) -> None:
    with serving(lambda *_: (200, {}, b"{}")) as (elsewhere, seen):
        nova.fault = lambda path: (302, {"Location": elsewhere + path}, b"")
        error(api("GET", VMS), 503, "cloud_unavailable")
        error(api("GET", f"{VMS}/{WEB}"), 503, "cloud_unavailable")
    assert seen.requests == []


def test_nothing_listens_where_the_catalog_says(api: Api, who: WithTokens) -> None:
    who.catalog = catalog("http://127.0.0.1:9")
    error(api("GET", VMS), 503, "cloud_unavailable")
    who.catalog = catalog("http://127.0.0.1:9", region="south")
    error(api("GET", VMS), 503, "cloud_unavailable")
    who.catalog = None
    error(api("GET", VMS), 503, "cloud_unavailable")


def test_a_cloud_without_nova_has_what_agents_see(api: Api, who: WithTokens, served: tuple[str, Seen]) -> None:
    who.catalog = catalog("http://127.0.0.1:9", service="object-store")
    assert sorted(names(api("GET", VMS))) == ["db", "web"]
    assert api("GET", f"{VMS}/{WEB}").json["status"] is None
    error(api("GET", f"{VMS}/{SHELVED}"), 404, "not_found")
    assert api("POST", JOBS, json={"name": "x", "vms": [{"id": DB}]}).status_code == 201
    error(api("POST", JOBS, json={"name": "x", "vms": [{"id": NEW}]}), 400, "request_invalid")
    assert served[1].requests == []


def test_nothing_of_it_is_kept_on_disk(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """novaclient keeps names and ids below the home directory, for completion in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names(api("GET", VMS))
    api("GET", f"{VMS}/{WEB}")
    assert not (tmp_path / "home").exists()


def test_a_caller_is_shown_without_the_token(api: Api, who: WithTokens) -> None:
    with api.app.test_request_context(headers=basic("member")):
        found = who.identify(flask.request)
    assert found.access is not None
    assert "gAAAA" not in repr(found) and "gAAAA" not in str(found)
