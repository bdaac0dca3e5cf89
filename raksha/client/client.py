"""`Client`: one project of one service."""

from __future__ import annotations

from typing import Any

from raksha.client.jobs import Jobs
from raksha.client.others import Limited, Services, Used, Vaults, Vms
from raksha.client.previews import Previews
from raksha.client.restores import Restores
from raksha.client.runs import Runs
from raksha.client.transport import SERVICE_TYPE, Transport
from raksha.client.verifications import Verifications

__all__ = ["SERVICE_TYPE", "Client"]


class Client:
    """What a project has in Raksha. Nothing is asked before a manager is used."""

    def __init__(
        self,
        session: Any,
        *,
        endpoint_override: str | None = None,
        region_name: str | None = None,
        interface: str = "public",
        project_id: str | None = None,
    ) -> None:
        """`session`: of keystoneauth1, logged in to Keystone or with `HTTPBasicAuth`.

        `endpoint_override`: the API's address, with or without `/v1` and the project behind it; default: what the
        catalogue or the plugin has. `project_id`: default: that of the address, then that of the session.
        """
        self.transport = Transport(session, endpoint_override, region_name, interface, project_id)
        self.jobs = Jobs(self.transport)
        self.runs = Runs(self.transport)
        self.restores = Restores(self.transport)
        self.verifications = Verifications(self.transport)
        self.vms = Vms(self.transport)
        self.vaults = Vaults(self.transport)
        self.services = Services(self.transport)
        self.usage = Used(self.transport)
        self.limits = Limited(self.transport)
        self.previews = Previews(self.transport)

    @property
    def project_id(self) -> str:
        """Whose things these are. Raises `ProjectUnknown`, `NotLoggedIn`, `Unreachable`."""
        return self.transport.project_id
