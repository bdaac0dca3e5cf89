"""What opens a project's vault, for schedulers and, lent with a claim, for agents.

    a directory, or one account of Swift for all projects      the environment of each process: nothing is lent
    the project's own account (`account: project`)             a token by the trust of a job
    an account beside it (`account: service`)                  that, and the token of the service

A token is of one project, is good for a while and is renewed with the lease. It is never written down.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from sqlalchemy.orm import Session

from raksha.db import jobs, vaults
from raksha.db.models import Vault
from raksha.db.session import Database
from raksha.errors import IdentityUnavailable, TrustBroken
from raksha.server import CLOUD_SERVICES
from raksha.tasks import CloudAccess
from raksha.vault.credentials import Credentials, LentCredentials, TokenCredentials, given_token

if TYPE_CHECKING:  # only who has trusts needs keystoneauth
    from raksha.openstack.compute import ListedServer
    from raksha.openstack.lent import LentLogin
    from raksha.openstack.trusts import Lent, LentCloud, Trusts

#: of the accounts that only the service and a tenant together open
SERVICE_PREFIX = "SERVICE_"
BLOCK_STORAGE = "block-storage"
#: trusts that are tried, where any of a project's does
TRIED = 5


class Place(Struct, frozen=True):
    """What of the database says how a vault is opened."""

    #: one after the other; none: by what the environment says
    trusts: tuple[str, ...] = ()
    prefix: str | None = None


#: the environment's
NOWHERE = Place()


#: servers of a project (some, or all of them), as Nova shows them to what is lent
AskNova = Callable[["LentCloud", str, "frozenset[str] | None"], "dict[str, ListedServer]"]


class Access:
    """For any thread. Without trusts, every vault is opened by what the environment says."""

    def __init__(self, trusts: Trusts | None = None, nova: AskNova | None = None) -> None:
        """`nova`: None: nobody asks it, and what agents say of VMs counts."""
        self._trusts = trusts
        self._nova = nova

    def place(self, session: Session, vault: Vault, job_id: str | None = None, *, alone: bool = False) -> Place:
        """By the trust of this job, or of any of the project's, unless it `alone` is to do. Raises `TrustBroken`."""
        account = (vaults.service(session, vault.vault_service_id).settings or {}).get("account")
        if account not in ("project", "service"):
            return NOWHERE
        if alone and job_id is not None:
            own = jobs.trust(session, job_id)
            found = [own] if own is not None else []
        else:
            found = jobs.trusts(session, vault.project_id, job_id)
        if found:
            return Place(tuple(found[:TRIED]), SERVICE_PREFIX if account == "service" else None)
        if (
            self._trusts is None and account == "project"
        ):  # the environment has a token of the one project that there is
            return NOWHERE
        raise TrustBroken(detail="there is none")

    def check(self, trust_id: str) -> None:
        """Raises `TrustBroken`, `IdentityUnavailable`."""
        if self._trusts is not None:
            self._trusts.check(trust_id)

    def lend(self, place: Place) -> dict[str, str] | None:
        """As variables of an environment, for `VaultAccess`. Raises `TrustBroken`, `IdentityUnavailable`."""
        if not place.trusts:
            return None
        *others, last = place.trusts
        for trust in others:
            try:
                return _variables(self._known().lend(trust, account=place.prefix))
            except TrustBroken:
                continue
        return _variables(self._known().lend(last, account=place.prefix))

    def cloud(self, trusts: Sequence[str]) -> CloudAccess | None:
        """What acts in the project, by the first of these trusts that stands. None: there is no cloud.

        Raises `TrustBroken`, `IdentityUnavailable`.
        """
        if self._trusts is None or not trusts:
            return None
        *others, last = trusts
        for trust in others:
            try:
                return _cloud(self._trusts.cloud(trust, CLOUD_SERVICES))
            except TrustBroken:
                continue
        return _cloud(self._trusts.cloud(last, CLOUD_SERVICES))

    def servers(self, trust_id: str, project_id: str, ids: frozenset[str] | None) -> dict[str, ListedServer] | None:
        """Servers of the project by id: those of some ids, or (`ids` None) all. None: there is no Nova to ask.

        Raises `TrustBroken`, `IdentityUnavailable`, `CloudRefused`, `CloudUnavailable`, `TooManyServers`.
        """
        if self._trusts is None or self._nova is None:
            return None
        lent = self._trusts.cloud(trust_id, ("compute",))
        return self._nova(lent, project_id, ids) if "compute" in lent.endpoints else None

    def block_storage(self, trusts: Sequence[str]) -> LentLogin | None:
        """What acts in the project's Cinder, by the first of these trusts that stands. None: there is none to ask.

        Raises `TrustBroken`, also where there is no trust, `IdentityUnavailable`.
        """
        broken = TrustBroken(detail="there is none")
        for trust in trusts:
            try:
                lent = self._known().cloud(trust, (BLOCK_STORAGE,))
            except TrustBroken as error:
                broken = error
                continue
            # only who has a cloud needs what asks it
            from raksha.openstack.lent import LentLogin

            return LentLogin(lent.token, lent.endpoints, lent.verify) if lent.endpoints else None
        raise broken

    def credentials(self, database: Database, vault: Vault, job_id: str | None = None) -> Credentials | None:
        """For this process; when it is refused, another is lent. Raises `TrustBroken`, `IdentityUnavailable`."""

        def lent() -> TokenCredentials | None:
            with database.reading() as session:
                place = self.place(session, vault, job_id)
            variables = self.lend(place)
            trusted = {name: os.environ[name] for name in ("OS_CACERT",) if name in os.environ}
            return None if variables is None else given_token({**variables, **trusted})

        def again() -> TokenCredentials:
            found = lent()
            if found is None:
                raise TrustBroken(detail="the vault is opened otherwise by now")
            return found

        first = lent()
        return None if first is None else LentCredentials(first, again)

    def end(self, trust_id: str) -> None:
        """Nothing needs it any more. Raises `IdentityUnavailable`."""
        self._known().end(trust_id)

    def _known(self) -> Trusts:
        if self._trusts is None:
            raise IdentityUnavailable(detail="this scheduler has no [trustee]; another one may have it")
        return self._trusts


#: of a deployment without Keystone
ENVIRONMENT = Access()


def _cloud(lent: LentCloud) -> CloudAccess | None:
    return CloudAccess(token=lent.token, endpoints=lent.endpoints) if "compute" in lent.endpoints else None


def _variables(lent: Lent) -> dict[str, str]:
    found = {"OS_STORAGE_URL": lent.storage_url, "OS_AUTH_TOKEN": lent.token}
    return found if lent.service_token is None else {**found, "OS_SERVICE_TOKEN": lent.service_token}
