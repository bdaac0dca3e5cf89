"""Recovery on demand: every VM that the journal remembers, or those that are named. What `raksha local recover` does.

One VM's trouble stops no other. With `dry_run` nothing is changed, and what would be done is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from raksha.config import Settings
from raksha.errors import NeedsAttention, RakshaError, VmGone, VmNotFound
from raksha.journal import Journal, LayerState
from raksha.virt.libvirt.connection import Connection, Guest
from raksha.virt.libvirt.decide import Action, Plan
from raksha.virt.libvirt.domain_xml import parse_domain
from raksha.virt.libvirt.fence import Fence
from raksha.virt.libvirt.observe import Seen, SeenFile
from raksha.virt.libvirt.pull_recover import PULL
from raksha.virt.libvirt.recover import look, reconcile
from raksha.virt.libvirt.release import Release
from raksha.virt.libvirt.trash import Trash


class DiskState(Struct, frozen=True):
    """What was seen of one disk, from the top downwards."""

    target: str
    live: tuple[str, ...]
    inactive: tuple[str, ...]
    #: what the headers say; None: they cannot be followed
    headers: tuple[str, ...] | None
    #: a block job is under way
    job: bool


class VmRecovery(Struct, frozen=True):
    """What was seen of one VM, and done about it (or would be)."""

    uuid: str
    #: None: libvirt does not know it
    name: str | None
    #: running, paused, shut off or gone
    power: str
    disks: tuple[DiskState, ...]
    #: a line each
    actions: tuple[str, ...]
    #: what a person should know
    notes: tuple[str, ...]
    #: why it was not, or cannot be, recovered
    trouble: RakshaError | None


def recover(
    connection: Connection, journal: Journal, settings: Settings, vms: Sequence[str], *, dry_run: bool
) -> list[VmRecovery]:
    """`vms`: names or UUIDs; empty: all that the journal remembers. Raises `VmNotFound` for a name nobody knows."""
    known = set(journal.known_vms())
    wanted = [_uuid(connection, vm, known) for vm in vms] if vms else sorted(known)
    return [_recover(connection, journal, settings, uuid, dry_run=dry_run) for uuid in wanted]


def _uuid(connection: Connection, vm: str, known: Iterable[str]) -> str:
    return vm if vm in known else connection.guest(vm).uuid


def _recover(connection: Connection, journal: Journal, settings: Settings, uuid: str, *, dry_run: bool) -> VmRecovery:
    try:
        guest = connection.guest(uuid)
    except VmNotFound:
        return _gone(connection, journal, settings, uuid, dry_run=dry_run)
    actions: list[str] = []
    notes: list[str] = []
    trouble: RakshaError | None = None
    try:
        with journal.vm_lock(guest.uuid, guest.name):
            seen, plan = look(guest, journal)
            actions = [*_told(plan.actions), *_pull(journal, uuid)]
            if keeps := _must_not_keep(guest, journal):
                actions.append("merge the overlays, for Nova would start the VM below them")
            if dry_run:
                return _record(guest, seen, actions, plan.notes, _first(plan))
            notes = reconcile(guest, journal, settings)
            if keeps:
                notes += Release(connection, guest, journal, settings)()
            seen, _ = look(guest, journal)
            return _record(guest, seen, actions, notes, None)
    except RakshaError as error:
        trouble = error
    return VmRecovery(uuid, guest.name, guest.power(), (), tuple(actions), tuple(notes), trouble)


def _must_not_keep(guest: Guest, journal: Journal) -> bool:
    """Whether it has overlays of a run that was killed, and is a VM that must have none between runs."""
    left = any(layer.state is not LayerState.MERGED for layer in journal.layers(guest.uuid))
    return left and parse_domain(guest.inactive_xml()).nova


def _first(plan: Plan) -> NeedsAttention | None:
    return plan.troubles[0] if plan.troubles else None


def _record(
    guest: Guest, seen: Seen, actions: Sequence[str], notes: Sequence[str], trouble: RakshaError | None
) -> VmRecovery:
    disks = tuple(
        DiskState(
            target=disk.target,
            live=_paths(disk.live),
            inactive=_paths(disk.inactive),
            headers=None if disk.headers is None else _paths(disk.headers),
            job=disk.job,
        )
        for disk in seen.disks
    )
    return VmRecovery(seen.uuid, guest.name, seen.power, disks, tuple(actions), tuple(notes), trouble)


def _paths(chain: Iterable[SeenFile]) -> tuple[str, ...]:
    return tuple(file.path for file in chain)


def _told(actions: Iterable[Action]) -> list[str]:
    return [_line(action) for action in actions]


def _line(action: Action) -> str:
    if action.intent is not None:
        return f"{action.do}: {action.intent.operation}"
    about = f"{action.target}: " if action.target else ""
    return f"{about}{action.do}" + (f" ({', '.join(action.paths)})" if action.paths else "")


def _pull(journal: Journal, vm: str) -> list[str]:
    begun = [intent for intent in journal.open_intents(vm) if intent.operation == PULL]
    return ["end the backup job of a run that is no more" for _ in begun]


def _gone(connection: Connection, journal: Journal, settings: Settings, uuid: str, *, dry_run: bool) -> VmRecovery:
    """Its owner may have deleted it, moved it, or be about to define it anew: nothing is deleted that holds data."""
    layers = journal.layers(uuid)
    lost = [layer.file.path for layer in layers if not Path(layer.file.path).exists()]
    left = [layer.file.path for layer in layers if layer.file.path not in lost and layer.state is not LayerState.MERGED]
    fences = [fence.path for fence in journal.fences(uuid)]
    actions = [f"forget the overlay, whose file is gone ({path})" for path in lost]
    actions += [f"take the immutable flag from {path}" for path in fences]
    notes: list[str] = []
    if not dry_run:
        with journal.vm_lock(uuid, uuid):
            journal.forget_layers(lost)
            notes += Fence(journal, settings).lift_all(uuid)
            trash = Trash(uuid, connection.guests, journal, settings)
            notes += trash.empty()
            if not left:
                for intent in journal.open_intents(uuid):
                    journal.done(intent.id, "the VM is gone")
    trouble = VmGone(vm=uuid, uri=connection.uri, files=", ".join(left)) if left else None
    return VmRecovery(uuid, None, "gone", (), tuple(actions), tuple(notes), trouble)
