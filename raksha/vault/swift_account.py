"""One Swift account: logging in, keeping the token fresh, a connection for each call that is under way.

A request that meets 401 is sent once more with a new token. Redirects are never followed: a token belongs to the
host that it was sent to. Errors are those of swiftclient, requests and keystoneauth; `vault/swift.py` names them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from keystoneauth1.identity import v3
from keystoneauth1.session import Session
from swiftclient.client import ClientException, HTTPConnection

from raksha.vault.credentials import Credentials, LentCredentials, TokenCredentials, V1Credentials, V3Credentials

T = TypeVar("T")
#: swiftclient's pair of the parsed address and the connection
HttpConn = tuple[Any, Any]

# it tells each request that failed with the beginning of its token, and without saying more than our errors do
logging.getLogger("swiftclient").setLevel(logging.ERROR)

#: answers that leave a connection in order; others may come before the server has read all that was sent
_ORDERLY = (404, 412, 416)


class Account:
    """Thread-safe. `timeout` is in seconds, for connecting, for each send and each receive."""

    def __init__(self, credentials: Credentials, timeout: float) -> None:
        given = credentials.current() if isinstance(credentials, LentCredentials) else credentials
        self._connect = _Connector(given.cacert, timeout)
        self._login = _login(credentials, self._connect, timeout)
        self._idle: deque[tuple[str, Any]] = deque()

    def request(self, call: Callable[[str, str, HttpConn], T]) -> T:
        """`call(storage url, token, connection)`, called again after a new login if the token was refused."""
        url, token = self._login.access()
        try:
            return self._once(call, url, token)
        except ClientException as error:
            if error.http_status != 401 or not self._login.renew(token):
                raise
        return self._once(call, *self._login.access())

    def close(self) -> None:
        """Let go of all idle connections. Another request opens new ones."""
        while self._idle:
            self._idle.pop()[1].close()

    def _once(self, call: Callable[[str, str, HttpConn], T], url: str, token: str) -> T:
        connection = self._take(url)
        connection.service_token = self._login.service_token()
        try:
            result = call(url, token, (connection.parsed_url, connection))
        except ClientException as error:
            if error.http_status in _ORDERLY:
                self._idle.append((url, connection))
            else:
                connection.close()
            raise
        except BaseException:
            connection.close()
            # some front ends hang up on a stale token while we still send: the next attempt logs in again
            self._login.renew(token)
            raise
        self._idle.append((url, connection))
        return result

    def _take(self, url: str) -> Any:
        try:
            opened_for, connection = self._idle.pop()
        except IndexError:
            return self._connect(url)
        if opened_for == url:
            return connection
        connection.close()
        return self._connect(url)


class _Connection(HTTPConnection):  # type: ignore[misc]
    """Shows the service's token as well, where there is one: swiftclient's functions know of the user's only."""

    service_token: str | None = None

    def request(self, method: str, full_path: str, data: Any = None, headers: Any = None, files: Any = None) -> Any:
        if self.service_token is not None:
            headers = {**(headers or {}), "X-Service-Token": self.service_token}
        return super().request(method, full_path, data, headers, files)


class _Connector:
    def __init__(self, cacert: str | None, timeout: float) -> None:
        self._cacert = cacert
        self._timeout = timeout

    def __call__(self, url: str) -> Any:
        connection = _Connection(url, cacert=self._cacert, timeout=self._timeout)
        connection.requests_args["allow_redirects"] = False
        return connection


class _Login(Protocol):
    def access(self) -> tuple[str, str]:
        """Storage URL and token."""

    def renew(self, stale: str) -> bool:
        """Forget a token that was refused. False if there is no way to another one."""

    def service_token(self) -> str | None:
        """What goes with it."""


def _login(credentials: Credentials, connect: _Connector, timeout: float) -> _Login:
    if isinstance(credentials, LentCredentials):
        return _LentToken(credentials)
    if isinstance(credentials, V1Credentials):
        return _V1Login(credentials, connect)
    if isinstance(credentials, V3Credentials):
        return _V3Login(credentials, timeout)
    return _GivenToken(credentials)


class _LentToken:
    """The newest that there is: who lends it sees to that."""

    def __init__(self, credentials: LentCredentials) -> None:
        self._lent = credentials

    def access(self) -> tuple[str, str]:
        current = self._lent.current()
        return current.storage_url, current.token

    def renew(self, stale: str) -> bool:
        return self._lent.refused(stale)

    def service_token(self) -> str | None:
        return self._lent.current().service_token


class _GivenToken(_LentToken):
    """It stays the same."""

    def __init__(self, credentials: TokenCredentials) -> None:
        super().__init__(LentCredentials(credentials))


class _OwnLogin:
    def service_token(self) -> str | None:
        return None


class _V1Login(_OwnLogin):
    """One token for all threads, however many of them see it expire."""

    def __init__(self, credentials: V1Credentials, connect: _Connector) -> None:
        self._credentials = credentials
        self._connect = connect
        self._access: tuple[str, str] | None = None
        self._lock = threading.Lock()

    def access(self) -> tuple[str, str]:
        with self._lock:
            if self._access is None:
                self._access = self._ask()
            return self._access

    def renew(self, stale: str) -> bool:
        with self._lock:
            if self._access is not None and self._access[1] == stale:
                self._access = None
        return True

    def _ask(self) -> tuple[str, str]:
        # not swiftclient's get_auth: that would take the key along a redirect
        connection = self._connect(self._credentials.auth_url)
        try:
            headers = {"X-Auth-User": self._credentials.user, "X-Auth-Key": self._credentials.key}
            connection.request("GET", connection.parsed_url.path, "", headers)
            response = connection.getresponse()
            body = response.read()
            url, token = response.getheader("x-storage-url"), response.getheader("x-auth-token")
            if not 200 <= response.status < 300 or not url or not token:
                raise ClientException.from_response(response, "Login failed", body)
        finally:
            connection.close()
        return self._credentials.storage_url or url, token


class _V3Login(_OwnLogin):
    """Keystone. The session renews a token before it expires; `renew` is for one that was revoked."""

    def __init__(self, credentials: V3Credentials, timeout: float) -> None:
        self._credentials = credentials
        verify = credentials.cacert or True
        self._session = Session(auth=_plugin(credentials), verify=verify, timeout=timeout, redirect=False)
        self._token: str | None = None
        self._lock = threading.Lock()

    def access(self) -> tuple[str, str]:
        with self._lock:
            url = self._credentials.storage_url or self._session.get_endpoint(
                service_type="object-store",
                interface=self._credentials.endpoint_type,
                region_name=self._credentials.region_name,
            )
            if not url:
                region = self._credentials.region_name or "any region"
                raise ClientException(f"the catalog has no object-store endpoint in {region}")
            self._token = str(self._session.get_token())
            return url, self._token

    def renew(self, stale: str) -> bool:
        with self._lock:
            if self._token == stale:
                self._session.invalidate()
        return True


def _plugin(given: V3Credentials) -> Any:
    auth_url = given.auth_url.rstrip("/")
    if urlsplit(auth_url).path.rsplit("/", 1)[-1] != "v3":
        auth_url += "/v3"
    user: dict[str, Any] = {
        "username": given.username,
        "user_id": given.user_id,
        "user_domain_name": given.user_domain_name,
        "user_domain_id": given.user_domain_id,
    }
    if given.application_credential_secret:
        return v3.ApplicationCredential(
            auth_url,
            application_credential_id=given.application_credential_id,
            application_credential_name=given.application_credential_name,
            application_credential_secret=given.application_credential_secret,
            **user,
        )
    project: dict[str, Any] = {
        "project_name": given.project_name,
        "project_id": given.project_id,
        "project_domain_name": given.project_domain_name,
        "project_domain_id": given.project_domain_id,
    }
    return v3.Password(auth_url, password=given.password or "", **user, **project)
