"""What backups from storage may leave in Cinder, found by its marks (`snapshots`), whoever made it and died.

Asked by schedulers, in the project and by the trust of the job; nothing that does not bear the marks is touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from raksha.errors import CloudMissing
from raksha.openstack.lent import LentLogin, asking
from raksha.openstack.snapshots import JOB, VM, Temporary, delete_snapshot, marked_snapshots

_SERVICE = "block-storage"


def remove(cloud: LentLogin, task: str, attachments: Iterable[str] = ()) -> None:
    """All that attempts of a task have made for the time being; `attachments`: ids of those that they made.

    Not while one may be at work. Raises `CloudRefused`, `CloudUnavailable`: to be done again.
    """
    for attachment in attachments:
        with suppress(CloudMissing), asking(_SERVICE):
            cloud.volumes().client.delete(f"/attachments/{attachment}")
    Temporary(cloud, task, "").clear()


def remove_kept(cloud: LentLogin, job: str, but: frozenset[str] = frozenset()) -> int:
    """The snapshots of a job that stayed for its next run, but for those of some VMs and volumes. How many.

    Raises `CloudRefused`, `CloudUnavailable`: to be done again.
    """
    found = [each for each in marked_snapshots(cloud, {JOB: job}) if each.metadata.get(VM) not in but]
    for snapshot in found:
        delete_snapshot(cloud, snapshot.id)
    return len(found)
