"""Brings a VM, the journal and our files into line, before anything new is done to the VM.

::

    while there is something urgent:
        observe      what is so: definitions, headers, processes, jobs        (observe.py)
        decide       a pure function of that and of what was begun            (decide.py)
        do           thaw, end a job, take an overlay back, put a definition right
    then             journal, files, fences, trash

Where neither going on nor undoing is proven safe it raises `NeedsAttention`, and everything stays where it is.
Not promised: that it ends soon. A merge that is under way is waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from raksha.config import Settings
from raksha.errors import CommitFailed, DefinitionsDisagree, LibvirtFailed, RakshaError, RecoveryUnsettled, VmBusy
from raksha.journal import FileId, Journal, LayerState, OwnLayer
from raksha.virt.capture import CaptureRequest
from raksha.virt.libvirt import image, overlay_file
from raksha.virt.libvirt.chain import modified, relative_name
from raksha.virt.libvirt.commit import Committer
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.decide import Action, Do, Plan, decide
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.fence import Fence
from raksha.virt.libvirt.observe import Seen, observe
from raksha.virt.libvirt.own_source import own_sources
from raksha.virt.libvirt.pull_recover import reconcile_pull
from raksha.virt.libvirt.trash import Trash

#: each round ends what the one before has uncovered; more than these are a sign of somebody else at work
_ROUNDS = 6


def look(guest: Guest, journal: Journal) -> tuple[Seen, Plan]:
    """What is seen, and what would be done about it first. Changes nothing."""
    seen = observe(guest, journal)
    return seen, decide(seen, journal.open_intents(guest.uuid))


def reconcile(guest: Guest, journal: Journal, settings: Settings) -> list[str]:
    """Returns what a person should know. The caller holds the VM's lock.

    Raises `NeedsAttention` errors, `VmBusy` when a merge of ours is still going on and does not end in time,
    `CommitFailed`, `LibvirtFailed`.
    """
    # A backup job in the way of block jobs, if a process of ours was killed during one.
    reconcile_pull(guest, journal)
    recovery = _Recovery(guest, journal, settings)
    for number in range(_ROUNDS):
        seen, plan = look(guest, journal)
        changes = [action for action in plan.urgent if number == 0 or action.do is not Do.THAW]
        for action in changes:
            recovery.do(action, seen)
        if plan.troubles:
            raise plan.troubles[0]
        if all(action.do is Do.THAW for action in changes):
            for action in plan.actions:
                if action not in plan.urgent:
                    recovery.do(action, seen)
            return [*recovery.notes, *plan.notes, *recovery.tidy(seen)]
    raise RecoveryUnsettled(vm=guest.name, rounds=_ROUNDS, detail="; ".join(sorted({each.do for each in changes})))


def after_death(guest: Guest, journal: Journal, settings: Settings) -> list[str]:
    """What died with its QEMU is put right before the owner starts the VM again, if he leaves us the time.

    Never raises: the next command does what could not be done now. Returns what a person should know.
    """
    try:
        return [] if guest.is_active() else reconcile(guest, journal, settings)
    except (RakshaError, OSError) as error:
        return [str(error)]


def adopted(guest: Guest, journal: Journal, settings: Settings, request: CaptureRequest) -> list[str]:
    """For a VM whose chain holds an overlay that the journal does not know: take over what the vault proves to be ours.

    Returns what a person should know. Raises what `adopt_layers` and `reconcile` do.
    """
    from raksha.virt.libvirt.adopt import adopt_layers  # for the few VMs that have moved

    if not (told := adopt_layers(guest, journal, request)):
        return []
    return [*told, *reconcile(guest, journal, settings)]


class _Recovery:
    """Carries actions out, one method each."""

    def __init__(self, guest: Guest, journal: Journal, settings: Settings) -> None:
        self._guest = guest
        self._journal = journal
        self._settings = settings
        self._committer = Committer(guest, journal, settings)
        self._trash = Trash(guest.uuid, guest.neighbours, journal, settings)
        self.notes: list[str] = []
        self._means: dict[Do, Callable[[Action, Seen], None]] = {
            Do.THAW: self._thaw,
            Do.AWAIT_JOB: self._await_job,
            Do.END_PIVOT: self._end_pivot,
            Do.TAKE_BACK: self._take_back,
            Do.RELIEVE: self._relieve,
            Do.RESUME: self._resume,
            Do.REDEFINE: self._redefine,
            Do.PUT_BACK: self._put_back,
            Do.ADOPT: self._adopt,
            Do.DOUBT: self._doubt,
            Do.FORGET: self._forget,
            Do.DISCARD: self._discard,
            Do.ORPHAN: self._orphan,
            Do.SWEEP: self._sweep,
            Do.CLOSE: self._close,
        }

    def do(self, action: Action, seen: Seen) -> None:
        self._means[action.do](action, seen)

    def tidy(self, seen: Seen) -> list[str]:
        """Fences that nothing needs, and trash whose time has come."""
        fence = Fence(self._journal, self._settings)
        return [*fence.settle(seen), *self._trash.empty()]

    # -- what changes the VM ------------------------------------------------------------------------

    def _thaw(self, _action: Action, _seen: Seen) -> None:
        # The watchdog has thawed, unless the whole host went down. Thawing what is not frozen does no harm.
        with suppress(LibvirtFailed):
            self._guest.fs_thaw()

    def _await_job(self, action: Action, _seen: Seen) -> None:
        target = action.target or ""
        with self._guest.job_events(target) as events:
            if self._guest.block_job(target) is None:
                return
            if events.wait(self._settings.commit_timeout) is None:
                raise VmBusy(vm=self._guest.name, detail=f"an earlier merge of disk {target} has not ended yet")

    def _end_pivot(self, action: Action, _seen: Seen) -> None:
        with suppress(LibvirtFailed):  # it may have ended by itself; the next look tells
            self._committer.end_pivot(action.target or "")

    def _take_back(self, action: Action, seen: Seen) -> None:
        target = action.target or ""
        try:
            self._committer.pivot(target, self._layers(action))
        except (CommitFailed, LibvirtFailed) as error:
            disk = next(disk for disk in seen.disks if disk.target == target)
            raise DefinitionsDisagree(
                vm=self._guest.name,
                disk=target,
                detail=f"its definition does not name the overlay it runs on, and merging that failed: {error}",
                live=disk.live[0].path,
                inactive=disk.inactive[0].path,
            ) from error
        self.notes.append(f"disk {target}: its definition did not name the overlay, which was merged into it")

    def _relieve(self, action: Action, _seen: Seen) -> None:
        # Not to the trash, which would lie on the file system that is full.
        committer = Committer(self._guest, self._journal, replace(self._settings, trash_hours=0))
        committer.pivot(action.target or "", self._layers(action))
        self.notes.append(f"disk {action.target}: its overlay had no space left and was merged back")

    def _resume(self, _action: Action, _seen: Seen) -> None:
        self._guest.resume()
        self.notes.append("the guest stood still for want of space beside an overlay; it runs again")

    def _redefine(self, action: Action, seen: Seen) -> None:
        chain = {file.path: file for disk in seen.disks for file in (*disk.live, *disk.inactive)}
        path = action.paths[0]
        top = chain.get(path)
        layer = Layer(path, top.kind, top.format) if top else Layer(path, "file", "qcow2")
        target = action.target or ""
        intent = self._journal.begin("redefine", vm=self._guest.uuid, target=target, detail={"chain": action.paths})
        self._guest.redefine(own_sources(self._guest.inactive_xml(secrets=True), {target: layer}))
        self._journal.done(intent, "defined")
        self.notes.append(f"disk {target}: the definition names {path} again, which holds what the VM wrote last")

    def _put_back(self, action: Action, seen: Seen) -> None:
        above, top = action.paths
        target = action.target or ""
        detail = {"above": above, "layer": top}
        intent = self._journal.begin("put back", vm=self._guest.uuid, target=target, detail=detail)
        # The definition first: it may spell out the chain without the layer, and would go on past what the header says.
        disk = next(disk for disk in seen.disks if disk.target == target)
        first = Layer(disk.inactive[0].path, disk.inactive[0].kind, disk.inactive[0].format)
        self._guest.redefine(own_sources(self._guest.inactive_xml(secrets=True), {target: first}))
        # under QEMU's locks: it fails if the VM was started meanwhile
        image.rebase(above, relative_name(above, top) or top)
        self._journal.done(intent, "put back")
        self.notes.append(f"disk {action.target}: QEMU died while it merged {top}, which is part of the chain again")

    # -- journal and files --------------------------------------------------------------------------

    def _adopt(self, action: Action, _seen: Seen) -> None:
        for layer in self._layers(action):
            alone = [own.target for own in self._journal.layers(layer.vm)].count(layer.target) == 1
            if layer.state is LayerState.MERGING or alone:
                with suppress(OSError):
                    self._journal.base_left(layer.vm, layer.target, modified(layer.base.file.path))
        self._journal.set_layers(action.paths, LayerState.CHAINED)

    def _doubt(self, action: Action, _seen: Seen) -> None:
        layers = self._layers(action)
        # first: whoever dies here leaves one that counts from nothing
        self._journal.orphan_layers(action.paths)
        for layer in layers:
            with suppress(OSError):
                self._journal.base_left(layer.vm, layer.target, modified(layer.base.file.path))
        self._journal.set_layers(action.paths, LayerState.CHAINED)

    def _forget(self, action: Action, _seen: Seen) -> None:
        self._journal.forget_layers(action.paths)

    def _discard(self, action: Action, _seen: Seen) -> None:
        for layer in self._layers(action):
            if layer.state is LayerState.MERGING:
                with suppress(OSError):
                    self._journal.base_left(layer.vm, layer.target, modified(layer.base.file.path))
            if (why := self._trash.put(layer)) is not None:
                self.notes.append(why)

    def _orphan(self, action: Action, _seen: Seen) -> None:
        self._journal.orphan_layers(action.paths)

    def _sweep(self, action: Action, seen: Seen) -> None:
        runs = {stray.path: stray.run for stray in seen.strays}
        for path in action.paths:
            if (why := overlay_file.remove(FileId(path, 0, 0), runs[path])) is not None:
                self.notes.append(why)

    def _close(self, action: Action, _seen: Seen) -> None:
        if action.intent is not None:
            self._journal.done(action.intent.id, "recovered")

    def _layers(self, action: Action) -> list[OwnLayer]:
        known = {layer.file.path: layer for layer in self._journal.layers(self._guest.uuid)}
        return [known[path] for path in action.paths if Path(path).exists()]
