"""Credentials for Swift, read from the variables that `openstack` and `swift` read. Pure: nothing is asked of anybody.

Three ways to log in, in the order in which they are looked for:

1. a token made by somebody else: OS_STORAGE_URL and OS_AUTH_TOKEN (and OS_SERVICE_TOKEN, for accounts that the
   token of a tenant alone does not open). Only who made it can renew it.
2. v1 (tempauth, Ceph): ST_AUTH, ST_USER, ST_KEY, unless ST_AUTH_VERSION or OS_IDENTITY_API_VERSION says 3.
3. v3 (Keystone): OS_AUTH_URL with user and password, or with an application credential.

No clouds.yaml, no v2. No secret is ever part of a repr.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raksha.errors import VaultAccessDenied

_MISSING = "set OS_AUTH_URL with OS_USERNAME and OS_PASSWORD or an application credential, or ST_AUTH, ST_USER, ST_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCredentials:
    """A token that is used as long as it lasts."""

    storage_url: str
    token: str = field(repr=False)
    #: of the service, for accounts that the tenant's own token does not open
    service_token: str | None = field(default=None, repr=False)
    #: file of certificates to trust, in place of the system's
    cacert: str | None = None


class LentCredentials:
    """A token that whoever lends it replaces in time, or that is asked for again when it is refused. For any thread."""

    def __init__(self, first: TokenCredentials, again: Callable[[], TokenCredentials] | None = None) -> None:
        """`again`: another one, if there is a way to it."""
        self._current = first
        self._again = again

    def refused(self, stale: str) -> bool:
        """Whether there is another one by now. Raises what `again` raises."""
        if self._current.token == stale and self._again is not None:
            self._current = self._again()
        return self._current.token != stale

    def current(self) -> TokenCredentials:
        return self._current

    def renew(self, later: TokenCredentials) -> None:
        self._current = later


@dataclass(frozen=True, slots=True, kw_only=True)
class V1Credentials:
    """`account:user` and its key."""

    auth_url: str
    user: str
    key: str = field(repr=False)
    cacert: str | None = None
    #: used in place of the address that comes with the token
    storage_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class V3Credentials:
    """A Keystone user in a project, or an application credential."""

    auth_url: str
    username: str | None = None
    user_id: str | None = None
    user_domain_name: str | None = None
    user_domain_id: str | None = None
    password: str | None = field(default=None, repr=False)
    project_name: str | None = None
    project_id: str | None = None
    project_domain_name: str | None = None
    project_domain_id: str | None = None
    application_credential_id: str | None = None
    application_credential_name: str | None = None
    application_credential_secret: str | None = field(default=None, repr=False)
    region_name: str | None = None
    #: `public`, `internal` or `admin`
    endpoint_type: str = "public"
    cacert: str | None = None
    storage_url: str | None = None


Credentials = TokenCredentials | LentCredentials | V1Credentials | V3Credentials


def from_environment(url: str, environ: Mapping[str, str]) -> Credentials:
    """Raises `VaultAccessDenied` when no way to log in is complete; `url` is the vault, for its message."""
    found = {name: value for name, value in environ.items() if value}
    cacert, storage_url = found.get("OS_CACERT"), found.get("OS_STORAGE_URL")
    if storage_url and "OS_AUTH_TOKEN" in found:
        return given_token(found)
    version = found.get("ST_AUTH_VERSION") or found.get("OS_IDENTITY_API_VERSION") or ""
    if {"ST_AUTH", "ST_USER", "ST_KEY"} <= found.keys() and not version.startswith("3"):
        return V1Credentials(
            auth_url=found["ST_AUTH"],
            user=found["ST_USER"],
            key=found["ST_KEY"],
            cacert=cacert,
            storage_url=storage_url,
        )
    if "OS_AUTH_URL" not in found:
        raise VaultAccessDenied(url=url, detail=f"no credentials are given: {_MISSING}")
    return _v3(url, found)


def given_token(found: Mapping[str, str]) -> TokenCredentials:
    """Of OS_STORAGE_URL, OS_AUTH_TOKEN, and OS_SERVICE_TOKEN if there is one. Raises `KeyError`."""
    return TokenCredentials(
        storage_url=found["OS_STORAGE_URL"],
        token=found["OS_AUTH_TOKEN"],
        service_token=found.get("OS_SERVICE_TOKEN"),
        cacert=found.get("OS_CACERT"),
    )


def _v3(url: str, found: Mapping[str, str]) -> V3Credentials:
    result = V3Credentials(
        auth_url=found["OS_AUTH_URL"],
        username=found.get("OS_USERNAME"),
        user_id=found.get("OS_USER_ID"),
        user_domain_name=found.get("OS_USER_DOMAIN_NAME"),
        user_domain_id=found.get("OS_USER_DOMAIN_ID"),
        password=found.get("OS_PASSWORD"),
        project_name=found.get("OS_PROJECT_NAME") or found.get("OS_TENANT_NAME"),
        project_id=found.get("OS_PROJECT_ID") or found.get("OS_TENANT_ID"),
        project_domain_name=found.get("OS_PROJECT_DOMAIN_NAME"),
        project_domain_id=found.get("OS_PROJECT_DOMAIN_ID"),
        application_credential_id=found.get("OS_APPLICATION_CREDENTIAL_ID"),
        application_credential_name=found.get("OS_APPLICATION_CREDENTIAL_NAME"),
        application_credential_secret=found.get("OS_APPLICATION_CREDENTIAL_SECRET"),
        region_name=found.get("OS_REGION_NAME"),
        endpoint_type=(found.get("OS_INTERFACE") or found.get("OS_ENDPOINT_TYPE") or "public").removesuffix("URL"),
        cacert=found.get("OS_CACERT"),
        storage_url=found.get("OS_STORAGE_URL"),
    )
    if result.application_credential_secret:
        return result
    if not (result.password and (result.username or result.user_id)):
        raise VaultAccessDenied(url=url, detail=f"the credentials are not complete: {_MISSING}")
    if not (result.project_name or result.project_id):
        raise VaultAccessDenied(url=url, detail="the credentials name no project: set OS_PROJECT_NAME or OS_PROJECT_ID")
    return result
