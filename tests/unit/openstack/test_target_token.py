"""Tokens for the project that a restore goes into: shown to Keystone alone, by themselves, and what it may say.

Keystone is played, for the answers that a real one gives rarely; a real one is in tests/openstack.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from raksha.errors import IdentityUnavailable, RakshaError, TargetTokenRefused
from raksha.openstack.trusts import Grantor
from tests.contract.identity import serving
from tests.unit.api.nova import catalog, said_of

TOKEN = "gAAAA-there"
SAID = said_of("ann", "p2", ["member"], catalog("http://nova"))


def answering(status: int, said: Any) -> Callable[..., Any]:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return lambda *_: (status, {"Content-Type": "application/json", "X-Subject-Token": "another"}, body)


def test_it_is_asked_with_itself_and_of_keystone_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(answering(200, SAID)) as (url, seen):
        found = Grantor(url, "trustee").access(TOKEN)
    assert (found.user_id, found.project_id, found.role_names, found.auth_token) == ("ann", "p2", ["member"], TOKEN)
    ((method, path, headers, _),) = seen.requests
    assert (method, path) == ("GET", "/v3/auth/tokens")
    assert headers["X-Auth-Token"] == headers["X-Subject-Token"] == TOKEN
    assert TOKEN not in caplog.text


def with_token(**more: Any) -> Any:
    return {"token": {**SAID["token"], **more}}


ANSWERS: dict[str, tuple[int, Any, type[RakshaError], str]] = {
    "unknown": (401, {"error": {"message": TOKEN}}, TargetTokenRefused, "Unauthorized (401)"),
    "revoked": (404, {"error": {"message": TOKEN}}, TargetTokenRefused, "NotFound (404)"),
    "not allowed": (403, {"error": {"message": TOKEN}}, TargetTokenRefused, "Forbidden (403)"),
    "none": (400, {"error": {"message": TOKEN}}, TargetTokenRefused, "BadRequest (400)"),
    "expired": (200, with_token(expires_at="2020-01-01T00:00:00.000000Z"), TargetTokenRefused, "it has expired"),
    "restricted": (
        200, with_token(application_credential={"id": "c", "name": "robot", "restricted": True}), TargetTokenRefused,
        "application credential",
    ),
    "away": (503, b"", IdentityUnavailable, "ServiceUnavailable"),
    "no JSON": (200, b"<html>", IdentityUnavailable, ""),
    "something else": (200, {"servers": []}, IdentityUnavailable, ""),
    "a list": (200, [], IdentityUnavailable, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_what_keystone_says_of_others(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    status, said, kind, says = ANSWERS[name]
    with serving(answering(status, said)) as (url, _), pytest.raises(kind) as told:
        Grantor(url, "trustee").access(TOKEN)
    assert says in str(told.value)
    assert TOKEN not in f"{told.value} {told.value.document()}"


def test_an_unrestricted_application_credential_may_delegate() -> None:
    said = with_token(application_credential={"id": "c", "name": "robot", "restricted": False})
    with serving(answering(200, said)) as (url, _):
        assert Grantor(url, "trustee").access(TOKEN).project_id == "p2"


def test_it_does_not_follow_a_redirect() -> None:
    with serving(answering(200, SAID)) as (elsewhere, seen):
        away = f"{elsewhere}/v3/auth/tokens"
        with serving(lambda *_: (302, {"Location": away}, b"")) as (url, _), pytest.raises(RakshaError):
            Grantor(url, "trustee").access(TOKEN)
    assert seen.requests == []
