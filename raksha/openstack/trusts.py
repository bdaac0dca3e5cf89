"""Keystone trusts: how jobs of tenants run while none of them is logged in.

A tenant makes a trust with his own token (`make`): the service's own user, the trustee, may act as he does in one
project with the role of a member, and may not hand that on. Schedulers log in as the trustee by the trust and lend
agents what they get by it (`Trusts.lend`): tokens of that project. Nobody else has the trustee's password.

Promises: no token, password or id of a trust is part of an error or of a log. Whether a trust still stands is what
Keystone says when it is asked; a token may outlive its trust for as long as services remember it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keystoneauth1 import access, exceptions, loading
from keystoneauth1.identity.base import BaseIdentityPlugin
from keystoneauth1.session import Session
from keystoneauth1.token_endpoint import Token
from msgspec import Struct
from oslo_config import cfg

from raksha.errors import IdentityUnavailable, SettingsWrong, TargetTokenRefused, TrustBroken, TrustRefused

_log = logging.getLogger(__name__)

SECTION = "trustee"
#: what a job is allowed to do
ROLES = ("member",)
#: seconds that a token must still be good for, when it is lent; of a shorter life, half
_LASTS = 900.0
#: logins by trusts that are kept
_KEPT = 1000
#: seconds for each answer of Keystone, unless `[trustee] timeout` says otherwise
_PATIENCE = 5.0
_TRUSTS = "/OS-TRUST/trusts"
#: what else a login may be for
_SCOPE = ("project_id", "project_name", "project_domain_id", "project_domain_name")
_GONE = (exceptions.Unauthorized, exceptions.Forbidden, exceptions.NotFound)


class Lent(Struct, frozen=True):
    """What opens the object store of a project for a while."""

    storage_url: str
    token: str
    #: of the service itself, where the tenant alone is not to have access
    service_token: str | None = None

    def __repr__(self) -> str:
        return f"Lent({self.storage_url!r})"


class LentCloud(Struct, frozen=True):
    """What acts in a project for a while."""

    token: str
    #: by types of the catalog
    endpoints: dict[str, str]
    #: whether certificates are checked, or the file of those that are trusted
    verify: str | bool = True

    def __repr__(self) -> str:
        return f"LentCloud({sorted(self.endpoints)})"


class Grantor:
    """Trusts to one trustee, made by their owners."""

    def __init__(self, keystone_url: str, trustee: str, verify: str | bool = True) -> None:
        """`keystone_url`: with or without /v3. `trustee`: the id of the service's user."""
        self._url = _v3(keystone_url)
        self._trustee = trustee
        self._verify = verify

    def make(self, token: str, *, user_id: str, project_id: str) -> str:
        """The id of a new trust. Raises `TrustRefused`, `IdentityUnavailable`."""
        trust = {
            "trustor_user_id": user_id,
            "trustee_user_id": self._trustee,
            "project_id": project_id,
            "impersonation": True,
            "allow_redelegation": False,
            "roles": [{"name": role} for role in ROLES],
        }
        try:
            answer = self._session(token).post(self._url + _TRUSTS, json={"trust": trust})
            return str(answer.json()["trust"]["id"])
        except _GONE as error:
            raise TrustRefused(detail=_said(error)) from error
        except (exceptions.ClientException, ValueError, LookupError) as error:
            raise IdentityUnavailable(detail=_said(error)) from error

    def access(self, token: str) -> access.AccessInfo:
        """What Keystone says of a token that did not come as the request's own; it is asked with that token itself.

        Raises `TargetTokenRefused`: it does not stand, or can delegate nothing. `IdentityUnavailable`.
        """
        try:
            said = self._session(token).get(f"{self._url}/auth/tokens", headers={"X-Subject-Token": token})
            found = access.create(resp=said, auth_token=token)
            restricted = said.json()["token"].get("application_credential", {}).get("restricted", False)
        except (*_GONE, exceptions.BadRequest) as error:
            raise TargetTokenRefused(
                detail=f"Keystone does not know it, or lets it do nothing: {_said(error)}"
            ) from error
        except (exceptions.ClientException, ValueError, LookupError, AttributeError, TypeError) as error:
            raise IdentityUnavailable(detail=_said(error)) from error
        if restricted:
            raise TargetTokenRefused(detail="it is of an application credential, which can delegate nothing")
        if found.will_expire_soon(stale_duration=0):
            raise TargetTokenRefused(detail="it has expired")
        return found

    def remove(self, token: str, trust_id: str) -> None:
        """One that is not there is as good. Raises `IdentityUnavailable`."""
        try:
            self._session(token).delete(f"{self._url}{_TRUSTS}/{trust_id}")
        except exceptions.NotFound:
            return
        except exceptions.ClientException as error:
            raise IdentityUnavailable(detail=_said(error)) from error

    def _session(self, token: str) -> Session:
        return Session(auth=Token(self._url, token), verify=self._verify, timeout=30, redirect=False)


class _Login:
    """A session, and who may change its token: two threads that do so at once confuse keystoneauth."""

    def __init__(self, session: Session) -> None:
        self._session = session
        assert isinstance(session.auth, BaseIdentityPlugin)
        self._plugin = session.auth
        self._lock = threading.Lock()
        # a lend makes a few requests, and an agent that waits for it gives up after 30 s
        session.timeout = session.timeout or _PATIENCE
        # the password is for Keystone and nobody else
        session.redirect = False

    @property
    def url(self) -> str:
        return _v3(self._plugin.auth_url or "")

    @property
    def verify(self) -> str | bool:
        return self._session.verify if self._session.verify is not None else True

    def token(self) -> str:
        """One that lasts for a while. Raises what keystoneauth raises."""
        with self._lock:
            access = self._plugin.get_access(self._session)
            ends, begins = access.expires, access.issued
            life = (ends - begins).total_seconds() if ends is not None and begins is not None else 0.0
            if access.will_expire_soon(stale_duration=int(min(_LASTS, life / 2))):
                self._session.invalidate()
                access = self._plugin.get_access(self._session)
            return str(access.auth_token)

    def endpoint(self, **where: Any) -> str | None:
        with self._lock:
            return self._session.get_endpoint(**where)

    def delete(self, path: str) -> None:
        with self._lock:
            self._session.delete(self.url + path)


class Trusts:
    """What the trustee can do by trusts. For any thread."""

    def __init__(self, login: Callable[[str | None], Session], *, interface: str, region: str | None) -> None:
        """`login`: a session by a trust, or of the service itself (None). `interface`: of the object store."""
        self._new = login
        self._side: dict[str, Any] = {"interface": interface, "region_name": region}
        self._logins: dict[str | None, _Login] = {}
        self._lock = threading.Lock()

    def lend(self, trust_id: str, *, account: str | None = None) -> Lent:
        """What the project's object store is opened with, good for a quarter of an hour or half of its life.

        `account`: the prefix of an account beside the project's own (`SERVICE_`), which needs the service's token, too.
        Raises `TrustBroken`, `IdentityUnavailable`.
        """
        token = self._token(trust_id)
        try:
            url = self._login(trust_id).endpoint(service_type="object-store", **self._side)
        except exceptions.ClientException as error:
            raise IdentityUnavailable(detail=_said(error)) from error
        if not url:
            raise IdentityUnavailable(detail="the catalog has no object store")
        if account is None:
            return Lent(url, token)
        return Lent(_of_account(url, account), token, self._service_token())

    def cloud(self, trust_id: str, services: Sequence[str]) -> LentCloud:
        """What acts in the project, for as long as what `lend` gives; without services that the catalog does not have.

        Raises `TrustBroken`, `IdentityUnavailable`.
        """
        token = self._token(trust_id)
        login = self._login(trust_id)
        try:
            found = {service: login.endpoint(service_type=service, **self._side) for service in services}
        except exceptions.ClientException as error:
            raise IdentityUnavailable(detail=_said(error)) from error
        return LentCloud(token, {service: url for service, url in found.items() if url}, login.verify)

    def check(self, trust_id: str) -> None:
        """Whether it stands, by a new token: an old one outlives it. Raises `TrustBroken`, `IdentityUnavailable`."""
        self.forget(trust_id)
        self._token(trust_id)

    def end(self, trust_id: str) -> None:
        """Remove it: nothing needs it any more. One that does not work is as good as removed.

        Raises `IdentityUnavailable`.
        """
        try:
            self._token(trust_id)
            self._login(trust_id).delete(f"{_TRUSTS}/{trust_id}")
        except (TrustBroken, exceptions.NotFound):
            return
        except (exceptions.Unauthorized, exceptions.Forbidden) as error:
            # to try again would change nothing, and hold up whatever waits for its end
            _log.warning("Keystone does not let a trust be removed by itself: %s", _said(error))
        except exceptions.ClientException as error:
            raise IdentityUnavailable(detail=_said(error)) from error
        finally:
            self.forget(trust_id)

    def forget(self, trust_id: str | None) -> None:
        """Ask Keystone anew the next time."""
        with self._lock:
            self._logins.pop(trust_id, None)

    def _token(self, trust_id: str) -> str:
        """Raises `TrustBroken`, `IdentityUnavailable`."""
        try:
            return self._login(trust_id).token()
        except _GONE as error:
            self.forget(trust_id)
            # is it the trust that is refused, or is it us?
            self.forget(None)
            self._service_token()
            raise TrustBroken(detail=_said(error)) from error
        except exceptions.ClientException as error:
            raise IdentityUnavailable(detail=_said(error)) from error

    def _service_token(self) -> str:
        try:
            return self._login(None).token()
        except exceptions.ClientException as error:
            raise IdentityUnavailable(detail=f"[{SECTION}] cannot log in: {_said(error)}") from error

    def _login(self, trust_id: str | None) -> _Login:
        with self._lock:
            found = self._logins.pop(trust_id, None) or _Login(self._new(trust_id))
            while len(self._logins) >= _KEPT:  # the one that was not used for longest
                self._logins.pop(next(iter(self._logins)))
            self._logins[trust_id] = found
            return found


def load(file: Path | None) -> Trusts | None:
    """As `[trustee]` of a configuration file says; None: it says nothing. Asks nothing of Keystone yet.

    Raises `SettingsWrong`.
    """
    conf = _section(file)
    section = conf[SECTION]
    if not section.auth_type:
        return None

    def login(trust_id: str | None) -> Session:
        # by a trust there is no other scope
        scope: dict[str, Any] = {} if trust_id is None else {**dict.fromkeys(_SCOPE), "trust_id": trust_id}
        plugin = loading.load_auth_from_conf_options(conf, SECTION, **scope)
        session: Session = loading.load_session_from_conf_options(conf, SECTION, auth=plugin)
        return session

    try:
        if not isinstance(login(None).auth, BaseIdentityPlugin):
            raise SettingsWrong(detail=f"[{SECTION}] auth_type {section.auth_type} does not log in to Keystone")
        login("trust")
    except (cfg.Error, exceptions.ClientException, TypeError) as error:
        raise SettingsWrong(detail=f"[{SECTION}]: {error}") from error
    return Trusts(login, interface=section.interface or "public", region=section.region_name)


def trustee_id(file: Path | None) -> str | None:
    """The user whom jobs are delegated to: `[trustee] user_id`. The API needs no more. Raises `SettingsWrong`."""
    found: str | None = _section(file)[SECTION].user_id
    return found


def side(file: Path | None) -> tuple[str, str | None]:
    """Interface and region of the services that are asked, as `[trustee]` says. Raises `SettingsWrong`."""
    section = _section(file)[SECTION]
    return section.interface or "public", section.region_name


_OWN = [
    cfg.StrOpt("user_id"),
    cfg.StrOpt("interface", default="public"),
    cfg.StrOpt("region_name"),
]


def _section(file: Path | None) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    try:
        conf([], project="raksha", default_config_files=[str(file)] if file else [], default_config_dirs=[])
        loading.register_auth_conf_options(conf, SECTION)
        loading.register_session_conf_options(conf, SECTION)
        if conf[SECTION].auth_type:
            loading.load_auth_from_conf_options(conf, SECTION)  # registers the options of this type
        for option in _OWN:
            try:
                conf.register_opt(option, SECTION)
            except cfg.DuplicateOptError:  # the plugin has it
                continue
    except (cfg.Error, exceptions.ClientException, OSError, UnicodeDecodeError) as error:
        raise SettingsWrong(detail=f"[{SECTION}]: {error}") from error
    return conf


def _v3(url: str) -> str:
    base = url.rstrip("/")
    return base if base.endswith("/v3") else f"{base}/v3"


def _of_account(url: str, prefix: str) -> str:
    """The address of `AUTH_abc` with another prefix: `SERVICE_abc`."""
    base, _, account = url.rstrip("/").rpartition("/")
    return f"{base}/{prefix}{account.partition('_')[2] or account}"


def _said(error: Exception) -> str:
    """What Keystone said, without the address that was asked: it may name a trust."""
    status = getattr(error, "http_status", None)
    return f"{type(error).__name__}" + (f" ({status})" if status else "")
