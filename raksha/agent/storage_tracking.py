"""Snapshots that stay between the runs of a job, so that its storage tells what has changed since: of Ceph alone.

One of each volume and job, that of the newest restore point; two while it is not known what becomes of a run. Which run
a snapshot is of, its marks say, so nothing else has to remember it: neither the host that took it, nor the next one.
A copy in the vault names its snapshot (`tracker`). Both are believed only together, and only of the parent's run.
"""

from __future__ import annotations

import logging

from raksha.errors import CaptureFailed
from raksha.openstack.ceph import CephImage, snapshot_name
from raksha.openstack.lent import LentLogin
from raksha.openstack.snapshots import CLAIM, JOB, RUN, VM, Snapshot, delete_snapshot, find_snapshot, kept_snapshots
from raksha.tasks import BackupOrder
from raksha.types import Extent
from raksha.vault.metadata import BackupMetadata
from raksha.virt.capture import Tracker
from raksha.virt.libvirt.ceph import differences

_log = logging.getLogger(__name__)

_KIND, _BACKEND = "snapshot", "rbd"


def tracker(snapshot_id: str) -> Tracker:
    return {"kind": _KIND, "backend": _BACKEND, "snapshot": snapshot_id}


def changed(
    cloud: LentLogin, parent: BackupMetadata, order: BackupOrder, image: CephImage, until: Snapshot
) -> list[Extent] | None:
    """What has changed since the parent; None: it cannot be told. Raises `CloudRefused`, `CloudUnavailable`."""
    known = parent.tracker or {}
    since = known.get("snapshot")
    if (known.get("kind"), known.get("backend")) != (_KIND, _BACKEND) or not isinstance(since, str):
        return None
    found = find_snapshot(cloud, since)
    marks = {JOB: order.backupjob, RUN: parent.backupjobrun, VM: order.vm}
    if found is None or found.volume_id != until.volume_id or not marks.items() <= found.metadata.items():
        return None
    try:
        return differences(
            image.path, snapshot_name(since), snapshot_name(until.id), monitors=image.monitors, user=image.user
        )
    except CaptureFailed as error:
        _log.warning("changes are not told, all is read: %s", error)
        return None


def tidy(cloud: LentLogin, order: BackupOrder, *, keep: bool) -> None:
    """Before a run: what runs have left that nobody asks about any more. Raises `CloudRefused`, `CloudUnavailable`.

    `keep`: those of the parents are wanted. Where all is to be read anew, it is not known which these are: all stay.
    """
    parents = {copy.key.backupjobrun for copy in order.parents.values()}
    for snapshot in kept_snapshots(cloud, job=order.backupjob, vm=order.vm):
        wanted = order.full or snapshot.metadata[RUN] in parents
        if snapshot.metadata[RUN] == order.backupjobrun or not (keep and wanted):
            delete_snapshot(cloud, snapshot.id)


def finish(cloud: LentLogin, order: BackupOrder) -> None:
    """The run is a restore point: its own snapshots count. Raises `CloudRefused`, `CloudUnavailable`."""
    for snapshot in kept_snapshots(cloud, job=order.backupjob, vm=order.vm):
        if snapshot.metadata[RUN] != order.backupjobrun:
            delete_snapshot(cloud, snapshot.id)


def abandon(cloud: LentLogin, order: BackupOrder, claim: str) -> None:
    """It is none: those before it count. What another attempt has kept is left. Raises what `finish` raises."""
    for snapshot in kept_snapshots(cloud, job=order.backupjob, vm=order.vm):
        if snapshot.metadata[RUN] == order.backupjobrun and snapshot.metadata.get(CLAIM) == claim:
            delete_snapshot(cloud, snapshot.id)
