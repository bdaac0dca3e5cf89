"""RESTORE: disks of a VM at a restore point, as a new VM (`domain`), as files (`files`), or over its own (`in_place`);
into a cloud (`server`, `volume`, `image`): see `restore_cloud`.

What is about to be made is told, and somebody has heard it, before anything is made. A restore that is claimed again is
done anew: what the last attempt left is recognised (`raksha.restore.leftovers`) and removed. The new VM's UUID follows
from the restore, so one that is there already is the result, not in the way.

Nothing is written but below the directories that the host allows (`[agent] restore_dirs`).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from raksha.agent import restore as local
from raksha.agent.announcing import announce
from raksha.agent.host import Host
from raksha.agent.in_place import InPlace
from raksha.agent.work import Work
from raksha.errors import BadArgument, RunNotFound, TargetUnusable, VmNotFound
from raksha.restore.disk import DiskResult
from raksha.states import Format
from raksha.tasks import CLOUD_KINDS, Restored, RestoreOrder
from raksha.vault.catalog import Catalog
from raksha.virt.libvirt.connection import Connection
from raksha.virt.libvirt.domain_xml import parse_domain


class Target(Struct, frozen=True, kw_only=True):
    """`RestoreOrder.target`. What else stands there is of no concern here."""

    #: `domain`, `files` or `in_place`
    kind: str
    #: of the new VM
    name: str | None = None
    #: None: a new one below the first that the host allows
    directory: str | None = None
    #: of files; None: as the VM had it
    format: Format | None = None
    start: bool = False


_DECODER = msgspec.json.Decoder(Target)


class RestoreTask:
    """One use."""

    def __init__(self, host: Host, work: Work, order: RestoreOrder) -> None:
        self._host = host
        self._work = work
        self._order = order

    def __call__(self) -> Restored:
        """Raises `BadArgument` for a target that cannot be, and what restores raise; then nothing of it is left."""
        if self._order.target.get("kind") in CLOUD_KINDS:
            return self._into_the_cloud()
        target = self._target()
        if target.kind == "in_place":
            with self._host.catalog(self._work) as catalog:
                return InPlace(self._host, self._work, self._order, self._announce)(catalog)
        self._work.progress.step("looking")
        identity = str(uuid.uuid5(uuid.UUID(self._order.restore), self._order.vm))
        if target.kind == "domain" and (made := self._made_before(identity)) is not None:
            return made
        with self._host.catalog(self._work) as catalog:
            return self._restore(catalog, target, identity)

    def _into_the_cloud(self) -> Restored:
        # only where there is a cloud: it takes a second to import
        from raksha.agent.restore_cloud import CloudRestore, CloudTarget

        try:
            target = msgspec.convert(self._order.target, CloudTarget)
        except msgspec.ValidationError as error:
            raise BadArgument(argument="target", detail=str(error)) from error
        return CloudRestore(self._host, self._work, self._order, target, self._announce)()

    def _target(self) -> Target:
        try:
            target = _DECODER.decode(msgspec.json.encode(self._order.target))
        except msgspec.DecodeError as error:
            raise BadArgument(argument="target", detail=str(error)) from error
        if target.kind not in ("domain", "files", "in_place"):
            raise BadArgument(argument="target", detail=f"{target.kind} is nothing that can be restored to")
        if target.kind == "domain" and not target.name:
            raise BadArgument(argument="target", detail="a new VM needs a name")
        return target

    def _restore(self, catalog: Catalog, target: Target, identity: str) -> Restored:
        order = self._order
        run = catalog.run(order.backupjob, order.backupjobrun)
        if run is None:
            raise RunNotFound(run=order.backupjobrun)
        into = self._directory(target)
        wanted_name = target.name if target.kind == "domain" else None
        wanted = local.RestoreOrder(
            vm=order.vm,
            disks=order.disks,
            new_name=wanted_name,
            into=into,
            format=target.format,
            start=target.start,
            identity=identity,
            before=lambda paths: self._announce(_planned(paths, wanted_name, identity)),
        )
        self._work.progress.step("restoring")
        uri, context = self._host.settings.libvirt_uri, self._host.context(self._work)
        made = local.restore(wanted, catalog, run, uri, context)
        return Restored(vm=made.uuid, name=made.vm, disks=tuple(map(_shown, made.disks)), warnings=made.warnings)

    def _directory(self, target: Target) -> Path:
        """Where files go; it is there. Raises `TargetUnusable` for one that the host does not allow."""
        allowed = self._host.restore_dirs()
        if target.directory is None:
            return self._own(allowed[0] / self._order.restore)
        wanted = Path(target.directory).resolve()
        if not any(wanted.is_relative_to(each.resolve()) for each in allowed):
            raise TargetUnusable(target=wanted, detail="the agent of this host may not write there (restore_dirs)")
        return wanted

    def _own(self, path: Path) -> Path:
        """QEMU, another user than we are, must get to its disks; nobody need see the others. A directory that somebody
        else owns is for VMs that somebody else runs."""
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid)
        return path

    def _made_before(self, identity: str) -> Restored | None:
        """The VM is defined last: when it is there, all of it is."""
        with closing(Connection(self._host.settings.libvirt_uri)) as connection:
            try:
                guest = connection.guest(identity)
            except VmNotFound:
                return None
            disks = [
                {"disk": disk.target, "path": disk.top.path, "size": guest.capacity(disk.target)}
                for disk in parse_domain(guest.inactive_xml()).disks
                if disk.layers and not disk.readonly
            ]
            return Restored(vm=guest.uuid, name=guest.name, disks=tuple(disks))

    def _announce(self, made: Sequence[dict[str, Any]]) -> None:
        announce(self._host, self._work, made)


def _planned(paths: Sequence[Path], name: str | None, identity: str) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = [{"kind": "file", "path": str(path)} for path in paths]
    return files if name is None else [*files, {"kind": "domain", "name": name, "uuid": identity}]


def _shown(disk: DiskResult) -> dict[str, Any]:
    return {"disk": disk.disk, "path": str(disk.target), "size": disk.size}
