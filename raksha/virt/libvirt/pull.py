"""The capture engine `pull`.

QEMU itself serves a frozen view of all disks (`virDomainBackupBegin`, pull mode) over NBD on a unix socket, and begins
a dirty bitmap on every disk that can hold one. The chain of the VM is never touched, and between runs libvirt knows no
checkpoint: the bitmap alone stays and records, one per disk and job. At the next run it is exactly what changed.
A disk without a whole bitmap that counts from the parent is read completely and compared, for a recorded reason.

A VM that is shut off is read as it lies, without locks: its start is never blocked. If it was started meanwhile, what
was read is discarded.

A VM that still carries overlays of the engine `overlay` is captured on top of them; once the run is durable they are
merged away, since whoever chose this engine wants the chain left alone.

Not promised: anything about disks that are left out; that a guest never waits: what it overwrites is put aside first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing

from raksha.config import Settings
from raksha.errors import CaptureFailed, LayerUnknown, LibvirtFailed
from raksha.journal import BitmapState, HostRunState, Journal, Lock, OwnBitmap
from raksha.virt.capture import CaptureRequest, VmIdentity
from raksha.virt.libvirt import image, nbd, pull_place
from raksha.virt.libvirt.capture import OfflineWatch
from raksha.virt.libvirt.checkpoint import Checkpoints, what_became
from raksha.virt.libvirt.connection import Connection, Guest
from raksha.virt.libvirt.domain_xml import parse_domain
from raksha.virt.libvirt.freeze import Freezer
from raksha.virt.libvirt.own_source import own_sources
from raksha.virt.libvirt.pull_capture import PullCapture, Taken
from raksha.virt.libvirt.pull_recover import PULL
from raksha.virt.libvirt.pull_release import release_bitmaps
from raksha.virt.libvirt.pull_session import Session, drop_bitmaps
from raksha.virt.libvirt.pull_survey import PullDemands, below, can_hold_bitmap, lying
from raksha.virt.libvirt.pull_tracker import Decision, Found, counting, decide
from raksha.virt.libvirt.pull_xml import BackupDisk, backup_xml, bitmap_name, checkpoint_xml
from raksha.virt.libvirt.recover import adopted, reconcile
from raksha.virt.libvirt.survey import OURS, Survey, SurveyedDisk, survey

#: QEMU counts disks in these, and rounds a raw file up
_SECTOR = 512


class PullEngine:
    """Makes captures at one libvirt. Give it the process's journal; `close` ends the connection."""

    name = "pull"

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self.connection = Connection(settings.libvirt_uri)
        nbd.sweep()

    def close(self) -> None:
        self.connection.close()

    def identify(self, vm: str) -> VmIdentity:
        guest = self.connection.guest(vm)
        return VmIdentity(guest.uuid, guest.name)

    def release(self, vm: str) -> list[str]:
        """Remove bitmaps and checkpoints. Overlays of ours are the other engine's to release."""
        guest = self.connection.guest(vm)
        with self._journal.vm_lock(guest.uuid, guest.name):
            reconcile(guest, self._journal, self._settings)
            return release_bitmaps(guest, self._journal)

    def prepare(self, request: CaptureRequest) -> PullPrepared:
        guest = self.connection.guest(request.vm)
        lock = self._journal.vm_lock(guest.uuid, guest.name)
        try:
            warnings = reconcile(guest, self._journal, self._settings)
            from raksha.virt.libvirt.adopt import adopt_bitmaps  # commands that make no backup do without

            adopt_bitmaps(guest.uuid, self._journal, request)
            warnings += _settle(guest, self._journal, request)
            try:
                found = survey(guest, self._journal, PullDemands(), request.exclude)
            except LayerUnknown:
                warnings += adopted(guest, self._journal, self._settings, request)
                found = survey(guest, self._journal, PullDemands(), request.exclude)
            freezer = Freezer(guest, self.connection.uri, request.quiesce, self._settings, self._journal)
            prepared = PullPrepared(
                self.connection, guest, request, found, freezer, lock, self._journal, self._settings, warnings
            )
        except BaseException:
            lock.release()
            raise
        try:
            prepared.make_ready()
        except BaseException:
            prepared.cancel()
            raise
        return prepared


def _settle(guest: Guest, journal: Journal, request: CaptureRequest) -> list[str]:
    """Earlier runs of this job: a bitmap counts if its run became a restore point, else it goes. Returns warnings."""
    durable = {parent.backupjobrun for parent in request.since.values() if parent is not None}
    for bitmap in journal.bitmaps(guest.uuid):
        if bitmap.state is BitmapState.PLANNED and bitmap.job == request.backupjob:
            counts = bitmap.run in durable or journal.run_state(bitmap.run) is HostRunState.DURABLE
            journal.set_bitmaps([bitmap], BitmapState.COUNTING if counts else BitmapState.UNWANTED)
    # An earlier attempt at this very run may have left some as well.
    unwanted = [
        each
        for each in journal.bitmaps(guest.uuid)
        if each.state is BitmapState.UNWANTED or each.run == request.backupjobrun
    ]
    return drop_bitmaps(guest, journal, unwanted)


class PullPrepared:
    """One VM, ready to be captured."""

    def __init__(
        self,
        connection: Connection,
        guest: Guest,
        request: CaptureRequest,
        found: Survey,
        freezer: Freezer,
        lock: Lock,
        journal: Journal,
        settings: Settings,
        warnings: list[str],
    ) -> None:
        self.vm_name = guest.name
        self._connection = connection
        self._guest = guest
        self._request = request
        self._survey = found
        self._freezer = freezer
        self._lock = lock
        self._journal = journal
        self._settings = settings
        self._warnings = warnings
        self._bitmaps = journal.bitmaps(guest.uuid)
        self._decisions: dict[str, Decision] = {}
        self._sizes: dict[str, int] = {}
        self._session: Session | None = None
        self._offline: OfflineWatch | None = None
        self._taken_at: float | None = None
        #: as its owner knows it
        self._definition = ""

    def make_ready(self) -> None:
        """Decide how to read each disk; make a place for QEMU, start guard and watchdog. After an error `cancel`."""
        agent = self._survey.live.agent if self._survey.live else None
        self._freezer.prepare(self._survey.power, agent)
        bases = {disk.target: disk.lineage.base for disk in self._survey.disks if disk.lineage.own}
        self._definition = own_sources(self._guest.inactive_xml(secrets=True), bases)
        for disk in self._survey.disks:
            self._sizes[disk.target] = -(-self._capacity(disk) // _SECTOR) * _SECTOR
        try:
            if self._survey.active:
                self._ready_online()
            else:
                self._ready_offline()
        except OSError as error:
            raise CaptureFailed(vm=self.vm_name, detail=f"its backup cannot be prepared: {error}") from error

    # -- a VM that is shut off ----------------------------------------------------------------------

    def _capacity(self, disk: SurveyedDisk) -> int:
        """Bytes. At a network disk libvirt looks only while the VM runs."""
        if self._survey.active or disk.disk.top.kind in OURS:
            return self._guest.capacity(disk.target)
        with closing(
            nbd.Server(self.vm_name, disk.target, lying(self._guest, disk), share=True, connections=1)
        ) as there:
            return there.size

    def _ready_offline(self) -> None:
        self._offline = OfflineWatch(self._guest, self._survey)
        for disk in self._survey.disks:
            bitmap = self._counting(disk)
            self._decide(disk, _found_offline(bitmap.name, disk) if bitmap else None)

    # -- a VM that runs -----------------------------------------------------------------------------

    def _ready_online(self) -> None:
        run, vm = self._request.backupjobrun, self._guest.uuid
        place = pull_place.place_of(self._settings, run, vm)
        pull_place.check_space(self.vm_name, place, self._sizes.values(), self._settings)
        asked = self._asked()
        checkpoints = [bitmap_name(run), *asked]
        detail = {"directory": str(place.directory), "checkpoints": checkpoints}
        intent = self._journal.begin(PULL, run=run, vm=vm, detail=detail)
        try:
            pull_place.make(self.vm_name, place, self._guest.live_xml(), [disk.disk.top for disk in self._survey.disks])
        except BaseException:
            # What stands there is not ours to remove.
            self._journal.done(intent, "no place")
            raise
        session = self._session = Session(self._connection, self._guest, self._journal, intent, place)
        session.checkpoints.update(checkpoints)
        found = self._look_up(asked)
        for disk in self._survey.disks:
            self._decide(disk, found.get(disk.target))
        session.bitmaps += [self._bitmap(disk) for disk in self._survey.disks if can_hold_bitmap(disk.lineage)]
        self._journal.add_bitmaps(session.bitmaps)
        session.start_guard(pull_place.watermark(self._settings))

    def _bitmap(self, disk: SurveyedDisk) -> OwnBitmap:
        run = self._request.backupjobrun
        return OwnBitmap(
            vm=self._guest.uuid,
            target=disk.target,
            name=bitmap_name(run),
            run=run,
            job=self._request.backupjob,
            below=below(disk.lineage),
            state=BitmapState.PLANNED,
            counts_from=frozenset([run]),
        )

    def _asked(self) -> dict[str, set[str]]:
        """Names of the bitmaps that count from the disks' parents, and on which disks."""
        asked: dict[str, set[str]] = {}
        for disk in self._survey.disks:
            bitmap = self._counting(disk)
            if bitmap is not None and can_hold_bitmap(disk.lineage):
                asked.setdefault(bitmap.name, set()).add(disk.target)
        return asked

    def _look_up(self, asked: dict[str, set[str]]) -> dict[str, Found]:
        """What became of them. libvirt knows the checkpoints of those that are whole, afterwards."""
        found: dict[str, Found] = {}
        for name, targets in asked.items():
            whole = Checkpoints(self._guest, self._journal).usable(name, targets)
            for target in targets:
                top = self._survey.disk(target).disk.top
                found[target] = Found.WHOLE if target in whole else what_became(name, top)
        return found

    def _counting(self, disk: SurveyedDisk) -> OwnBitmap | None:
        return counting(self._bitmaps, disk.target, self._request.since.get(disk.target))

    def _decide(self, disk: SurveyedDisk, found: Found | None) -> None:
        self._decisions[disk.target] = decide(
            [each for each in self._bitmaps if each.target == disk.target],
            self._request.since.get(disk.target),
            self._sizes[disk.target],
            full_reason=self._request.full_reason,
            possible=can_hold_bitmap(disk.lineage),
            below=below(disk.lineage),
            found=found,
        )

    # -- the barrier --------------------------------------------------------------------------------

    def freeze(self) -> None:
        self._freezer.freeze()

    def snapshot(self) -> None:
        before = time.time()
        if self._session is None:
            assert self._offline is not None
            self._offline.check()
        else:
            self._check_unchanged()
            self._session.arm()
            self._begin(self._session)
        self._taken_at = (before + time.time()) / 2
        self._freezer.snapshot_taken()

    def _check_unchanged(self) -> None:
        """Others may have waited long at the barrier; the backup is of the disks that were looked at."""
        live = parse_domain(self._guest.live_xml()) if self._guest.is_active() else None
        for disk in self._survey.disks:
            now = live.disk(disk.target) if live else None
            if now is None or now.layers != disk.disk.layers or now.mirrored:
                raise CaptureFailed(vm=self.vm_name, detail="it was changed or shut off while the capture was prepared")

    def _begin(self, session: Session) -> None:
        disks = [
            BackupDisk(target, str(session.place.scratch(target)), decision.bitmap)
            for target, decision in self._decisions.items()
        ]
        xml = backup_xml(str(session.place.socket), disks, self._survey.left_out)
        targets = {each.target for each in session.bitmaps}
        own = bitmap_name(self._request.backupjobrun)
        every = [*self._decisions, *self._survey.left_out]
        checkpoint = checkpoint_xml(own, targets, every) if targets else None
        try:
            self._guest.backup_begin(xml, checkpoint)
        except LibvirtFailed as error:
            if not self._cleared(session.bitmaps):
                raise CaptureFailed(vm=self.vm_name, detail=_explained(error, session)) from error
            self._guest.backup_begin(xml, checkpoint)

    def _cleared(self, bitmaps: Sequence[OwnBitmap]) -> bool:
        """Whether bitmaps of this very run, which only an earlier attempt can have left, were in the way."""
        checkpoints = Checkpoints(self._guest, self._journal)
        own = bitmap_name(self._request.backupjobrun)
        try:
            checkpoints.forget([own])
            there = checkpoints.usable(own, {each.target for each in bitmaps})
            for each in bitmaps:
                if each.target in there:
                    checkpoints.remove(each)
            self._journal.add_bitmaps(bitmaps)
        except LibvirtFailed:
            return False
        return bool(there)

    def holds(self) -> bool:
        return self._freezer.holds()

    def thaw(self) -> None:
        self._freezer.thaw()

    def capture(self) -> PullCapture:
        if self._taken_at is None:
            raise ValueError("capture comes after snapshot")
        self.thaw()
        if self._session is not None:
            self._session.forget_checkpoints()
        used = {disk.target: self._counting(disk) for disk in self._survey.disks if self._decisions[disk.target].bitmap}
        bitmaps = {target: bitmap for target, bitmap in used.items() if bitmap is not None}
        capture = PullCapture(
            self._guest,
            self._request,
            Taken(self._survey, self._decisions, self._sizes, bitmaps, self._definition, self._taken_at),
            self._freezer,
            self._journal,
            self._settings,
            session=self._session,
            offline=self._offline,
            warnings=self._warnings,
        )
        capture.take_over(self._lock)
        return capture

    def cancel(self) -> None:
        """Safe at any time before there is a capture: no job, bitmap or file of this run is left."""
        self._freezer.close()
        if self._offline is not None:
            self._offline.close()
        if self._session is not None:
            self._session.give_up()
            self._session = None
        self._lock.release()


def _explained(error: LibvirtFailed, session: Session) -> str:
    detail = str(error.fields["detail"])
    if not pull_place.out_of_reach(session.place):
        return detail
    parent = session.place.directory.parent
    return f"QEMU cannot get to {parent}; set scratch_dir in /etc/raksha/raksha.conf ({detail})"


def _found_offline(name: str, disk: SurveyedDisk) -> Found:
    """A bitmap of a VM that is shut off: whole if it lies in the active layer, in no layer below, and was closed."""
    top = disk.chain[0]
    flags = image.bitmaps(top.path).get(name) if top.format == "qcow2" else None
    if flags is None:
        return Found.LOST
    if flags != {"auto"}:
        return Found.INCONSISTENT
    lower = [layer for layer in disk.chain[1:] if layer.format == "qcow2"]
    return Found.LOST if any(name in image.bitmaps(layer.path) for layer in lower) else Found.WHOLE
