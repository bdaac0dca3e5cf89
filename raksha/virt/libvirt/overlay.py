"""The capture engine `overlay`.

One atomic external snapshot freezes all disks of a VM; what was the active layer is then read through qemu-nbd. The
new overlay stays in the chain as change tracker: what it holds at the next run is the increment. Once a run is
durable, the layers older than its own overlay are merged into the VM's own file, so that one layer remains.

A VM that is shut off is read as it lies, without locks and without a snapshot: its start is never blocked. If it was
started meanwhile, what was read is discarded.

A VM of Nova keeps none: Nova would start its disks below it. Its overlays are merged as soon as everything is read, and
each run compares. Until then Nova must not start it again: what was written since would be lost. So for these VMs this
engine is used only where it is asked for by name.

Not promised: anything about disks that are left out; that a layer is small (a busy guest between rare runs makes it
as large as what it wrote).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NoReturn

from lxml import etree

from raksha.config import Settings
from raksha.errors import CaptureFailed, ChainUnexpected, LayerUnknown, LibvirtFailed, RakshaError
from raksha.journal import Base, Journal, LayerState, Lock, OwnLayer
from raksha.virt.capture import CaptureRequest, VmIdentity
from raksha.virt.libvirt import nbd, overlay_file
from raksha.virt.libvirt.capture import OfflineWatch, OverlayCapture
from raksha.virt.libvirt.chain import ChainBroken, backing_of, file_id, modified, same_file, size_of
from raksha.virt.libvirt.commit import Committer
from raksha.virt.libvirt.connection import Connection, Guest, check_local
from raksha.virt.libvirt.domain_xml import Domain, Layer, parse_domain
from raksha.virt.libvirt.fence import Fence
from raksha.virt.libvirt.freeze import Freezer
from raksha.virt.libvirt.overlay_file import OverlayPlan
from raksha.virt.libvirt.overlay_survey import OverlayDemands
from raksha.virt.libvirt.own_source import own_sources
from raksha.virt.libvirt.recover import adopted, after_death, reconcile
from raksha.virt.libvirt.release import Release
from raksha.virt.libvirt.survey import Survey, SurveyedDisk, survey
from raksha.virt.libvirt.trash import Trash

#: QEMU counts disks in these, and rounds a raw file up
_SECTOR = 512


class OverlayEngine:
    """Makes captures at one libvirt. Give it the process's journal; `close` ends the connection."""

    name = "overlay"

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        check_local(settings.libvirt_uri)
        self.connection = Connection(settings.libvirt_uri)
        nbd.sweep()

    def close(self) -> None:
        self.connection.close()

    def identify(self, vm: str) -> VmIdentity:
        guest = self.connection.guest(vm)
        return VmIdentity(guest.uuid, guest.name)

    def release(self, vm: str) -> list[str]:
        guest = self.connection.guest(vm)
        with self._journal.vm_lock(guest.uuid, guest.name):
            try:
                return Release(self.connection, guest, self._journal, self._settings)()
            except RakshaError:
                after_death(guest, self._journal, self._settings)
                raise

    def prepare(self, request: CaptureRequest) -> OverlayPrepared:
        guest = self.connection.guest(request.vm)
        lock = self._journal.vm_lock(guest.uuid, guest.name)
        try:
            warnings = reconcile(guest, self._journal, self._settings)
            try:
                found = survey(guest, self._journal, OverlayDemands(), request.exclude)
            except LayerUnknown:
                warnings += adopted(guest, self._journal, self._settings, request)
                found = survey(guest, self._journal, OverlayDemands(), request.exclude)
            freezer = Freezer(guest, self.connection.uri, request.quiesce, self._settings, self._journal)
            prepared = OverlayPrepared(guest, request, found, freezer, lock, self._journal, self._settings, warnings)
            if found.inactive.nova:
                prepared.give_back = Release(self.connection, guest, self._journal, self._settings)
        except BaseException:
            lock.release()
            raise
        try:
            prepared.make_ready()
        except BaseException:
            prepared.cancel()
            raise
        return prepared


class OverlayPrepared:
    """One VM, ready to be captured."""

    def __init__(
        self,
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
        #: of a VM that must keep no overlay: merges them all
        self.give_back: Callable[[], list[str]] | None = None
        self._guest = guest
        self._request = request
        self._survey = found
        self._freezer = freezer
        self._lock = lock
        self._journal = journal
        self._settings = settings
        self._warnings = warnings
        self._plans: list[OverlayPlan] = []
        self._intent: int | None = None
        self._offline: OfflineWatch | None = None
        self._taken_at: float | None = None
        #: as its owner knows it, read before the snapshot changes it
        self._definition = ""

    def make_ready(self) -> None:
        """Make overlays and start the watchdog. After an error call `cancel`."""
        agent = self._survey.live.agent if self._survey.live else None
        self._freezer.prepare(self._survey.power, agent)
        bases = {disk.target: disk.lineage.base for disk in self._survey.disks if disk.lineage.own}
        self._definition = own_sources(self._guest.inactive_xml(secrets=True), bases)
        if not self._survey.active:
            self._offline = OfflineWatch(self._guest, self._survey)
            return
        plans = [self._plan(disk) for disk in self._survey.disks]
        try:
            self._find_room(plans)
        except OSError as error:
            raise CaptureFailed(vm=self.vm_name, detail=f"no overlay can be made: {error}") from error
        request = self._request
        detail = {"overlays": [plan.path for plan in plans], "chains": _chains(self._survey)}
        self._intent = self._journal.begin("snapshot", run=request.backupjobrun, vm=self._guest.uuid, detail=detail)
        for disk, plan in zip(self._survey.disks, plans, strict=True):
            self._make(disk, plan)

    def _find_room(self, plans: list[OverlayPlan]) -> None:
        """What lies in the trash gives way. Raises `NoSpaceForOverlay`, `OSError`."""
        trash = Trash(self._guest.uuid, self._guest.neighbours, self._journal, self._settings)
        for device in {Path(plan.path).parent.stat().st_dev for plan in plans if Path(plan.path).parent.exists()}:
            trash.make_room(device, lambda: overlay_file.has_room(self.vm_name, plans, self._settings))
        overlay_file.check_space(self.vm_name, plans, self._settings)

    def _plan(self, disk: SurveyedDisk) -> OverlayPlan:
        taken = {layer.file.path for layer in self._journal.layers(self._guest.uuid)}
        names = (self._path(disk, attempt) for attempt in count(1))
        path = next(name for name in names if name not in taken)
        return OverlayPlan(disk.target, path, disk.disk.top, _sectors(self._guest, disk.target))

    def _path(self, disk: SurveyedDisk, attempt: int) -> str:
        return overlay_file.overlay_path(
            disk.lineage.base,
            run=self._request.backupjobrun,
            vm=self._guest.uuid,
            target=disk.target,
            settings=self._settings,
            attempt=attempt,
        )

    def _make(self, disk: SurveyedDisk, plan: OverlayPlan) -> None:
        run = self._request.backupjobrun
        try:
            made = overlay_file.make(plan, run)
            own = disk.lineage.own
            base = own[-1].base if own else _base(disk.lineage.base)
            layer = OwnLayer(
                vm=self._guest.uuid,
                target=disk.target,
                file=made,
                base=base,
                run=run,
                job=self._request.backupjob,
                state=LayerState.PLANNED,
                counts_from=frozenset([run]),
            )
            self._journal.add_layer(layer)
            self._plans.append(plan)
        except OSError as error:
            detail = f"no overlay can be made at {plan.path}: {error.strerror}"
            raise CaptureFailed(vm=self.vm_name, detail=detail) from error

    # -- the barrier --------------------------------------------------------------------------------

    def freeze(self) -> None:
        self._freezer.freeze()

    def snapshot(self) -> None:
        before = time.time()
        if self._offline is not None:
            self._offline.check()
        else:
            self._check_unchanged()
            self._freezer.check()
            try:
                self._guest.snapshot(_snapshot_xml(self._plans, self._survey.left_out))
            except LibvirtFailed as error:
                raise CaptureFailed(vm=self.vm_name, detail=error.fields["detail"]) from error
        self._taken_at = (before + time.time()) / 2
        self._freezer.snapshot_taken()

    def _check_unchanged(self) -> None:
        """Others may have waited long at the barrier; the snapshot is for the chain that was looked at."""
        live = parse_domain(self._guest.live_xml()) if self._guest.is_active() else None
        inactive = parse_domain(self._guest.inactive_xml())
        for disk, plan in zip(self._survey.disks, self._plans, strict=True):
            now, then = (live.disk(disk.target) if live else None), inactive.disk(disk.target)
            same = now is not None and now.layers == disk.disk.layers and not now.mirrored
            # An overlay smaller than a disk that has just grown would cut the guest's data off.
            if (
                not same
                or then is None
                or not then.layers
                or then.top.path != disk.disk.top.path
                or _sectors(self._guest, disk.target) != plan.size
            ):
                raise CaptureFailed(vm=self.vm_name, detail="it was changed or shut off while the capture was prepared")

    def holds(self) -> bool:
        return self._freezer.holds()

    def thaw(self) -> None:
        self._freezer.thaw()

    def capture(self) -> OverlayCapture:
        if self._taken_at is None:
            raise ValueError("capture comes after snapshot")
        self.thaw()
        if self._offline is None:
            self._verify()
        capture = OverlayCapture(
            self._guest,
            self._request,
            self._survey,
            self._freezer,
            self._journal,
            self._settings,
            offline=self._offline,
            taken_at=self._taken_at,
            definition=self._definition,
            warnings=self._warnings,
            give_back=self.give_back,
        )
        capture.take_over(self._lock)
        return capture

    def _verify(self) -> None:
        """Live definition, persistent definition and headers must say the same before anybody builds on it."""
        live, inactive = parse_domain(self._guest.live_xml()), parse_domain(self._guest.inactive_xml())
        for plan in self._plans:
            problem = _misplaced(plan, self._survey.disk(plan.target), live, inactive)
            if problem is not None:
                self._undo(plan.target, problem)
        self._journal.set_layers([plan.path for plan in self._plans], LayerState.CHAINED)
        for disk in self._survey.disks:
            if not disk.lineage.own:
                self._journal.base_left(self._guest.uuid, disk.target, modified(disk.lineage.base.path))
        fence = Fence(self._journal, self._settings)
        for disk in self._survey.disks:
            fence.put_up(self._guest.uuid, disk.target, disk.lineage.base.path)
        if self._intent is not None:
            self._journal.done(self._intent, "taken")
            self._intent = None

    def _undo(self, target: str, problem: str) -> NoReturn:
        """Take the snapshot back at once: a definition that does not know the overlay loses data at the next boot."""
        made = {plan.path: plan.target for plan in self._plans}
        layers = [layer for layer in self._journal.layers(self._guest.uuid) if layer.file.path in made]
        try:
            for layer in layers:
                Committer(self._guest, self._journal, self._settings).pivot(layer.target, [layer])
        except RakshaError as error:
            detail = f"{problem}; taking it back failed: {error}"
            raise ChainUnexpected(vm=self.vm_name, disk=target, operation="the snapshot", detail=detail) from error
        raise CaptureFailed(vm=self.vm_name, detail=f"disk {target}: {problem}; the snapshot was taken back")

    def cancel(self) -> None:
        """Safe at any time before there is a capture: what the chain holds stays, what it does not is removed."""
        self._freezer.close()
        if self._offline is not None:
            self._offline.close()
        if self._intent is not None:
            try:
                reconcile(self._guest, self._journal, self._settings)
            except RakshaError as error:
                # The next run does it: the intent is still open.
                self._warnings.append(str(error))
            self._intent = None
        self._lock.release()


def _sectors(guest: Guest, target: str) -> int:
    """Bytes of the disk, in whole sectors."""
    return -(-guest.capacity(target) // _SECTOR) * _SECTOR


def _base(layer: Layer) -> Base:
    return Base(file_id(layer.path), layer.kind, layer.format, modified(layer.path))


def _chains(found: Survey) -> dict[str, list[str]]:
    return {disk.target: [layer.path for layer in disk.chain] for disk in found.disks}


def _snapshot_xml(plans: list[OverlayPlan], left_out: tuple[str, ...]) -> str:
    """Every disk is named: one that is not gets an overlay of libvirt's own choice."""
    root = etree.Element("domainsnapshot")
    disks = etree.SubElement(root, "disks")
    for plan in plans:
        disk = etree.SubElement(disks, "disk", name=plan.target, snapshot="external", type="file")
        etree.SubElement(disk, "driver", type="qcow2")
        etree.SubElement(disk, "source", file=plan.path)
    for target in left_out:
        etree.SubElement(disks, "disk", name=target, snapshot="no")
    return etree.tostring(root, encoding="unicode")


def _misplaced(plan: OverlayPlan, before: SurveyedDisk, live: Domain, inactive: Domain) -> str | None:
    now, then = live.disk(plan.target), inactive.disk(plan.target)
    expected = [plan.path, *(layer.path for layer in before.chain)]
    found = [layer.path for layer in now.layers] if now else []
    if len(found) != len(expected) or not all(map(same_file, found, expected)):
        return f"the running VM has {found}, expected {expected}"
    if then is None or not then.layers or then.top.path != found[0]:
        return f"the definition has {then.top.path if then and then.layers else 'nothing'}, expected {found[0]}"
    try:
        below = backing_of(Layer(plan.path, "file", "qcow2"))
        # it may have been grown after the last look before the snapshot: then the overlay cuts its end off
        size = size_of(before.chain[0])
    except ChainBroken as error:
        return str(error)
    if -(-size // _SECTOR) * _SECTOR != plan.size:
        return f"it was resized to {size} bytes while its snapshot was taken"
    if below is None or not same_file(below.path, plan.backing.path) or below.format != plan.backing.format:
        return f"{Path(plan.path).name} names {below} below it, expected {plan.backing.path}"
    return None
