"""Every route that there is, asked by everybody who may not: a real raksha-api behind a real Keystone.

The routes are the application's own, and the running service says the same (`openapi.json`). A new one is walked
without being named here; only what its requests hold has to be said (`BODIES`): nothing but the caller is to be wrong.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from keystoneauth1 import session as keystone_session
from keystoneauth1.identity import v3
from sqlalchemy import update

from raksha.api.app import NOUNS
from raksha.api.nouns import shown_path
from raksha.api.policy import Allow, Rule
from raksha.db import restores, verifications
from raksha.db.models import BackupJob, BackupJobRun
from raksha.states import RunState, Trigger
from tests.bed.databases import make_agent, opened
from tests.openstack.cloud.layout import KEYSTONE_URL, PASSWORD
from tests.openstack.cloud.rest import Cloud
from tests.openstack.test_identity import Process

pytestmark = pytest.mark.timeout(600)

NOWHERE = "5f3c1e2a-8d4b-4c6f-9a7e-0b1d2c3e4f50"
JOB = {"name": "nightly", "vm_selector": {"tags": ["protect"]}}
SCHEDULE = {"cron": "0 3 * * *", "timezone": "UTC"}
RESTORE = {"target": {"kind": "files"}, "vms": [{"id": NOWHERE}]}
#: as the database has it
TARGET = {"kind": "files", "directory": None, "host": None, "format": None, "start": False, "cloud": {}, "vms": []}
#: by policy rule, of all that take one
BODIES: dict[str, Any] = {
    "backupjobs:create": JOB,
    "backupjobs:update": {"name": "taken over"},
    "backupjobs:delete": None,
    "backupjobs:full": {},
    "backupjobs:incremental": {},
    "backupjobs:take_over": None,
    "backupjobs:verify": {"data": False},
    "backupjobruns:create": {},
    "backupjobruns:update": {"protected": True},
    "backupjobruns:delete": None,
    "backupjobruns:restore": RESTORE,
    "backupjobruns:cancel": None,
    "backupjobruns:verify": {"data": False},
    "retention-preview:create": {"retention": {"keep_last": 1}},
    "restores:cancel": None,
    "verifications:cancel": None,
    "schedule-preview:create": {"schedule": SCHEDULE},
    "limits:update": {"max_jobs": 1000},
    "services:update": {"state": "disabled"},
    "services:delete": None,
}
READS = (Allow.READER, Allow.READER_OR_ADMIN)
OF_OPERATORS = (Allow.ADMIN, Allow.READER_OR_ADMIN, Allow.MEMBER_OR_ADMIN)


@dataclass(frozen=True)
class Route:
    rule: Rule
    #: with {names}
    address: str

    def at(self, project: str, ids: dict[str, str]) -> str:
        return self.address.format(tenant_id=project, **ids)

    @property
    def names_something(self) -> bool:
        return self.address.count("{") > 1

    def __str__(self) -> str:
        return f"{self.rule.method} {self.address}"


def every_route() -> list[Route]:
    """Other spellings of an address (aliases) as well."""
    found = []
    for noun in NOUNS:
        own = shown_path(noun.prefix)
        for rule in noun.rules:
            found += [
                Route(rule, prefix + rule.path.removeprefix(own))
                for prefix in (own, *map(shown_path, noun.aliases))
            ]  # fmt: skip
    return found


ROUTES = every_route()


@dataclass
class Caller:
    """Somebody, by what a request of his holds."""

    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def with_token(cls, token: str, **more: str) -> Caller:
        return cls({"X-Auth-Token": token, **more})


class Walk:
    """A deployment with something in it that belongs to the tenant `demo`."""

    def __init__(self, process: Process, folder: Path, demo: Cloud, alt: Cloud) -> None:
        self.process = process
        self.demo, self.alt = demo, alt
        self._file = folder / "raksha.db"
        own = process.of(demo)
        job = own.post("/backupjobs", JOB)["id"]
        # the same name and more of his own: what is told apart is not told apart by there being nothing at all
        process.of(alt).post("/backupjobs", JOB)
        run = own.post(f"/backupjobs/{job}/full")["id"]
        with opened(f"sqlite:///{self._file}") as database:
            point = update(BackupJobRun).where(BackupJobRun.id == run).values(state=RunState.AVAILABLE)
            database.run(lambda session: session.execute(point) and None)

            def rows(session: Any) -> tuple[str, str, str]:
                restore = restores.create(session, session.get_one(BackupJobRun, run), target=TARGET)
                row = session.get_one(BackupJob, job)
                verification = verifications.create(session, row, run, trigger=Trigger.REQUEST)
                return restore.id, verification.id, make_agent(session).id

            restore, verification, agent = database.run(rows)
        self.ids = {"backupjob_id": job, "backupjobrun_id": run, "restore_id": restore, "service_id": agent,
                    "verification_id": verification, "vm_id": NOWHERE}  # fmt: skip

    def ask(self, route: Route, caller: Caller, project: str, ids: dict[str, str] | None = None) -> requests.Response:
        headers = {**caller.headers, "If-Match": "*"}
        return requests.request(
            route.rule.method, self.process.url + route.at(project, ids or self.ids), headers=headers,
            json=BODIES.get(route.rule.name), allow_redirects=False, timeout=60,
        )  # fmt: skip

    def rows(self) -> list[str]:
        """All of the database."""
        with closing(sqlite3.connect(self._file)) as database:
            return list(database.iterdump())

    def refuses(self, caller: Caller, project: str, wanted: dict[Allow, int | None] | int) -> None:
        """Every route; None: it is let in. Nothing is changed by it, whoever changes being let in aside."""
        before = self.rows()
        for route in ROUTES:
            status = wanted if isinstance(wanted, int) else wanted[route.rule.allow]
            if status is None and route.rule.allow not in READS:
                continue
            answer = self.ask(route, caller, project)
            what = f"{route}: {answer.status_code} {answer.text}"
            if status is None:
                assert answer.status_code not in (401, 403) and answer.status_code < 500, what
                continue
            assert answer.status_code == status, what
            assert (status == 401) == ("WWW-Authenticate" in answer.headers), what
            self.gives_nothing_away(answer)
        assert self.rows() == before

    def gives_nothing_away(self, answer: requests.Response) -> None:
        """No token, nobody's name, no way inside."""
        (told,) = answer.json()["errors"]
        assert told["code"].removeprefix("data-protection.") in (
            "not_authenticated",
            "not_scoped",
            "not_allowed",
            "not_found",
        ), told
        said = answer.text + str(answer.headers)
        for secret in (self.demo.token, self.alt.token, "gAAAA", PASSWORD, "Traceback", "nightly"):
            assert secret not in said


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, demo: Cloud, alt: Cloud) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("api")
    process = Process(folder)
    process.start()
    try:
        yield Walk(process, folder, demo, alt)
    finally:
        process.stop()
    log = process.log.read_text()
    assert [line for line in log.splitlines() if re.search(f"gAAAA|Traceback|{PASSWORD}", line)] == []


def token(user: str, **scope: Any) -> str:
    auth = v3.Password(KEYSTONE_URL, username=user, password=PASSWORD, user_domain_id="default", **scope)
    return str(keystone_session.Session(auth).get_token())


def test_these_are_all_routes(walk: Walk) -> None:
    """What the service says of itself is what is walked, and each that takes a body gets one."""
    told = requests.get(f"{walk.process.url}/openapi.json", timeout=60).json()
    shown = {
        (verb.upper(), address, "requestBody" in of)
        for address, verbs in told["paths"].items() for verb, of in verbs.items() if verb != "parameters"
    }  # fmt: skip
    main = {str(route): route for route in ROUTES}
    assert {f"{verb} {address}" for verb, address, _ in shown} <= set(main)
    assert len(ROUTES) > len(shown) > 25
    for verb, address, takes_body in shown:
        rule = main[f"{verb} {address}"].rule
        assert verb == "GET" or rule.name in BODIES, f"{rule.name}: say what its requests hold"
        assert takes_body == (BODIES.get(rule.name) is not None), rule.name
    # and nothing else answers below v1
    for verb in ("OPTIONS", "TRACE", "PATCH", "HEAD"):
        for route in ROUTES:
            answer = requests.request(verb, walk.process.url + route.at(walk.demo.project, walk.ids), timeout=60)
            assert answer.status_code in (401, 405) and not answer.text.strip("{}\n").startswith("<"), (
                verb,
                str(route),
            )


def test_nobody(walk: Walk, demo: Cloud) -> None:
    for caller in (
        Caller(),
        Caller.with_token("gAAAA"),
        Caller.with_token("gAAAAA" + secrets.token_urlsafe(180)),
        Caller.with_token(demo.token[:-2] + "AA"),
        Caller.with_token("x" * 4000),
    ):
        walk.refuses(caller, demo.project, 401)


def test_a_token_that_was_revoked(walk: Walk, demo: Cloud) -> None:
    revoked = token(demo.name, project_name=demo.name, project_domain_id="default")
    demo.keystone.ask("DELETE", "/auth/tokens", headers={"X-Subject-Token": revoked})
    walk.refuses(Caller.with_token(revoked), demo.project, 401)


def test_tokens_of_no_project(walk: Walk, demo: Cloud, admin: Cloud) -> None:
    me = admin.login.get_user_id()
    role = admin.keystone.get("/roles?name=admin")["roles"][0]["id"]
    admin.keystone.put(f"/domains/default/users/{me}/roles/{role}")
    try:
        found = [
            token(demo.name, unscoped=True),
            token("admin", domain_id="default"),
            token("admin", system_scope="all"),
        ]
        for one in found:
            walk.refuses(Caller.with_token(one), demo.project, 403)
            # also with a project that is said beside it
            told = Caller.with_token(one, **forged(demo))
            walk.refuses(told, demo.project, 403)
    finally:
        admin.keystone.delete(f"/domains/default/users/{me}/roles/{role}")


def forged(cloud: Cloud) -> dict[str, str]:
    """All that Keystone's middleware would say of an admin of this project."""
    return {
        "X-Identity-Status": "Confirmed", "X-Service-Identity-Status": "Confirmed", "X-User-Id": "0" * 32,
        "X-User-Name": "admin", "X-Project-Id": cloud.project, "X-Tenant-Id": cloud.project, "X-Tenant": cloud.project,
        "X-Project-Name": cloud.name, "X-Roles": "admin,member,reader,service", "X-Role": "admin",
        "X-Service-Roles": "service,admin", "X-Service-Project-Id": cloud.project, "X-Is-Admin-Project": "True",
        "OpenStack-System-Scope": "all", "X-Domain-Id": "default", "X_Roles": "admin",
    }  # fmt: skip


def test_who_says_himself_who_he_is(walk: Walk, demo: Cloud, alt: Cloud) -> None:
    walk.refuses(Caller(forged(demo)), demo.project, 401)
    walk.refuses(Caller({**forged(demo), "X-Auth-Token": "gAAAA"}), demo.project, 401)
    walk.refuses(Caller({**forged(demo), "X-Service-Token": alt.token}), demo.project, 401)
    walk.refuses(Caller({**forged(demo), "X-Auth-Token": alt.token}), demo.project, 404)
    # a member is no operator
    operators = {allow: 403 if allow is Allow.ADMIN else None for allow in Allow}
    walk.refuses(Caller({**forged(demo), "X-Auth-Token": demo.token}), demo.project, operators)


def test_a_reader(walk: Walk, demo: Cloud, admin: Cloud) -> None:
    name = f"onlooker-{secrets.token_hex(3)}"
    user = admin.keystone.post("/users", {"user": {"name": name, "password": PASSWORD, "domain_id": "default"}})
    try:
        role = admin.keystone.get("/roles?name=reader")["roles"][0]["id"]
        admin.keystone.put(f"/projects/{demo.project}/users/{user['user']['id']}/roles/{role}")
        reader = Cloud(name, demo.name)
        wanted = {allow: None if allow in READS else 403 for allow in Allow}
        walk.refuses(Caller.with_token(reader.token), demo.project, wanted)
        walk.refuses(Caller.with_token(reader.token, **forged(demo)), demo.project, wanted)
    finally:
        admin.keystone.delete(f"/users/{user['user']['id']}")


def test_another_tenant_at_our_address(walk: Walk, demo: Cloud, alt: Cloud) -> None:
    walk.refuses(Caller.with_token(alt.token), demo.project, 404)
    for route in ROUTES:
        ours, nobodys = (walk.ask(route, Caller.with_token(alt.token), project) for project in (demo.project, "f" * 32))
        assert same(ours, walk) == same(nobodys, walk), str(route)


def test_another_tenant_who_knows_our_ids(walk: Walk, alt: Cloud) -> None:
    """At his own address: as if there were nothing, word for word, whatever he asks for."""
    before = walk.rows()
    caller = Caller.with_token(alt.token)
    nothing = dict.fromkeys(walk.ids, NOWHERE)
    for route in ROUTES:
        if not route.names_something or route.rule.allow is Allow.ADMIN:
            continue
        ours, nobodys = walk.ask(route, caller, alt.project), walk.ask(route, caller, alt.project, nothing)
        assert ours.status_code == 404, f"{route}: {ours.text}"
        assert same(ours, walk) == same(nobodys, walk), str(route)
    assert walk.rows() == before
    # nor does a list lead there
    for query in (f"marker={walk.ids['backupjob_id']}", f"vm_id={NOWHERE}", "name=nightly", "limit=1000"):
        answer = requests.get(
            f"{walk.process.url}/v1/{alt.project}/backupjobs?{query}", headers=caller.headers, timeout=60
        )
        assert walk.ids["backupjob_id"] not in answer.text.replace(f"marker {walk.ids['backupjob_id']}", "")


def same(answer: requests.Response, walk: Walk) -> tuple[int, str]:
    """What is the same for all that is not there: without ids, those of the request and those asked for."""
    text = re.sub(r"req-[0-9a-f-]{36}", "req", answer.text)
    for id in (*walk.ids.values(), NOWHERE):
        text = text.replace(id, "ID")
    return answer.status_code, text


def test_an_admin_of_another_project_is_an_operator_and_no_member(walk: Walk, demo: Cloud, admin: Cloud) -> None:
    """The role `admin` is the cloud's, in whatever project it was given: as in every service of OpenStack."""
    wanted = {allow: None if allow in OF_OPERATORS else 404 for allow in Allow}
    walk.refuses(Caller.with_token(admin.token), demo.project, wanted)
