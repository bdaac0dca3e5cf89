"""Results in words: one function a noun, lines out. And the few arguments that are more than a word."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from raksha.cmd.output import table
from raksha.errors import BadArgument
from raksha.progress import human

if TYPE_CHECKING:
    from raksha.agent.local import Pruned
    from raksha.agent.restore import Restored
    from raksha.restore.export import Exported
    from raksha.restore.verify import Finding
    from raksha.vault.metadata import BackupMetadata, RunDocument, VmSummary
    from raksha.virt.libvirt.host_recovery import DiskState, VmRecovery
    from raksha.virt.libvirt.listing import DiskEntry, VmEntry


def excluded(texts: Sequence[str], vms: Sequence[str]) -> dict[str, frozenset[str]]:
    """`VM:DISK` arguments, by VM. Raises `BadArgument`."""
    found: dict[str, frozenset[str]] = {}
    for text in texts:
        vm, colon, disk = text.rpartition(":")
        if not colon or not vm or not disk:
            raise BadArgument(argument=f"--exclude {text}", detail="it has the form VM:DISK, such as web:vdb")
        if vm not in vms:
            raise BadArgument(argument=f"--exclude {text}", detail=f"{vm} is not among the VMs to back up")
        found[vm] = found.get(vm, frozenset()) | {disk}
    return found


def plain(records: object) -> Any:
    """Records as JSON knows them."""
    return msgspec.to_builtins(records, enc_hook=str)


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def vms(found: Sequence[VmEntry]) -> list[str]:
    """A line per disk; what cannot be protected says why."""
    rows: list[Sequence[object]] = []
    for vm in found:
        for disk in vm.disks:
            size = human(disk.size) if disk.size is not None else None
            rows.append((vm.name, vm.power, disk.target, size, disk.format, vm.reason or _state(disk)))
        if not vm.disks:
            rows.append((vm.name, vm.power, None, None, None, vm.reason or "no disks"))
    return table(("VM", "STATE", "DISK", "SIZE", "FORMAT", "PROTECTION"), rows) if rows else ["no VMs"]


def _state(disk: DiskEntry) -> str:
    if disk.reason is not None:
        return f"no: {disk.reason}"
    return "next backup is incremental" if disk.counts_from else "next backup reads the whole disk"


def backup(run: RunDocument) -> list[str]:
    volume, seconds = run.volume(), max(run.finished_at - run.started_at, 0)  # a clock may be put back
    lines = [
        f"restore point {run.backupjobrun}",
        f"  job {run.job_name}, taken {moment(run.taken_at)}, {seconds:.1f} s",
        f"  read {human(volume.read)}, sent {human(volume.sent)}, refers to {human(volume.stored)}",
    ]
    return [*lines, *(line for vm in run.vms for line in _vm(vm))]


def _vm(vm: VmSummary) -> list[str]:
    frozen = f", frozen {vm.frozen_seconds:.2f} s" if vm.frozen_seconds is not None else ""
    lines = [f"  {vm.name}: {vm.power}, {vm.consistency}{frozen}, engine {vm.engine}"]
    for disk in vm.resources:
        why = f" ({disk.reason})" if disk.reason else ""
        lines.append(
            f"    {disk.resource}: {human(disk.size)}, {disk.kind}{why}, {human(disk.volume.data)} new data, "
            f"{human(disk.volume.sent)} sent"
        )
    return lines


def runs(found: Sequence[RunDocument]) -> list[str]:
    if not found:
        return ["no restore points"]
    rows = [
        (
            run.backupjobrun,
            moment(run.taken_at),
            run.job_name,
            ",".join(vm.name for vm in run.vms),
            _kind(run),
            human(run.volume().sent),
        )
        for run in found
    ]
    return table(("RESTORE POINT", "TAKEN", "JOB", "VMS", "KIND", "SENT"), rows)


def _kind(run: RunDocument) -> str:
    return "+".join(sorted({disk.kind for vm in run.vms for disk in vm.resources}))


def run(document: RunDocument, disks: Sequence[BackupMetadata]) -> list[str]:
    chains = [f"    {disk.resource} of {disk.vm}: parent {disk.parent}" for disk in disks if disk.parent]
    return [*backup(document), f"  written by {document.host}, Raksha {document.raksha}", *chains]


def verified(copies: int, findings: Sequence[Finding], *, data: bool) -> list[str]:
    depth = "everything was read and hashed" if data else "presence and sizes; --data reads everything"
    if not findings:
        return [f"{copies} disk copies are sound ({depth})"]
    lines = []
    for finding in findings:
        lines.append(f"{finding.object}: {finding.detail}")
        lines += [f"  hits {key.backupjobrun} {key.vm} {key.resource}" for key in finding.hits]
    return [*lines, f"{len(findings)} object(s) missing or damaged"]


def pruned(result: Pruned, dry_run: bool) -> list[str]:
    would = "would be " if dry_run else ""
    lines = [f"{would}deleted: {run.backupjobrun} of {run.job_name}, {moment(run.taken_at)}" for run in result.deleted]
    objects = f"{'at least ' if dry_run else ''}{result.collected.deleted} objects"
    return [*lines, f"{len(result.kept)} restore points stay; {objects} {would}removed"]


def pruned_document(result: Pruned) -> Mapping[str, Any]:
    return {
        "deleted": msgspec.to_builtins(list(result.deleted)),
        "kept": [each.backupjobrun for each in result.kept],
        "objects_removed": result.collected.deleted,
        "objects_kept": result.collected.kept,
    }


def paths(option: str, texts: Sequence[str]) -> dict[str, Path]:
    """`DISK=PATH` arguments. Raises `BadArgument`."""
    found = {}
    for text in texts:
        disk, equals, path = text.partition("=")
        if not equals or not disk or not path:
            raise BadArgument(argument=f"{option} {text}", detail="it has the form DISK=PATH")
        found[disk] = Path(path)
    return found


def recovered(found: Sequence[VmRecovery], dry_run: bool) -> list[str]:
    lines = []
    for vm in found:
        lines.append(f"{vm.name or vm.uuid}: {vm.power}")
        lines += [f"  {disk.target}: {_chains(disk)}" for disk in vm.disks]
        lines += [f"  {'would ' if dry_run else 'was to be done: '}{action}" for action in vm.actions]
        lines += [f"  {note}" for note in vm.notes]
        if not vm.actions and not vm.notes and vm.trouble is None:
            lines.append("  nothing to recover")
    return lines or ["nothing to recover"]


def _chains(disk: DiskState) -> str:
    """What all agree on once; otherwise who says what."""
    said = {"running": disk.live, "definition": disk.inactive, "headers": disk.headers or ()}
    shown = disk.live or disk.headers or disk.inactive
    differ = [f"{who}: {', on '.join(chain)}" for who, chain in said.items() if chain and chain != shown]
    job = ["a block job is under way"] if disk.job else []
    return "; ".join([", on ".join(shown), *differ, *job])


def recovery_document(vm: VmRecovery) -> Mapping[str, Any]:
    error = vm.trouble
    trouble = None if error is None else {"code": error.code, "message": str(error), "hint": error.advice()}
    return {
        "uuid": vm.uuid,
        "name": vm.name,
        "power": vm.power,
        "disks": msgspec.to_builtins(vm.disks),
        "actions": list(vm.actions),
        "notes": list(vm.notes),
        "trouble": trouble,
    }


def restored(result: Restored, dry_run: bool) -> list[str]:
    would = "would be " if dry_run else ""
    lines = [
        f"{disk.disk} {would}restored to {disk.target}: {human(disk.size)}"
        + ("" if dry_run else f", {human(disk.written)} written from {disk.segments} segments")
        for disk in result.disks
    ]
    return [*lines, f"VM {result.vm} {would}defined"] if result.vm else lines


def exported(files: Sequence[Exported]) -> list[str]:
    return [f"{file.path}: {human(file.size)}" + (f", on {file.backing}" if file.backing else "") for file in files]
