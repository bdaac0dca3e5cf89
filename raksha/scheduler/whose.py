"""What Nova says of the VMs of a job, asked by the job's trust before anything is placed.

A hypervisor's word alone is not enough in a cloud: it may be out of date, or not be one's friend. So where jobs have
trusts and the cloud has a Nova, a VM is the project's because Nova says so, and is backed up by the agent of the host
that Nova has it on, or by none. No more rights are needed for that than the job's owner has.

Asked outside of transactions. Nova being away is a reason to wait, not to believe agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from raksha.db.models import BackupJob
from raksha.errors import CloudRefused, CloudUnavailable, IdentityUnavailable, TooManyServers
from raksha.scheduler.access import Access
from raksha.scheduler.placement import Wait

if TYPE_CHECKING:
    from raksha.openstack.compute import ListedServer


class Cloud(Struct, frozen=True):
    """Nova's word on the VMs of a job."""

    #: of the project: all of them, or those that the job names
    servers: Mapping[str, ListedServer]
    #: `[scheduler] libvirt_vms`: of VMs that Nova does not have, agents' word counts
    others: bool


class Asked:
    """Asks, of each server of a project at most once: for one round, in which many runs may want the same."""

    def __init__(self, access: Access, *, others: bool) -> None:
        self._access = access
        self._others = others
        #: by project: servers that were asked for; None: it has no such
        self._known: dict[str, dict[str, ListedServer | None]] = {}
        #: projects whose servers are all known
        self._whole: set[str] = set()
        #: projects that have no Nova
        self._without: set[str] = set()
        #: it, or Keystone, does not answer
        self._away: Wait | None = None
        #: by trust, why Nova refuses what acts by it; by project, why the list cannot be had
        self._refused: dict[str, Wait] = {}
        self._unlisted: dict[str, Wait] = {}

    def needs_nova(self, job: BackupJob, named: frozenset[str]) -> bool:
        """Whether `of` would ask now."""
        project, trust = job.project_id, job.trust_id
        if trust is None or self._away or trust in self._refused or project in self._without | self._whole:
            return False
        if job.vm_selector:
            return project not in self._unlisted
        return not named <= self._known.get(project, {}).keys()

    def of(self, job: BackupJob, named: frozenset[str]) -> Cloud | Wait | None:
        """None: there is no Nova to ask, and what agents say counts. Raises `TrustBroken`."""
        project, trust = job.project_id, job.trust_id
        if trust is None or project in self._without:
            return None
        if self.needs_nova(job, named):
            known = self._known.setdefault(project, {})
            wanted = None if job.vm_selector else named - known.keys()
            try:
                found = self._access.servers(trust, project, wanted)
            except (IdentityUnavailable, CloudUnavailable) as error:
                code = "identity_away" if isinstance(error, IdentityUnavailable) else "cloud_away"
                self._away = Wait(code, str(error))
            except CloudRefused as error:
                self._refused[trust] = Wait(error.code, str(error))
            except TooManyServers as error:
                if wanted is not None:  # others may ask for fewer
                    return Wait(error.code, str(error))
                self._unlisted[project] = Wait(error.code, str(error))
            else:
                if found is None:
                    self._without.add(project)
                    return None
                known.update({**dict.fromkeys(wanted or ()), **found})
                if wanted is None:
                    self._whole.add(project)
        return self._said(job, named)

    def _said(self, job: BackupJob, named: frozenset[str]) -> Cloud | Wait:
        """Of what was asked by now."""
        project = job.project_id
        known = self._known.get(project, {})
        there = {id: server for id, server in known.items() if server is not None}
        if project in self._whole:
            return Cloud(there, self._others)
        if not job.vm_selector and named <= known.keys():
            return Cloud({id: there[id] for id in named if id in there}, self._others)
        refused = self._refused.get(str(job.trust_id)) or self._away
        return refused or self._unlisted[project]
