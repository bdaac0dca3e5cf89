"""The readable side of the engine `overlay`: frozen disks, how each has to be read, and what happens afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from raksha.config import Settings
from raksha.errors import CaptureFailed, LibvirtFailed, QuiesceFailed, RakshaError, VmBusy, VmStarted
from raksha.journal import Journal, LayerState, Lock, OwnLayer
from raksha.states import Consistency, Quiesce, ReadMode, Reason
from raksha.types import Extent
from raksha.virt.capture import BaseImage, CaptureReader, CaptureRequest, Tracker
from raksha.virt.libvirt import nbd
from raksha.virt.libvirt.chain import modified, same_file
from raksha.virt.libvirt.commit import Committer
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Layer, parse_domain
from raksha.virt.libvirt.extents import extents
from raksha.virt.libvirt.freeze import Freezer
from raksha.virt.libvirt.lineage import Decision, Lineage, decide
from raksha.virt.libvirt.locks import is_written
from raksha.virt.libvirt.machine import read_machine
from raksha.virt.libvirt.overlay_file import is_the_one
from raksha.virt.libvirt.recover import after_death
from raksha.virt.libvirt.space import SpaceWatch
from raksha.virt.libvirt.survey import OURS, Survey, SurveyedDisk
from raksha.virt.libvirt.trace import note_base, of_layer

#: from so many frozen layers of ours on, a failed run merges them into one
_MANY_LAYERS = 8

#: seconds that an event may be behind the answer to a call
_EVENT_DELAY = 0.05


class OfflineWatch:
    """Notices when a VM that is read while shut off was started, or its files written to."""

    def __init__(self, guest: Guest, found: Survey) -> None:
        """Raises `VmBusy` if it runs on another host, as far as the file system tells."""
        self._guest = guest
        # of a network disk nobody tells who has it open, or when it was written to last
        self._layers = [layer for disk in found.disks for layer in disk.chain if layer.kind in OURS]
        for layer in (disk.chain[0] for disk in found.disks):
            if layer in self._layers and is_written(layer.path) and not guest.is_active():
                raise VmBusy(vm=guest.name, detail=f"{layer.path} is being written to by a QEMU that is not known here")
        self._stack = ExitStack()
        self._started = self._stack.enter_context(guest.start_events())
        self._before = stamps(self._layers)

    def check(self) -> None:
        """Raises `VmStarted`."""
        if self._guest.is_active() or self._started.wait(_EVENT_DELAY) or stamps(self._layers) != self._before:
            raise VmStarted(vm=self._guest.name)

    def close(self) -> None:
        self._stack.close()


def stamps(layers: list[Layer]) -> list[tuple[int, int, int | None]]:
    """What changes when a file is replaced or written to."""
    status = [(Path(layer.path).stat(), modified(layer.path)) for layer in layers]
    return [(each.st_ino, each.st_size, written) for each, written in status]


class OverlayDisk:
    """One frozen disk."""

    def __init__(
        self, disk: SurveyedDisk, server: nbd.Server, decision: Decision, parent: str | None, tracker: Tracker | None
    ) -> None:
        self.target = disk.target
        self.size = server.size
        self.mode = decision.mode
        self.reason = decision.reason
        self.parent = parent if decision.mode is not ReadMode.FULL else None
        self.base_image = base_image_of(disk.lineage)
        self.facts = facts_of(disk)
        self.tracker = tracker
        self._server = server
        self._depth = decision.depth if decision.mode is ReadMode.DELTA else None

    def open(self) -> CaptureReader:
        return nbd.Reader(self._server)

    def extents(self) -> Iterator[Extent]:
        return extents(self._server, self._depth)


def base_image_of(lineage: Lineage) -> BaseImage | None:
    if len(lineage.below) < 2:
        return None
    bottom = lineage.below[-1]
    status = Path(bottom.path).stat()
    return BaseImage(bottom.path, status.st_size, status.st_mtime_ns)


def facts_of(disk: SurveyedDisk) -> Mapping[str, str | int | None]:
    base = disk.lineage.base
    driver = dict(disk.disk.driver)
    return {
        "format": base.format,
        "kind": base.kind,
        "source": base.path,
        "bus": disk.disk.bus,
        "serial": disk.disk.serial,
        "cache": driver.get("cache"),
        "discard": driver.get("discard"),
    }


class OverlayCapture:
    """All disks of one VM at one instant."""

    engine = "overlay"

    def __init__(
        self,
        guest: Guest,
        request: CaptureRequest,
        found: Survey,
        freezer: Freezer,
        journal: Journal,
        settings: Settings,
        *,
        offline: OfflineWatch | None,
        taken_at: float,
        definition: str,
        warnings: list[str],
        give_back: Callable[[], list[str]] | None = None,
    ) -> None:
        """`give_back`: of a VM that must keep no overlay, called as soon as everything is read: merges them all."""
        self._guest = guest
        self._request = request
        self._survey = found
        self._journal = journal
        self._settings = settings
        self._offline = offline
        self._give_back = give_back if offline is None else None
        self._keeps_none = give_back is not None
        self._warnings = [*warnings, *freezer.warnings]
        self._lock: Lock | None = None
        self._servers = ExitStack()
        self.taken_at = taken_at
        self.frozen_seconds = freezer.seconds
        self.consistency = consistency_of(found.power, guest, held=freezer.held)
        if request.quiesce is Quiesce.REQUIRE and found.active and not freezer.held:
            raise QuiesceFailed(vm=guest.name, detail="the freeze did not hold until the snapshot")
        # The layers below the new overlay must not change while they are read.
        self._frozen = [] if offline else [layer for disk in found.disks for layer in disk.chain]
        self._stamps = stamps(self._frozen)
        self.machine = read_machine(guest, definition, found.inactive, found.power)
        self._space = SpaceWatch(guest, journal, settings, {} if offline else self._overlays(), self._servers.close)
        try:
            self.disks = [self._open(disk) for disk in found.disks]
        except BaseException:
            self._servers.close()
            raise
        if offline is None:
            self._space.start()

    def take_over(self, lock: Lock) -> None:
        """From now on the capture holds the VM."""
        self._lock = lock

    def _open(self, disk: SurveyedDisk) -> OverlayDisk:
        connections = 2 * self._settings.workers + 4
        server = nbd.Server(
            self._guest.name,
            disk.target,
            disk.chain,
            share=self._offline is not None,
            connections=connections,
            # A VM that is started writes under our reading, or the run was given up: that is no damage.
            explain=self._offline.check if self._offline else self._space.check,
        )
        self._servers.callback(server.close)
        parent = self._request.since.get(disk.target)
        decision = decide(
            disk.lineage.own,
            parent,
            server.size,
            full_reason=self._request.full_reason,
            replaced=_replaced(disk.lineage),
            distrust=_distrust(disk.lineage, offline=self._offline is not None),
        )
        return OverlayDisk(disk, server, decision, parent.backupjobrun if parent else None, self._tracker(disk))

    def _tracker(self, disk: SurveyedDisk) -> Tracker | None:
        """What counts from this run: its own overlay, or the one that a VM that is shut off will go on with."""
        if self._keeps_none:
            return None
        own = disk.lineage.own if self._offline else self._made(disk.target)
        return of_layer(own[0]) if own else None

    def _made(self, target: str) -> list[OwnLayer]:
        """The newest first: an earlier attempt at this run may have left one."""
        layers = self._journal.layers(self._guest.uuid)[::-1]
        return [each for each in layers if (each.run, each.target) == (self._request.backupjobrun, target)]

    def _overlays(self) -> dict[str, str]:
        """Those of this run, by target."""
        layers = self._journal.layers(self._guest.uuid)
        return {layer.target: layer.file.path for layer in layers if layer.run == self._request.backupjobrun}

    def check(self) -> None:
        self._check()
        self._return()

    def _check(self) -> None:
        self._space.check()
        if self._offline is not None:
            self._offline.check()
            # The top layer holds everything since earlier runs, so everything since this one, too. Noted before the run
            # is a restore point: if we die in between, it must count from there.
            for disk in self._survey.disks:
                if disk.lineage.own:
                    self._journal.count_from(disk.lineage.own[0].file.path, [self._request.backupjobrun])
            return
        if self._written():
            raise CaptureFailed(vm=self._guest.name, detail="a frozen layer was written to while it was read")
        if self._left_host():
            return
        domain = parse_domain(self._guest.live_xml() if self._guest.is_active() else self._guest.inactive_xml())
        for disk in self._survey.disks:
            now = domain.disk(disk.target)
            paths = [layer.path for layer in now.layers] if now else []
            if not any(same_file(path, disk.chain[0].path) for path in paths):
                detail = f"the chain of {disk.target} was changed while it was read"
                raise CaptureFailed(vm=self._guest.name, detail=detail)

    def _written(self) -> bool:
        try:
            return stamps(self._frozen) != self._stamps
        except OSError as error:
            detail = f"a frozen layer is gone: {error}"
            raise CaptureFailed(vm=self._guest.name, detail=detail) from error

    def _left_host(self) -> bool:
        """Whether the VM was migrated away, or deleted. What was frozen is as good as before: nobody wrote to it."""
        try:
            self._guest.is_active()
        except LibvirtFailed:
            return all(guest.uuid != self._guest.uuid for guest in self._guest.neighbours())
        return False

    def _return(self) -> None:
        """Everything is read, or nothing more will be: a VM that must keep no overlay gets rid of its own."""
        if self._give_back is None:
            return
        self._close()
        try:
            self._give_back()
        except (RakshaError, OSError) as error:  # tried again at the end of the run, and by recovery
            self._warnings.append(f"an overlay is still there: {error}")
        else:
            self._give_back = None

    def finish(self) -> list[str]:
        self._close()
        if self._keeps_none:
            try:
                self._return()
            finally:
                self._unlock()
            return self._warnings
        try:
            if self._offline is None and self._left_host():
                self._warnings.append(f"{self._guest.name} has left this host; where it is now, the next run goes on")
                return self._warnings
            failed = False
            for disk in self._survey.disks:
                try:
                    self._warnings += self._advance(disk)
                except (RakshaError, OSError) as error:
                    failed = True
                    self._warnings.append(str(error))
            if failed:
                self._warnings += after_death(self._guest, self._journal, self._settings)
        except LibvirtFailed as error:
            self._warnings.append(str(error))
        finally:
            try:
                self._leave_notes()
            finally:
                self._unlock()
        return self._warnings

    def _leave_notes(self) -> None:
        """For a host that the VM may move to."""
        for layer in self._journal.layers(self._guest.uuid):
            if layer.state is LayerState.CHAINED and is_the_one(layer.file, layer.run):
                note_base(layer)

    def _advance(self, disk: SurveyedDisk) -> list[str]:
        own = disk.lineage.own
        if not own or self._offline is not None or self._space.tripped or not self._guest.is_active():
            return []  # a later run merges them: until then they are simply part of the chain
        return Committer(self._guest, self._journal, self._settings).merge(disk.target, own, self._request.backupjobrun)

    def abandon(self) -> None:
        self._close()
        try:
            if self._keeps_none:
                self._return()
                return
            for disk in self._survey.disks:
                self._thin_out(disk)
        finally:
            self._unlock()

    def let_go(self) -> None:
        self._close()
        try:
            self._return()
        finally:
            self._unlock()

    def _thin_out(self, disk: SurveyedDisk) -> None:
        """A vault that is away for long must not make chains grow for ever: merge into the oldest layer of ours.

        That one then counts from all their runs, since it holds more than each of them asks for.
        """
        own = disk.lineage.own
        if len(own) < _MANY_LAYERS or self._offline is not None or self._space.tripped:
            return
        with suppress(RakshaError, OSError):  # it was one more attempt; the layers stay as they are
            if self._guest.is_active():
                self._journal.count_from(own[-1].file.path, {run for layer in own for run in layer.counts_from})
                Committer(self._guest, self._journal, self._settings).merge(disk.target, own[:-1])

    def _close(self) -> None:
        self._space.stop()
        self._servers.close()
        if self._offline is not None:
            self._offline.close()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def consistency_of(power: str, guest: Guest, *, held: bool) -> Consistency:
    """Asked after the snapshot. `power`: before it; a paused guest that was resumed since may have written."""
    if power == "shut off":
        return Consistency.OFFLINE
    if power == "paused" and guest.power() == "paused":
        return Consistency.PAUSED
    return Consistency.QUIESCED if held else Consistency.CRASH


def _replaced(lineage: Lineage) -> bool:
    """Whether the VM's own file is another one than our layers were made on, or our layers were copied."""
    base = lineage.base
    inode = Path(base.path).stat().st_ino
    made_on: list[OwnLayer] = list(lineage.own or lineage.orphans)
    if any(not same_file(own.base.file.path, base.path) for own in made_on):
        return True
    if base.kind == "file" and any(own.base.file.inode != inode for own in made_on):
        return True
    return any(Path(own.file.path).stat().st_ino != own.file.inode for own in lineage.own)


def _distrust(lineage: Lineage, *, offline: bool) -> Reason | None:
    """Why our layers say nothing about changes; None: they do."""
    if lineage.own:
        left = lineage.own[-1].base.modified
        written = left is not None and left != modified(lineage.base.path)
        return Reason.BASE_WRITTEN if written else None
    if lineage.orphans:
        return Reason.RESTARTED_BELOW
    return Reason.SHUT_OFF if offline else Reason.NO_TRACKER
