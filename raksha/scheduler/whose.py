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


def ask(access: Access, job: BackupJob, named: frozenset[str], *, others: bool) -> Cloud | Wait | None:
    """None: there is no Nova to ask, and what agents say counts. Raises `TrustBroken`."""
    if job.trust_id is None:
        return None
    wanted = None if job.vm_selector else named
    try:
        found = access.servers(job.trust_id, job.project_id, wanted)
    except IdentityUnavailable as error:
        return Wait("identity_away", str(error))
    except CloudUnavailable as error:
        return Wait("cloud_away", str(error))
    except (CloudRefused, TooManyServers) as error:
        return Wait(error.code, str(error))
    return None if found is None else Cloud(found, others)
