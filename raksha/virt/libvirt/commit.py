"""Merging our own layers back: the only module that starts block jobs.

Never a NULL base: both ends are named by libvirt's index, so only layers of ours are merged, and only into the VM's own
file or into an older layer of ours. What an event says is never trusted: afterwards the live definition, the persistent
one and the headers must agree, and only then is a merged layer deleted.
"""

from __future__ import annotations

from collections.abc import Sequence

from raksha.config import Settings
from raksha.errors import ChainUnexpected, CommitFailed, VmBusy
from raksha.journal import Journal, LayerState, OwnLayer
from raksha.virt.libvirt import overlay_file
from raksha.virt.libvirt.chain import ChainBroken, follow, modified, relative_name, same_file
from raksha.virt.libvirt.connection import JOB_COMPLETED, JOB_READY, Guest
from raksha.virt.libvirt.domain_xml import Disk, Layer, parse_domain
from raksha.virt.libvirt.fence import Fence
from raksha.virt.libvirt.processes import qemu_of
from raksha.virt.libvirt.trash import Trash

#: seconds for libvirt to end a job that was told to
_END = 60.0


class Committer:
    """Merges layers of one VM. Errors: `LibvirtFailed`, `CommitFailed` (layers stay), `ChainUnexpected`."""

    def __init__(self, guest: Guest, journal: Journal, settings: Settings) -> None:
        self._guest = guest
        self._journal = journal
        self._settings = settings
        self._fence = Fence(journal, settings)
        self._trash = Trash(guest.uuid, guest.neighbours, journal, settings)

    def merge(self, target: str, layers: Sequence[OwnLayer], run: str | None = None) -> list[str]:
        """Merge frozen layers, newest first, into what lies below the oldest. The VM must be active.

        Returns warnings about files that were left.
        """
        disk = self._disk(target)
        top, below = self._ends(disk, layers)
        if top is disk.top:
            raise self._unexpected(target, f"{top.path} is the active layer")
        # Our headers name what lies below them relatively where they can: so must the one that is rewritten.
        first, last = disk.layers.index(top) - 1, disk.layers.index(below)
        relative = all(relative_name(layer.path, below.path) for layer in disk.layers[first:last])
        intent = self._intend("commit", target, layers, run)
        with self._fence.lifted(self._guest.uuid, target), self._guest.job_events(target) as events:
            self._guest.commit(target, f"{target}[{below.index}]", f"{target}[{top.index}]", relative=relative)
            status = events.wait(self._settings.commit_timeout)
        if status is None:
            self._guest.abort_job(target)
        return self._settle(intent, disk, layers, done=status == JOB_COMPLETED)

    def pivot(self, target: str, layers: Sequence[OwnLayer]) -> list[str]:
        """Merge all layers of ours, the active one included, and let the VM go on without them."""
        disk = self._disk(target)
        top, below = self._ends(disk, layers)
        if disk.top is not top:
            raise self._unexpected(target, f"{disk.top.path} is the active layer")
        intent = self._intend("pivot", target, layers, None)
        with self._fence.lifted(self._guest.uuid, target), self._guest.job_events(target) as events:
            self._guest.commit(target, f"{target}[{below.index}]", f"{target}[{top.index}]", active=True)
            status = events.wait(self._settings.commit_timeout, ready=True)
            if status is None:
                # Not broken off: see `decide`. The intent stays open, so the next command ends it.
                detail = f"it is not done after {self._settings.commit_timeout:g} s, and goes on"
                raise CommitFailed(vm=self._guest.name, disk=target, detail=detail)
            if status == JOB_READY:
                self._guest.pivot(target)
                status = events.wait(_END)
        return self._settle(intent, disk, layers, done=status == JOB_COMPLETED)

    def end_pivot(self, target: str) -> None:
        """Pivot where the merge is under way already; the next look tells what became of it. Raises `VmBusy`."""
        with self._fence.lifted(self._guest.uuid, target), self._guest.job_events(target) as events:
            if self._guest.block_job(target) is None:
                return
            status = events.wait(self._settings.commit_timeout, ready=True)
            if status == JOB_READY:
                self._guest.pivot(target)
                status = events.wait(_END)
            if status is None:
                raise VmBusy(vm=self._guest.name, detail=f"an earlier merge of disk {target} has not ended yet")

    def _intend(self, operation: str, target: str, layers: Sequence[OwnLayer], run: str | None) -> int:
        paths = [layer.file.path for layer in layers]
        process = next((each.identity for each in qemu_of(self._guest.uuid)), None)
        detail = {"layers": paths, "process": process}
        intent = self._journal.begin(operation, run=run, vm=self._guest.uuid, target=target, detail=detail)
        self._journal.set_layers(paths, LayerState.MERGING)
        return intent

    def _disk(self, target: str) -> Disk:
        disk = parse_domain(self._guest.live_xml()).disk(target)
        if disk is None or not disk.layers:
            raise self._unexpected(target, "the disk is gone from the running VM")
        return disk

    def _ends(self, disk: Disk, layers: Sequence[OwnLayer]) -> tuple[Layer, Layer]:
        """Our newest layer to merge, and what lies below our oldest. The chain must hold them in this order."""
        places = [
            next((n for n, layer in enumerate(disk.layers) if same_file(layer.path, own.file.path)), -1)
            for own in layers
        ]
        first = places[0]
        if first < 0 or places != list(range(first, first + len(layers))) or places[-1] + 1 >= len(disk.layers):
            found = [layer.path for layer in disk.layers]
            raise self._unexpected(disk.target, f"our layers are not where they were; it has {found}")
        return disk.layers[first], disk.layers[places[-1] + 1]

    def _unexpected(self, target: str, detail: str) -> ChainUnexpected:
        return ChainUnexpected(vm=self._guest.name, disk=target, operation="the last backup", detail=detail)

    def _settle(self, intent: int, before: Disk, layers: Sequence[OwnLayer], *, done: bool) -> list[str]:
        """See what became of it, note that, and delete what is merged."""
        merged = {own.file.path for own in layers}
        expected = [layer.path for layer in before.layers if not any(same_file(layer.path, path) for path in merged)]
        self._journal.base_left(self._guest.uuid, before.target, modified(layers[-1].base.file.path))
        problem = self._difference(before.target, expected)
        if problem is not None and done:
            # What became of the layers is for the next recovery to find out, so the intent stays open.
            raise ChainUnexpected(vm=self._guest.name, disk=before.target, operation="a block commit", detail=problem)
        if problem is not None:
            self._journal.set_layers(merged, LayerState.CHAINED)
            self._journal.done(intent, f"not done: {problem}")
            raise CommitFailed(vm=self._guest.name, disk=before.target, detail=problem)
        self._journal.set_layers(merged, LayerState.MERGED)
        left = [self._trash.put(own) for own in layers]
        self._journal.done(intent, "merged")
        return [why for why in left if why is not None]

    def _difference(self, target: str, expected: list[str]) -> str | None:
        """Where live definition, persistent definition or headers differ from the expected chain."""
        live = parse_domain(self._guest.live_xml()).disk(target)
        found = [layer.path for layer in live.layers] if live is not None else []
        if len(found) != len(expected) or not all(map(same_file, found, expected)):
            return f"the running VM has {found}, expected {expected}"
        inactive = parse_domain(self._guest.inactive_xml()).disk(target)
        stated = [layer.path for layer in inactive.layers] if inactive is not None else []
        # libvirt keeps the definition up with an overlay only where both spell it alike.
        spelt_alike = bool(stated) and (stated[0] == found[0] or not overlay_file.is_our_name(found[0]))
        if not spelt_alike or not all(map(same_file, stated, expected)):
            return f"the definition has {stated}, expected {expected}"
        if live is None or live.top.format == "raw":
            return None
        try:
            named = [layer.path for layer in follow(live.layers[:1])]
        except ChainBroken as error:
            return str(error)
        if len(named) != len(expected) or not all(map(same_file, named, expected)):
            return f"the headers name {named}, expected {expected}"
        return None
