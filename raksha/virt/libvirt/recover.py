"""Brings the journal into line with what is observed, before anything new is done to a VM.

After a killed process the journal may hold intents without outcome and layers whose state is not known. What the
definitions and headers say decides; the journal only says what is ours. A layer that is in use is never touched.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from raksha.config import Settings
from raksha.errors import LibvirtFailed, VmBusy
from raksha.journal import FileId, Journal, LayerState, OwnLayer
from raksha.virt.libvirt import overlay_file
from raksha.virt.libvirt.chain import ChainBroken, follow, modified, same_file
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import parse_domain

#: operations that run as a block job
_JOBS = ("commit", "pivot")


def reconcile(guest: Guest, journal: Journal, settings: Settings) -> list[str]:
    """Returns warnings. Raises `VmBusy` when a merge of ours is still going on and does not end in time."""
    intents = journal.open_intents(guest.uuid)
    active = guest.is_active()
    if active and any(intent.operation == "freeze" for intent in intents):
        # The watchdog has thawed, unless the whole host went down. Thawing what is not frozen does no harm.
        with suppress(LibvirtFailed):
            guest.fs_thaw()
    for intent in intents:
        if active and intent.operation in _JOBS and intent.target:
            _end_job(guest, intent.target, intent.operation, settings.commit_timeout)
    warnings = _place_layers(guest, journal)
    for intent in intents:
        if intent.operation == "snapshot" and intent.run:
            _remove_strays(guest, journal, intent.run, intent.detail["overlays"])
        journal.done(intent.id, "recovered")
    return warnings


def _remove_strays(guest: Guest, journal: Journal, run: str, paths: Collection[str]) -> None:
    """Files that were made, but whose journal entry was not: only their mark can tell that they are ours."""
    for path in paths:
        if not journal.knows(path) and path not in used_paths(guest, ()):
            overlay_file.remove(FileId(path, 0, 0), run)


def _end_job(guest: Guest, target: str, operation: str, timeout: float) -> None:
    with suppress(LibvirtFailed), guest.job_events(target) as events:
        if guest.block_job(target) is None:
            return
        if operation == "pivot":
            # It mirrors until somebody pivots. Aborting leaves chain and overlay whole.
            guest.abort_job(target)
        elif events.wait(timeout) is None:
            raise VmBusy(vm=guest.name, detail=f"an earlier merge of disk {target} has not ended yet")


def _place_layers(guest: Guest, journal: Journal) -> list[str]:
    known = journal.layers(guest.uuid)
    if not known:
        return []
    try:
        used = used_paths(guest, {layer.target for layer in known})
    except ChainBroken:
        # What is used cannot be told, so nothing is put away. The survey refuses such a disk and says why.
        return []
    warnings = []
    for layer in known:
        in_use = any(same_file(layer.file.path, path) for path in used)
        if layer.state is LayerState.MERGING:
            with suppress(OSError):
                journal.base_left(layer.vm, layer.target, modified(layer.base.file.path))
        if in_use:
            if layer.state in (LayerState.PLANNED, LayerState.MERGING):
                journal.set_layers([layer.file.path], LayerState.CHAINED)
        elif warning := _put_away(journal, layer):
            warnings.append(warning)
    return warnings


def _put_away(journal: Journal, layer: OwnLayer) -> str | None:
    """A layer that is in no chain: forget it, delete it, or leave it where it is and say so."""
    path = layer.file.path
    if not Path(path).exists():
        journal.forget_layers([path])
        return None
    if layer.state in (LayerState.PLANNED, LayerState.MERGING):
        left = overlay_file.remove(layer.file, layer.run)
        if left is None:
            journal.forget_layers([path])
        return left
    journal.orphan_layers([path])
    return f"disk {layer.target} was started below {path}; what the VM wrote into that file since is only there"


def used_paths(guest: Guest, targets: Collection[str]) -> set[str]:
    """Every file that the VM's definitions name, and the headers below the disks `targets`. Raises `ChainBroken`."""
    domains = [parse_domain(guest.inactive_xml())]
    if guest.is_active():
        domains.append(parse_domain(guest.live_xml()))
    disks = [disk for domain in domains for disk in domain.disks if disk.layers]
    named = {layer.path for disk in disks for layer in disk.layers}
    qcow2 = [disk for disk in disks if disk.target in targets and disk.top.format == "qcow2"]
    return named | {layer.path for disk in qcow2 for layer in follow(disk.layers[:1])}
