"""BACKUP from storage: of a server its volumes, or one volume, by any agent, without touching what uses them.

::

    what an earlier attempt left is removed         found by the marks of the task
    the server, its volumes                         asked of the cloud, checked
    of a shelved server the image of its boot disk  found (`raksha.openstack.shelved`); fetched after the snapshots
    a snapshot of each, one right after the other   told before they are made
    a way to read each                              `storage_sources`
    store every disk                                inert objects
    what was temporary is removed                   always: also after an error, and when nobody wants it any more
    Stored

Without tracking snapshots nothing is open after that. With them (`[agent] storage_differences`), those of this run stay
beside those of the parent until FINISH says which of them count; what nobody was told to remove, the next run removes.

Promises: neither status nor attachments of a volume change, nor does anybody wait. Not promised: that the volumes of a
server are of one instant: how far apart they may be is told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from msgspec import Struct

from raksha.agent import copies, storage_tracking
from raksha.agent.captures import OpenCapture
from raksha.agent.host import Host
from raksha.agent.storage_capture import StorageCapture, StorageDisk, decide
from raksha.agent.storage_notes import ATTACHMENT, SNAPSHOT, VOLUME, Notes
from raksha.agent.storage_shelved import boot_disk, reach
from raksha.agent.storage_sources import Reached, Sources, Wanted
from raksha.agent.storing import Storing
from raksha.agent.work import End, Work
from raksha.backup.documents import machine_document, vm_summary
from raksha.errors import (
    CaptureFailed,
    CloudRefused,
    RakshaError,
    VmNotFound,
    VmWithoutDisks,
    VolumeBusy,
    VolumeInUse,
    VolumeUnsupported,
)
from raksha.journal import HostRunState
from raksha.openstack.describe import describe, describe_volume
from raksha.openstack.lent import LentLogin
from raksha.openstack.shelved import SHELVED, ShelvedImage, find
from raksha.openstack.snapshots import Snapshot, Temporary, VolumeState, volume_state
from raksha.server import AttachedVolume, Server
from raksha.states import Consistency, Reason, Source
from raksha.tasks import BackupOrder, Stored
from raksha.vault.catalog import Catalog
from raksha.virt.capture import CaptureRequest, Machine

_log = logging.getLogger(__name__)

#: the one disk of a volume that stands in the place of a VM
DISK = "volume"
#: of servers, in the words of hypervisors
_POWER = {
    "ACTIVE": "running", "PAUSED": "paused", "SUSPENDED": "paused", "SHUTOFF": "shut off", "SHELVED": "shut off",
    SHELVED: "shut off",
}  # fmt: skip


class Subject(Struct, frozen=True, kw_only=True):
    """What is backed up."""

    id: str
    name: str
    power: str
    server: Server | None = None
    volume: AttachedVolume | None = None
    #: by the name of the disk
    volumes: Mapping[str, VolumeState]
    #: of its boot disk, where Nova has shelved it
    image: ShelvedImage | None = None


class StorageBackup:
    """One use."""

    def __init__(self, host: Host, work: Work, order: BackupOrder) -> None:
        if work.cloud is None:
            raise CloudRefused(service="block-storage", detail="nobody lends access to it")
        self._host = host
        self._work = work
        self._order = order
        self._cloud: LentLogin = work.cloud
        self._notes = Notes(host, work)
        self._temporary = Temporary(work.cloud, work.task_id, work.claimed.claim)
        self._sources = Sources(
            work.cloud,
            self._temporary,
            self._notes,
            vm=order.vm,
            check=work.check,
            readers=2 * host.settings.workers + 4,
        )
        self._warnings: list[str] = []
        #: the image of a shelved server
        self._fetched = ExitStack()
        #: by the name of the disk
        self._snapshots: dict[str, Snapshot] = {}

    def __call__(self) -> Stored:
        """Raises everything in `raksha.errors`; then nothing of it is left in the cloud, or the log names it."""
        order, journal, access = self._order, self._host.journal, self._work.claimed.vault
        run = order.backupjobrun
        journal.run_begin(run, access.vault_uuid if access else "", order.backupjob, self._work.claimed.claim)
        try:
            return self._backup()
        except BaseException:
            cancelled = self._work.why is End.CANCELLED
            journal.run_ended(run, HostRunState.CANCELLED if cancelled else HostRunState.FAILED)
            raise

    def _backup(self) -> Stored:
        order, work = self._order, self._work
        self._clear()
        subject = self._look()
        with self._host.catalog(work) as catalog:
            try:
                capture = self._capture(subject, catalog)
                stored = Storing(self._host, work, order, catalog, capture)()
                capture.check()
                work.check()
                tracked = self._keep(capture)
            except BaseException:
                self._undo()
                raise
        self._remove_temporary()
        if tracked:
            self._host.captures.keep(OpenCapture(work.task_id, order.backupjobrun, order.vm, capture, None))
        return Stored(
            vm=vm_summary(capture, stored),
            disks=stored,
            machine=machine_document(capture, subject.server, subject.volume),
            warnings=tuple(self._warnings),
        )

    # -- before anything is made --------------------------------------------------------------------

    def _clear(self) -> None:
        """What an earlier attempt left, here or on another host. It is over: its lease was, or it said so."""
        self._work.progress.step("looking")
        self._work.wait_for_lease()
        self._temporary.clear()
        storage_tracking.tidy(self._cloud, self._order, keep=self._host.agent.storage_differences)

    def _look(self) -> Subject:
        """Raises `VmNotFound`, `VmWithoutDisks`, `CloudMissing` and what `_check` does."""
        vm = self._order.vm
        if self._order.source is Source.VOLUME:
            volume = describe_volume(self._cloud, vm)
            volumes = {DISK: self._checked(vm)}
            return Subject(id=vm, name=volume.name or vm, power="unknown", volume=volume, volumes=volumes)
        server = describe(self._cloud, vm)
        if server is None:
            raise VmNotFound(vm=vm)
        power = _POWER.get(server.status, "unknown")
        image = self._image(server)
        if server.image_id is not None and server.status != SHELVED:
            self._warnings.append(
                f"what {server.name} has on its hypervisor is not part of the backup: only volumes are"
            )
        wanted = {each.target or each.id: each for each in server.volumes if each.target not in self._order.exclude}
        if not wanted and image is None:
            raise VmWithoutDisks(vm=server.name)
        # a server that does not run writes nothing to what it has to itself
        idle = power == "shut off"
        volumes = {
            target: self._checked(each.id, idle=idle and not each.multiattach) for target, each in wanted.items()
        }
        return Subject(id=vm, name=server.name, power=power, server=server, volumes=volumes, image=image)

    def _image(self, server: Server) -> ShelvedImage | None:
        """Raises `CloudMissing`, `CloudRefused`, `CloudUnavailable`."""
        if server.image_id is None or server.status != SHELVED or boot_disk(server) in self._order.exclude:
            return None
        return find(self._cloud, server.id)

    def _checked(self, volume_id: str, *, idle: bool = False) -> VolumeState:
        """`idle`: nobody writes to it. Raises `VolumeUnsupported`, `VolumeInUse`, `VolumeBusy`."""
        state = volume_state(self._cloud, volume_id)
        if state.encrypted:
            raise VolumeUnsupported(volume=volume_id, detail="it is encrypted, and Raksha has no keys")
        if state.status == "in-use" and not (idle or self._order.force):
            raise VolumeInUse(volume=volume_id)
        if state.status not in ("available", "in-use"):
            raise VolumeBusy(volume=volume_id, status=state.status)
        return state

    # -- the instant --------------------------------------------------------------------------------

    def _capture(self, subject: Subject, catalog: Catalog) -> StorageCapture:
        begun = time.time()
        self._take(subject)
        ended = time.time()
        if len(self._snapshots) > 1:
            self._warnings.append(
                f"the volumes of {subject.name} were taken from storage one by one within {ended - begun:.1f} s: "
                "they are not of one instant"
            )
        self._work.progress.step("reaching the storage")
        wanted = [
            Wanted(target, self._snapshots[target], state.status == "in-use")
            for target, state in subject.volumes.items()
        ]
        reached = self._sources.reach(wanted)
        request = copies.request(catalog, self._order)
        disks = [self._disk(each, reached[each.target], request, catalog) for each in wanted]
        disks = [*self._shelved(subject, request), *disks]
        consistency = self._consistency(subject)
        self._work.progress.step(f"captured, {consistency}")
        return StorageCapture(
            Machine(subject.id, subject.name, "", None, subject.power, None),
            disks,
            consistency=consistency,
            taken_at=(begun + ended) / 2,
            close=self._close,
            settle=self._settle,
        )

    def _take(self, subject: Subject) -> None:
        """Raises `CloudRefused` (a quota), `CloudUnavailable`, `CloudMissing` (the volume is gone), `Interrupted`."""
        self._work.progress.step("taking snapshots")
        states = subject.volumes
        if not states:
            return
        self._notes.tell(
            *({"kind": SNAPSHOT, "volume": each.id, "previous_status": each.status} for each in states.values())
        )
        self._work.wait_for_lease()
        made = {target: self._temporary.snapshot(each.id) for target, each in states.items()}
        for target, id in made.items():
            self._snapshots[target] = self._temporary.wait_for_snapshot(id, self._work.check)
        self._notes.tell(*({"kind": SNAPSHOT, "volume": states[target].id, "id": id} for target, id in made.items()))

    def _consistency(self, subject: Subject) -> Consistency:
        """Before the snapshots it was so; is it still?"""
        if subject.server is None:
            unused = all(each.status == "available" for each in subject.volumes.values())
            return Consistency.OFFLINE if unused else Consistency.CRASH
        after = describe(self._cloud, subject.id)
        if after is None or after.status != subject.server.status:
            return Consistency.CRASH
        return {"shut off": Consistency.OFFLINE, "paused": Consistency.PAUSED}.get(subject.power, Consistency.CRASH)

    def _disk(self, wanted: Wanted, reached: Reached, request: CaptureRequest, catalog: Catalog) -> StorageDisk:
        parent = request.since.get(wanted.target)
        changed = None
        tracker = None
        if self._host.agent.storage_differences and reached.image is not None:
            tracker = storage_tracking.tracker(wanted.snapshot.id)
            copy = self._order.parents.get(wanted.target)
            if parent is not None and copy is not None:
                changed = storage_tracking.changed(
                    self._cloud, catalog.metadata(copy.key), self._order, reached.image, wanted.snapshot
                )
        decision = decide(parent, reached.source.size, request.full_reason, changed)
        facts = {"format": reached.format, "kind": reached.kind, "serial": wanted.snapshot.volume_id}
        return StorageDisk(wanted.target, reached.source, decision, parent, facts, tracker)

    def _shelved(self, subject: Subject, request: CaptureRequest) -> list[StorageDisk]:
        """Its boot disk, of the time at which the snapshots were taken. Raises what `find` and `reach` raise."""
        image, server = subject.image, subject.server
        if image is None or server is None:
            return []
        if find(self._cloud, server.id) != image:  # it was unshelved since, and shelved again
            raise CaptureFailed(vm=server.name, detail="Nova has made another image of it meanwhile")
        target = boot_disk(server)
        source = reach(self._host, self._work, self._cloud, image, vm=server.name, target=target, stack=self._fetched)
        parent = request.since.get(target)
        decision = decide(parent, source.size, request.full_reason, None, Reason.SERVER_SHELVED)
        facts: dict[str, str | int | None] = {"format": image.format, "kind": "image", "image": image.id}
        return [StorageDisk(target, source, decision, parent, facts, None)]

    # -- afterwards ---------------------------------------------------------------------------------

    def _keep(self, capture: StorageCapture) -> bool:
        """Snapshots that the next run is told changes by are temporary no more. Whether there are some."""
        tracked = [disk.target for disk in capture.disks if disk.tracker is not None]
        order = self._order
        for target in tracked:
            self._temporary.keep(self._snapshots[target].id, job=order.backupjob, run=order.backupjobrun, vm=order.vm)
        return bool(tracked)

    def _settle(self, durable: bool) -> list[str]:
        """What became of the run: some of the kept snapshots count, the others go."""
        try:
            if durable:
                storage_tracking.finish(self._cloud, self._order)
            else:
                storage_tracking.abandon(self._cloud, self._order, self._work.claimed.claim)
        except RakshaError as error:
            _log.warning("the next run removes a snapshot: %s", error, extra={"action": "storage"})
            return [f"a snapshot that is of no use any more is left until the next run: {error}"]
        return []

    def _undo(self) -> None:
        """After an error, which is to be told whatever becomes of this."""
        self._settle(False)
        self._remove_temporary()

    def _close(self) -> None:
        """May be called twice."""
        self._fetched.close()
        self._sources.close()

    def _remove_temporary(self) -> None:
        """What cannot be removed now, schedulers remove later: they were told of it."""
        self._work.progress.step("removing what was temporary")
        self._close()
        try:
            self._temporary.undo()
        except RakshaError as error:
            _log.error("what was temporary may be left over: %s", error, extra={"action": "storage"})
            self._warnings.append(f"a temporary snapshot or volume is removed later: {error}")
            return
        volumes: Sequence[str] = sorted({each.volume_id for each in self._snapshots.values()})
        if volumes:
            self._notes.gone(
                *({"kind": kind, "volume": each} for kind in (ATTACHMENT, VOLUME, SNAPSHOT) for each in volumes)
            )
