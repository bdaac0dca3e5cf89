"""Trusts that callers make for their jobs: made before, removed unless a job has them, never shown.

Keystone is played, as it must refuse and be away at given steps; a real one is in tests/openstack/test_trusts.py.
"""

from __future__ import annotations

from collections.abc import Callable

import flask
import pytest

from raksha.api.auth import Identity, with_implied
from raksha.api.http_basic import HttpBasic
from raksha.db import jobs
from raksha.db.models import BackupJob
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import IdentityUnavailable, RakshaError, TrustRefused
from raksha.states import JobState
from tests.unit.api import world
from tests.unit.api.conftest import Api, error
from tests.unit.api.world import NOBODY, WEB

JOBS = "/v1/p1/backupjobs"
BODY = {"name": "nightly", "vms": [{"id": WEB}]}


class Keystone:
    """Fulfils `Grantor`."""

    def __init__(self) -> None:
        self.fault: RakshaError | None = None
        self.standing: dict[str, tuple[str, str, str]] = {}
        self.made = 0

    def make(self, token: str, *, user_id: str, project_id: str) -> str:
        if self.fault is not None:
            raise self.fault
        self.made += 1
        self.standing[f"secret-{self.made}"] = (token, user_id, project_id)
        return f"secret-{self.made}"

    def remove(self, token: str, trust_id: str) -> None:
        assert self.standing.pop(trust_id)[0] == token


class WithTokens(HttpBasic):
    """Says who a caller is as Keystone would: with a token."""

    def identify(self, request: flask.Request) -> Identity:
        found = super().identify(request)
        return Identity(found.user_id, found.project_id, with_implied(found.roles), f"token of {found.user_id}")


@pytest.fixture
def keystone() -> Keystone:
    return Keystone()


@pytest.fixture
def api(make_api: Callable[..., Api], users_file: object, database: Database, keystone: Keystone) -> Api:
    world.agents(database)
    return make_api(authenticator=WithTokens(users_file), grantor=keystone)  # type: ignore[arg-type]


def row(database: Database, id: str) -> BackupJob:
    with database.reading() as session:
        return jobs.get(session, None, id)


def test_a_job_has_a_trust_of_its_maker_s_and_shows_it_to_nobody(
    api: Api, database: Database, keystone: Keystone
) -> None:
    made = api("POST", JOBS, json=BODY)
    assert made.status_code == 201, made.get_data(as_text=True)
    assert row(database, made.json["id"]).trust_id == "secret-1"
    assert keystone.standing == {"secret-1": ("token of member", "member", "p1")}
    shown = [made, api("GET", JOBS), api("GET", f"{JOBS}/{made.json['id']}")]
    assert not any("secret" in answer.get_data(as_text=True) for answer in shown)


@pytest.mark.parametrize(
    ("body", "status"), [({**BODY, "vms": [{"id": NOBODY}]}, 400), ({**BODY, "trust_id": "mine"}, 400)]
)
def test_what_is_refused_leaves_no_trust(
    api: Api, database: Database, keystone: Keystone, body: dict[str, object], status: int
) -> None:
    assert api("POST", JOBS, json=body).status_code == status
    assert keystone.standing == {}


def test_a_repeated_request_leaves_one(api: Api, database: Database, keystone: Keystone) -> None:
    key = {"Idempotency-Key": "5f3c1e2a-8d4b-4c6f-9a7e-0b1d2c3e4f50"}
    first, again = (api("POST", JOBS, json=BODY, headers=key) for _ in range(2))
    assert first.json["id"] == again.json["id"]
    assert list(keystone.standing) == ["secret-1"]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (TrustRefused(detail="Forbidden (403)"), 403, "trust_refused"),
        (IdentityUnavailable(detail="ConnectFailure"), 503, "identity_unavailable"),
    ],
)
def test_without_a_trust_there_is_no_job(
    api: Api, keystone: Keystone, fault: RakshaError, status: int, code: str
) -> None:
    keystone.fault = fault
    error(api("POST", JOBS, json=BODY), status, code)
    assert api("GET", JOBS).json["backupjobs"] == []


def test_another_member_takes_a_suspended_job_over(api: Api, database: Database, keystone: Keystone) -> None:
    id = api("POST", JOBS, json=BODY, user="admin").json["id"]
    reason = {"code": "trust_broken", "message": "The trust does not work any more."}
    database.run(lambda s: transition(s, BackupJob, id, JobState.SUSPENDED, state_reason=reason))
    error(api("POST", f"{JOBS}/{id}/take-over", "reader"), 403, "not_allowed")
    error(api("POST", f"{JOBS}/{id}/take-over", "stranger"), 404, "not_found")
    taken = api("POST", f"{JOBS}/{id}/take-over")
    assert taken.status_code == 200, taken.get_data(as_text=True)
    assert (taken.json["user_id"], taken.json["state"], taken.json["state_reason"]) == ("member", "active", None)
    found = row(database, id)
    assert (found.trust_id, found.former_trusts) == ("secret-2", ["secret-1"])
    # only whoever acts by it can end it: a scheduler does
    assert set(keystone.standing) == {"secret-1", "secret-2"}


def test_a_job_whose_deletion_its_broken_trust_holds_up_is_taken_over(
    api: Api, database: Database, keystone: Keystone
) -> None:
    id = api("POST", JOBS, json=BODY).json["id"]
    assert api("DELETE", f"{JOBS}/{id}").status_code == 202
    taken = api("POST", f"{JOBS}/{id}/take-over")
    assert (taken.status_code, taken.json["state"]) == (200, "deleting")
    assert (row(database, id).trust_id, row(database, id).former_trusts) == ("secret-2", ["secret-1"])
