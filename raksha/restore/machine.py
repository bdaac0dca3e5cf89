"""A VM at a restore point as a new libvirt domain: new name, UUID and MAC addresses, disks where the user says.

::

    is the name free? plan the definition, the targets, the room
    restore all disks                                  (`disk`: all or none)
    UEFI variables, state of an emulated TPM
    define                                             the VM exists when all of it exists
    start, if asked

Until `define` succeeded an error leaves neither a domain nor a file. A VM that was restored whole but does not start
(its network is not active, say) stays: the result tells why.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct, field

from raksha import crash
from raksha.errors import BadName, LibvirtFailed, TargetUnusable
from raksha.restore.base import Base
from raksha.restore.context import Context
from raksha.restore.device import BlockDevice
from raksha.restore.disk import DiskJob, DiskResult, restore_disks
from raksha.restore.files import PartFile
from raksha.restore.source import DiskSource
from raksha.restore.targets import Qcow2File, RawFile
from raksha.restore.thin import ThinJob, ThinResult, thin_job
from raksha.restore.tpm import put_tpm_state, tpm_directory
from raksha.states import Format
from raksha.virt.libvirt.connection import Connection, Guest
from raksha.virt.libvirt.define import NewDisk, PlannedDomain, check_name, define, plan_domain

_NAME = re.compile(r"[^/\x00-\x1f]{1,200}")
#: name under which a capture stores the state of an emulated TPM
_TPM_STATE = "tpm.tar"


class Placement(Struct, frozen=True):
    """A disk of the new VM and where it goes."""

    source: DiskSource
    #: absolute: a new file, or a block device that is there
    path: Path
    format: Format = Format.QCOW2
    #: `path` is a block device, to be overwritten; then the format is raw
    device: bool = False
    #: restore only what this image does not have; then the format is qcow2
    base: Base | None = None


class MachineOrder(Struct, frozen=True):
    """What to make."""

    #: of the new VM
    name: str
    #: persistent definition at the capture
    domain_xml: str
    disks: Sequence[Placement]
    #: UEFI variables at the capture, and where the new VM has them; None: libvirt makes them anew
    nvram: bytes | None = None
    nvram_path: Path | None = None
    #: further files of the capture by their short names
    files: Mapping[str, bytes] = field(default_factory=dict)
    start: bool = False
    #: UUID of the new VM; None: any
    identity: str | None = None


class RestoredMachine(Struct, frozen=True):
    """A VM that is there."""

    name: str
    uuid: str
    disks: Sequence[DiskResult]
    #: by disk, those that were restored thin
    thin: Mapping[str, ThinResult]
    #: what is not as it was, for a person
    warnings: Sequence[str]
    started: bool
    #: why it does not run although that was asked for
    start_error: str | None = None


def restore_machine(connection: Connection, order: MachineOrder, context: Context) -> RestoredMachine:
    """Make the VM. Raises as `restore_disks` does, `TargetExists` for a name or file that is taken, `LibvirtFailed`."""
    _check_name(order.name)
    check_name(connection, order.name)
    plan = _plan(order)
    with ExitStack() as stack:
        jobs, thin = disk_jobs(order.disks, context, stack, plan.uuid)
        results = restore_disks(jobs, context, settle=False)
        with ExitStack() as undo:
            for job in jobs:
                undo.callback(job.target.discard)
            nvram = _put_files(connection.uri, order, plan, undo)
            context.check()
            guest = define(connection, plan)
            undo.pop_all()
        for job in jobs:
            job.target.settle()
        for file in nvram:
            file.settle()
        compared = {each.disk: thin[each.disk].result(each) for each in results if each.disk in thin}
    started, start_error = _start(guest) if order.start else (False, None)
    return RestoredMachine(order.name, plan.uuid, results, compared, plan.warnings, started, start_error)


def _plan(order: MachineOrder) -> PlannedDomain:
    if order.nvram is not None and order.nvram_path is None:
        raise TargetUnusable(target=f"VM {order.name}", detail="its UEFI variables have no place")
    disks = {
        each.source.disk: NewDisk(str(each.path), each.format.value, "block" if each.device else "file")
        for each in order.disks
    }
    nvram = str(order.nvram_path) if order.nvram is not None else None
    return plan_domain(order.domain_xml, order.name, disks, nvram, identity=order.identity)


def disk_jobs(
    disks: Sequence[Placement], context: Context, stack: ExitStack, vm: str = ""
) -> tuple[list[DiskJob], dict[str, ThinJob]]:
    """What `restore_disks` is to do, valid until `stack` ends; and by disk, what compares with a base.

    `vm`: UUID of the new VM, if there is to be one.
    """
    thin = {each.source.disk: _thin(each, each.base, context, stack, vm) for each in disks if each.base}
    return [thin[each.source.disk].job if each.base else _job(each, vm) for each in disks], thin


def _job(each: Placement, vm: str) -> DiskJob:
    if each.device:
        return DiskJob(each.source, BlockDevice(each.path))
    raw = each.format is Format.RAW
    return DiskJob(each.source, RawFile(each.path, vm) if raw else Qcow2File(each.path, vm=vm))


def _thin(each: Placement, base: Base, context: Context, stack: ExitStack, vm: str) -> ThinJob:
    return stack.enter_context(thin_job(each.source, each.path, base, context, vm))


def _put_files(uri: str, order: MachineOrder, plan: PlannedDomain, undo: ExitStack) -> list[PartFile]:
    """What a VM has besides disks; `undo` takes it back. Returns what is to be settled when the VM is there."""
    made = []
    if order.nvram is not None and order.nvram_path is not None:
        nvram = PartFile(order.nvram_path, plan.uuid)
        undo.callback(nvram.discard)
        nvram.write([order.nvram], 0)
        nvram.publish()
        made.append(nvram)
    if _TPM_STATE in order.files:
        directory = tpm_directory(uri, plan.uuid)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        with crash.around("restore.tpm"):
            put_tpm_state(order.files[_TPM_STATE], directory)
    return made


def _start(guest: Guest) -> tuple[bool, str | None]:
    try:
        guest.start()
    except LibvirtFailed as error:
        return False, str(error)
    return True, None


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise BadName(name=name, noun="a VM", detail="it is part of file names: no '/', no '.' in front, at most 200")
