"""Restores into another project: whose token opens it, what is kept of that, and who sees what was made there.

Keystone and Nova are played, as they must say what no real one would at a given step; real ones are in
tests/openstack/test_restore_project.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from keystoneauth1 import access

from raksha.db import restores
from raksha.db.models import BackupJobRun, Restore
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import IdentityUnavailable, TargetTokenRefused, TrustRefused
from raksha.openstack.compute import Servers
from raksha.states import RestoreState
from tests.contract.identity import Seen, serving
from tests.unit.api import nova as played
from tests.unit.api import world
from tests.unit.api.conftest import Api, error
from tests.unit.api.nova import Nova, WithTokens, catalog
from tests.unit.api.test_delegation import Keystone
from tests.unit.api.world import WEB

THERE = "0123456789abcdef0123456789abcdef"
HEADER = "X-Raksha-Target-Token"
TOKEN = "gAAAA-member-there"
MINE = {HEADER: TOKEN}
VOLUME = "00000000-0000-4000-8000-0000000000c1"
KEY = {"Idempotency-Key": "5f3c1e2a-8d4b-4c6f-9a7e-0b1d2c3e4f50"}


class WithAccess(Keystone):
    """Knows some tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Any] = {}
        self.asked: list[str] = []

    def access(self, token: str) -> access.AccessInfo:
        self.asked.append(token)
        if token not in self.known:
            raise TargetTokenRefused(detail="Keystone does not know it, or lets it do nothing: Unauthorized (401)")
        return access.create(body=self.known[token], auth_token=token)


@pytest.fixture
def keystone() -> WithAccess:
    return WithAccess()


@pytest.fixture
def nova() -> Nova:
    return Nova(played.server(WEB, "web", "p1"))


@pytest.fixture
def served(nova: Nova) -> Iterator[tuple[str, Seen]]:
    with serving(nova.answer) as found:
        yield found


@pytest.fixture
def api(
    make_api: Callable[..., Api],
    users_file: Path,
    database: Database,
    keystone: WithAccess,
    nova: Nova,
    served: tuple[str, Seen],
) -> Api:
    world.agents(database)
    where = catalog(served[0])
    who = WithTokens(users_file, nova, where)
    keystone.known[TOKEN] = played.said_of("member", THERE, ["member", "reader"], where)
    return make_api(authenticator=who, grantor=keystone, servers=Servers(region="north"), libvirt_vms=True)


@pytest.fixture
def point(api: Api, database: Database, keystone: WithAccess) -> BackupJobRun:
    found = world.point(database, world.job(api)["id"])
    keystone.standing.clear()
    return found


def at(run: BackupJobRun) -> str:
    return f"/v1/p1/backupjobs/{run.backupjob_id}/backupjobruns/{run.id}"


def asked(kind: str = "volume", project: str = THERE, **more: Any) -> dict[str, Any]:
    return {"target": {"kind": kind, "project": project}, **more}


def rows(database: Database) -> list[Restore]:
    with database.reading() as session:
        return list(session.query(Restore))


def test_it_has_a_trust_of_the_target_and_never_its_token(
    api: Api, point: BackupJobRun, database: Database, keystone: WithAccess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = api("POST", at(point), json=asked(), headers=MINE)
    assert answer.status_code == 202, answer.get_data(as_text=True)
    assert (answer.json["project_id"], answer.json["target"]["project"]) == ("p1", THERE)
    (row,) = rows(database)
    ((trust, made),) = keystone.standing.items()
    assert (row.trust_id, row.project_id, row.target["project"]) == (trust, "p1", THERE)
    assert made == (TOKEN, "member", THERE)
    shown = [answer, api("GET", "/v1/p1/restores"), api("GET", f"/v1/p1/restores/{row.id}")]
    told = [each.get_data(as_text=True) for each in shown] + [caplog.text, str(vars(row))]
    assert not any(TOKEN in text for text in told)
    assert not any(trust in text for text in told[:-1])
    # the project that it comes from has it, and nobody else
    error(api("GET", f"/v1/{THERE}/restores/{row.id}"), 404, "not_found")


def test_once_with_one_key_and_no_trust_is_left_of_the_others(
    api: Api, point: BackupJobRun, database: Database, keystone: WithAccess
) -> None:
    first, again = (api("POST", at(point), json=asked(), headers={**MINE, **KEY}) for _ in range(2))
    assert first.json == again.json
    assert [row.trust_id for row in rows(database)] == list(keystone.standing)
    # what was answered once is for no other token
    keystone.known["theirs"] = played.said_of("stranger", THERE, ["member"], None)
    error(api("POST", at(point), json=asked(), headers={HEADER: "theirs", **KEY}), 403, "target_token_refused")
    error(api("POST", at(point), json=asked(), headers=KEY), 400, "request_invalid")
    del keystone.known[TOKEN]
    error(api("POST", at(point), json=asked(), headers={**MINE, **KEY}), 403, "target_token_refused")
    assert len(keystone.standing) == 1


def token_of(user: str = "member", project: str = THERE, roles: tuple[str, ...] = ("member",), **more: Any) -> Any:
    made = played.said_of(user, project, roles, None)
    made["token"].update(more)
    return made


def scoped(**scope: Any) -> Any:
    made = token_of()
    del made["token"]["project"]
    made["token"].update(scope)
    return made


ELSEWHERE = {"id": "member", "name": "member", "domain": {"id": "other", "name": "Other"}}
WRONG: dict[str, tuple[Any, str]] = {
    "of another user": (token_of(user="stranger"), "another user's"),
    "of a user of that id in another domain": (token_of(), "another user's"),
    "of the project itself": (token_of(project="p1"), "not scoped to the project"),
    "of a third project": (token_of(project="p3"), "not scoped to the project"),
    "of no project": (scoped(), "not scoped to the project"),
    "of the system": (scoped(system={"all": True}), "not scoped to the project"),
    "of a domain": (scoped(domain={"id": "default", "name": "Default"}), "not scoped to the project"),
    "of a reader there": (token_of(roles=("reader",)), "not the role member"),
}
WRONG["of a user of that id in another domain"][0]["token"]["user"] = ELSEWHERE


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("dry", [False, True])
def test_a_token_that_proves_nothing_is_refused(
    api: Api, point: BackupJobRun, database: Database, keystone: WithAccess, name: str, dry: bool
) -> None:
    keystone.known["wrong"], says = WRONG[name]
    detail = error(
        api("POST", at(point), json=asked(dry_run=dry), headers={HEADER: "wrong"}), 403, "target_token_refused"
    )
    assert says in detail and "wrong" not in detail
    assert (rows(database), keystone.standing) == ([], {})


@pytest.mark.parametrize("token", ["unknown", "gAAAA\u00e9", "two words", "x" * 20000])
def test_what_is_no_token_is_refused(api: Api, point: BackupJobRun, keystone: WithAccess, token: str) -> None:
    error(api("POST", at(point), json=asked(), headers={HEADER: token}), 403, "target_token_refused")
    assert keystone.asked in ([], ["unknown"]) and keystone.standing == {}


def test_header_and_project_go_together(api: Api, point: BackupJobRun, keystone: WithAccess) -> None:
    for body, headers, where in (
        (asked(), {}, HEADER),
        ({"target": {"kind": "volume"}}, MINE, HEADER),
        (asked(project="p1"), MINE, "target.project"),
        (asked("files"), MINE, "target.project"),
        (asked("in_place"), MINE, "target.project"),
        (asked("domain"), MINE, "target.project"),
        (asked(project="../p1"), MINE, "target.project"),
    ):
        detail = error(api("POST", at(point), json=body, headers=headers), 400, "request_invalid")
        assert detail.startswith(f"{where}: ")
    assert (keystone.asked, keystone.standing) == ([], {})


def test_without_keystone_there_is_no_other_project(
    make_api: Callable[..., Api], database: Database, point: BackupJobRun
) -> None:
    plain = make_api()
    for dry in (False, True):
        detail = error(plain("POST", at(point), json=asked(dry_run=dry), headers=MINE), 400, "request_invalid")
        assert detail.startswith("target.project: Without Keystone")


def test_who_may_not_restore_here_is_not_asked_what_he_may_there(
    api: Api, point: BackupJobRun, keystone: WithAccess
) -> None:
    error(api("POST", at(point), "reader", json=asked(), headers=MINE), 403, "not_allowed")
    error(api("POST", at(point), "stranger", json=asked(), headers=MINE), 404, "not_found")
    assert keystone.asked == []


def test_what_keystone_does_not_delegate_is_not_begun(
    api: Api, point: BackupJobRun, database: Database, keystone: WithAccess
) -> None:
    for fault, status in ((TrustRefused(detail="Forbidden (403)"), 403), (IdentityUnavailable(detail="away"), 503)):
        keystone.fault = fault
        error(api("POST", at(point), json=asked(), headers=MINE), status, fault.code)
    keystone.fault = None
    # and what fails after it was delegated leaves none
    body = asked(vms=[{"id": world.NOBODY}])
    error(api("POST", at(point), json=body, headers=MINE), 400, "request_invalid")
    assert (rows(database), keystone.standing) == ([], {})


def test_plans_and_volumes_are_asked_of_the_target(
    api: Api, point: BackupJobRun, served: tuple[str, Seen], keystone: WithAccess
) -> None:
    """The stand-in has neither flavors nor volumes: what counts is which token it was shown."""
    where = catalog(served[0], service="block-storage")
    keystone.known[TOKEN]["token"]["catalog"] += where
    for body, path in (
        (asked("server", dry_run=True), "/limits"),
        (asked(vms=[{"id": WEB, "overwrite": {"vda": VOLUME}}]), f"/volumes/{VOLUME}"),
    ):
        served[1].requests.clear()
        api("POST", at(point), json=body, headers=MINE)
        shown = [(asked_for, headers.get("X-Auth-Token")) for _, asked_for, headers, _ in served[1].requests]
        assert any(asked_for.endswith(path) for asked_for, _ in shown), shown
        assert {token for _, token in shown} == {TOKEN}
    assert keystone.standing == {}


def test_what_was_made_there_is_for_who_began_it(api: Api, point: BackupJobRun, database: Database) -> None:
    body = asked("server")
    body["target"]["networks"] = [{"network_id": VOLUME}]
    id = api("POST", at(point), json=body, headers=MINE).json["id"]

    def work(session: Any) -> None:
        transition(session, Restore, id, RestoreState.RUNNING, start={RestoreState.QUEUED})
        restores.record_made(session, id, 0, {"kind": "volume", "id": VOLUME})
        said = {"code": "cloud_refused", "message": f"network {VOLUME} of theirs"}
        transition(session, Restore, id, RestoreState.ERROR, error=said, result={"vms": [{"vm": VOLUME}]})

    database.run(work)
    for user, sees in (("member", True), ("admin", True), ("reader", False)):
        shown = api("GET", f"/v1/p1/restores/{id}", user)
        assert shown.json["target"]["project"] == THERE and shown.json["error"]["code"] == "cloud_refused"
        assert shown.json == api("GET", "/v1/p1/restores", user).json["restores"][0]
        assert (VOLUME in shown.get_data(as_text=True)) is sees
