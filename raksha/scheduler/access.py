"""What opens a project's vault, for schedulers and, lent with a claim, for agents.

    a directory, or one account of Swift for all projects      the environment of each process: nothing is lent
    the project's own account (`account: project`)             a token by the trust of a job
    an account beside it (`account: service`)                  that, and the token of the service

A token is of one project, is good for a while and is renewed with the lease. It is never written down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from sqlalchemy.orm import Session

from raksha.db import jobs, vaults
from raksha.db.models import Vault
from raksha.db.session import Database
from raksha.errors import TrustBroken
from raksha.vault.credentials import Credentials, given_token

if TYPE_CHECKING:  # only who has trusts needs keystoneauth
    from raksha.openstack.trusts import Lent, Trusts

#: of the accounts that only the service and a tenant together open
SERVICE_PREFIX = "SERVICE_"


class Place(Struct, frozen=True):
    """What of the database says how a vault is opened."""

    #: None: by what the environment says
    trust_id: str | None
    prefix: str | None = None


#: the environment's
NOWHERE = Place(None)


class Access:
    """For any thread. Without trusts, every vault is opened by what the environment says."""

    def __init__(self, trusts: Trusts | None = None) -> None:
        self._trusts = trusts

    def place(self, session: Session, vault: Vault, job_id: str | None = None) -> Place:
        """By the trust of this job, or of any of the project's. Raises `TrustBroken` if there is none."""
        account = (vaults.service(session, vault.vault_service_id).settings or {}).get("account")
        if account not in ("project", "service"):
            return NOWHERE
        trust = jobs.trust(session, vault.project_id, job_id)
        if trust is None:
            raise TrustBroken(detail="there is none")
        return Place(trust, SERVICE_PREFIX if account == "service" else None)

    def check(self, trust_id: str) -> None:
        """Raises `TrustBroken`, `IdentityUnavailable`."""
        if self._trusts is not None:
            self._trusts.check(trust_id)

    def lend(self, place: Place) -> dict[str, str] | None:
        """As variables of an environment, for `VaultAccess`. Raises `TrustBroken`, `IdentityUnavailable`."""
        if place.trust_id is None:
            return None
        if self._trusts is None:
            raise TrustBroken(detail="this scheduler has no [trustee] to act by it")
        return _variables(self._trusts.lend(place.trust_id, account=place.prefix))

    def credentials(self, database: Database, vault: Vault, job_id: str | None = None) -> Credentials | None:
        """For this process. Raises `TrustBroken`, `IdentityUnavailable`."""
        with database.reading() as session:
            place = self.place(session, vault, job_id)
        lent = self.lend(place)
        return None if lent is None else given_token(lent)

    def end(self, trust_id: str) -> None:
        """Nothing needs it any more. Raises `IdentityUnavailable`."""
        if self._trusts is not None:
            self._trusts.end(trust_id)


#: of a deployment without Keystone
ENVIRONMENT = Access()


def _variables(lent: Lent) -> dict[str, str]:
    found = {"OS_STORAGE_URL": lent.storage_url, "OS_AUTH_TOKEN": lent.token}
    return found if lent.service_token is None else {**found, "OS_SERVICE_TOKEN": lent.service_token}
