"""Giving a VM back to its owner: all layers of ours merged into its own files, no file and no entry of ours left.

Active: commit and pivot, disk by disk. Shut off: `qemu-img commit` under QEMU's locks, then the definition is put back
on the VM's own file. An overlay below which the VM was restarted may hold the only copy of what was written into it:
it is left where it lies, and said so.
"""

from __future__ import annotations

from raksha.config import Settings
from raksha.errors import ChainUnexpected, DiskUnsupported, VmStarted
from raksha.journal import Journal, LayerState
from raksha.virt.libvirt import image
from raksha.virt.libvirt.chain import ChainBroken, follow, header, modified, same_file
from raksha.virt.libvirt.commit import Committer
from raksha.virt.libvirt.connection import Connection, Guest
from raksha.virt.libvirt.domain_xml import Disk, Layer, parse_domain
from raksha.virt.libvirt.fence import Fence
from raksha.virt.libvirt.lineage import Lineage, tell_apart
from raksha.virt.libvirt.own_source import own_sources
from raksha.virt.libvirt.recover import reconcile
from raksha.virt.libvirt.trash import Trash


class Release:
    """Releases one VM. The caller holds the VM's lock."""

    def __init__(self, connection: Connection, guest: Guest, journal: Journal, settings: Settings) -> None:
        self._connection = connection
        self._guest = guest
        self._journal = journal
        self._settings = settings
        self._trash = Trash(guest.uuid, guest.neighbours, journal, settings)

    def __call__(self) -> list[str]:
        """What was done and what was left, a line each; nothing if there was no trace of us.

        Raises `ForeignChain`, `VmBusy`, `VmStarted`, `CommitFailed`, `ChainUnexpected`, `ImageToolFailed`; disks that
        were released before stay released.
        """
        done = reconcile(self._guest, self._journal, self._settings)
        if self._journal.layers(self._guest.uuid):
            active = self._guest.is_active()
            domain = parse_domain(self._guest.live_xml() if active else self._guest.inactive_xml())
            for disk in domain.disks:
                if disk.layers and disk.top.format == "qcow2":
                    done += self._release(disk, active=active)
        done += Fence(self._journal, self._settings).lift_all(self._guest.uuid)
        done += self._trash.empty(everything=True)
        return done

    def _release(self, disk: Disk, *, active: bool) -> list[str]:
        lineage = self._lineage(disk, active=active)
        if not lineage.own:
            return []
        self._check(disk, lineage)
        left = (self._online if active else self._offline)(disk, lineage)
        return [f"{disk.target}: back on {lineage.base.path}; {len(lineage.own)} layer(s) merged", *left]

    def _lineage(self, disk: Disk, *, active: bool) -> Lineage:
        known = self._journal.layers(self._guest.uuid)
        try:
            chain = disk.layers if active else follow(disk.layers)
        except ChainBroken as error:
            raise DiskUnsupported(vm=self._guest.name, disk=disk.target, detail=error) from error
        return tell_apart(self._guest.name, disk.target, chain, known, same_file)

    def _check(self, disk: Disk, lineage: Lineage) -> None:
        for own in lineage.own:
            head = header(Layer(own.file.path, "file", "qcow2"))
            if head is not None and head.snapshots:
                detail = f"{own.file.path} holds an internal snapshot, which a merge would lose; delete it"
                raise DiskUnsupported(vm=self._guest.name, disk=disk.target, detail=detail)

    def _online(self, disk: Disk, lineage: Lineage) -> list[str]:
        return Committer(self._guest, self._journal, self._settings).pivot(disk.target, lineage.own)

    def _offline(self, disk: Disk, lineage: Lineage) -> list[str]:
        paths = [own.file.path for own in lineage.own]
        detail = {"layers": paths, "base": lineage.base.path}
        intent = self._journal.begin("offline commit", vm=self._guest.uuid, target=disk.target, detail=detail)
        self._journal.set_layers(paths, LayerState.MERGING)
        # The base as the chain itself spells it: qemu-img looks it up by that name.
        with Fence(self._journal, self._settings).lifted(self._guest.uuid, disk.target):
            base = follow((Layer(paths[0], "file", "qcow2"),))[len(paths)]
            image.commit(paths[0], base.path, self._settings.commit_timeout)
        self._journal.base_left(self._guest.uuid, disk.target, modified(lineage.base.path))
        self._redefine(disk.target, lineage)
        self._journal.set_layers(paths, LayerState.MERGED)
        left = [self._trash.put(own) for own in lineage.own]
        self._journal.done(intent, "merged")
        return [why for why in left if why is not None]

    def _redefine(self, target: str, lineage: Lineage) -> None:
        """Put the definition back. The layers still hold everything, so a start in between loses nothing."""
        before = self._guest.inactive_xml(secrets=True)
        self._connection.define(own_sources(before, {target: lineage.base}), self._guest.name)
        if self._runs_on(target, lineage.own[0].file.path):
            self._connection.define(before, self._guest.name)
            self._journal.set_layers([own.file.path for own in lineage.own], LayerState.CHAINED)
            raise VmStarted(vm=self._guest.name)
        now = parse_domain(self._guest.inactive_xml()).disk(target)
        if now is None or [layer.path for layer in now.layers] != [lineage.base.path]:
            detail = f"the definition has {[layer.path for layer in now.layers] if now else None}"
            raise ChainUnexpected(vm=self._guest.name, disk=target, operation="the release", detail=detail)

    def _runs_on(self, target: str, overlay: str) -> bool:
        """Whether the VM was started meanwhile, from the definition of before."""
        if not self._guest.is_active():
            return False
        disk = parse_domain(self._guest.live_xml()).disk(target)
        return disk is not None and any(same_file(layer.path, overlay) for layer in disk.layers)
