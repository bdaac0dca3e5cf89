"""Headers by which a caller could claim to be somebody, with and without the middleware that may say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest

from raksha.api.auth import Identity, Keystone, StripIdentity
from tests.unit.api.conftest import Api, error

CLAIM = {
    "X-Identity-Status": "Confirmed",
    "X-User-Id": "mallory",
    "X-User-Name": "mallory",
    "X-User": "mallory",
    "X-Project-Id": "p1",
    "X-Project-Name": "p1",
    "X-Project-Domain-Id": "default",
    "X-Tenant-Id": "p1",
    "X-Tenant": "p1",
    "X-Domain-Id": "default",
    "X-Roles": "admin,member,reader",
    "X-Role": "admin",
    "X-Is-Admin-Project": "True",
    "X-Service-Identity-Status": "Confirmed",
    "X-Service-User-Id": "mallory",
    "X-Service-Roles": "service",
    "X-Service-Catalog": "[]",
    "OpenStack-System-Scope": "all",
}


class AuthToken:
    """Stands for keystonemiddleware with `delay_auth_decision`: sets what it knows of a token."""

    TOKENS: ClassVar = {
        "good": {"HTTP_X_IDENTITY_STATUS": "Confirmed", "HTTP_X_USER_ID": "u1", "HTTP_X_PROJECT_ID": "p1",
                 "HTTP_X_ROLES": "Member, reader"},
        "unscoped": {"HTTP_X_IDENTITY_STATUS": "Confirmed", "HTTP_X_USER_ID": "u1", "HTTP_X_ROLES": ""},
    }  # fmt: skip

    def __init__(self, application: Any) -> None:
        self.application = application
        self.claims: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.claims += [name for name in environ if name.startswith("HTTP_X_") and name != "HTTP_X_AUTH_TOKEN"]
        token = environ.get("HTTP_X_AUTH_TOKEN", "")
        environ.update(self.TOKENS.get(token, {"HTTP_X_IDENTITY_STATUS": "Invalid"}))
        return self.application(environ, start_response)  # type: ignore[no-any-return]


def test_without_the_middleware_claims_count_for_nothing(api: Api) -> None:
    error(api("GET", "/v1/p1/limits", None, headers=CLAIM), 401, "not_authenticated")
    error(api("GET", "/v1/p1/limits", "stranger", headers=CLAIM), 404, "not_found")
    assert "checks" not in api("GET", "/healthcheck", None, headers=CLAIM).json


def test_with_the_middleware_only_what_it_says_counts(make_api: Callable[..., Api]) -> None:
    api = make_api(authenticator=Keystone(AuthToken, "https://keystone.example/v3"))
    answer = api("GET", "/v1/p1/limits", None, headers=CLAIM)
    error(answer, 401, "not_authenticated")
    assert answer.headers["WWW-Authenticate"] == 'Keystone uri="https://keystone.example/v3"'
    error(api("GET", "/v1/p1/limits", None, headers={**CLAIM, "X-Auth-Token": "forged"}), 401, "not_authenticated")
    assert api("GET", "/v1/p1/limits", None, headers={"X-Auth-Token": "good"}).status_code == 200
    # the claim of a role or project beside a good token adds nothing to it
    error(api("GET", "/v1/p2/limits", None, headers={**CLAIM, "X-Auth-Token": "good"}), 404, "not_found")
    error(api("GET", "/v1/p1/limits", None, headers={**CLAIM, "X-Auth-Token": "unscoped"}), 403, "not_scoped")
    # a user of the file is nobody here
    error(api("GET", "/v1/p1/limits", "member"), 401, "not_authenticated")


@pytest.mark.parametrize("name", sorted(CLAIM))
def test_every_claim_is_taken_out_however_it_is_spelled(name: str) -> None:
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        return []

    header = f"HTTP_{name.upper().replace('-', '_')}"
    kept = {"HTTP_X_AUTH_TOKEN": "t", "HTTP_X_SERVICE_TOKEN": "s", "HTTP_X_OPENSTACK_REQUEST_ID": "r", "PATH_INFO": "/"}
    StripIdentity(application)({**kept, header: "x"}, lambda *_: None)  # type: ignore[arg-type]
    assert seen == kept


def test_the_middleware_sees_no_claims_either(make_api: Callable[..., Api]) -> None:
    made: list[AuthToken] = []

    def middleware(application: Any) -> AuthToken:
        made.append(AuthToken(application))
        return made[0]

    make_api(authenticator=Keystone(middleware, "uri"))("GET", "/v1/p1/limits", None, headers=CLAIM)
    assert made[0].claims == []


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 400), ("same-site", 400), ("same-origin", 200), ("none", 200)]
)
def test_pages_of_other_sites_cannot_use_a_password_that_a_browser_knows(api: Api, site: str, status: int) -> None:
    headers = {"Sec-Fetch-Site": site}
    body = {"schedule": {"cron": "0 3 * * *"}}
    assert api("POST", "/v1/p1/schedule-preview", json=body, headers=headers).status_code == status
    assert api("GET", "/v1/p1/limits", headers=headers).status_code == 200


def test_an_identity_does_not_show_its_token() -> None:
    identity = Identity("u1", "p1", frozenset({"reader"}), token="gAAAA-secret")
    assert "secret" not in f"{identity} {identity!r} {[identity]}"
