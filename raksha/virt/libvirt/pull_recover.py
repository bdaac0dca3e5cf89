"""Clears away what a killed process had under way with the engine `pull`.

The journal says which job, directory and checkpoints were ours; whether they are there is observed. Bitmaps stay: they
only record, and the next run of their job knows whether its restore point came to be.
"""

from __future__ import annotations

from pathlib import Path

from raksha.journal import Journal
from raksha.virt.libvirt.checkpoint import REMOVE, Checkpoints
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.pull_job import end_job
from raksha.virt.libvirt.pull_place import Place, remove

#: the operation of a backup job, as the journal calls it
PULL = "pull"


def reconcile_pull(guest: Guest, journal: Journal) -> None:
    """The caller holds the VM's lock, so what is under way is nobody's. Raises `VmBusy`, `LibvirtFailed`."""
    for intent in journal.open_intents(guest.uuid):
        if intent.operation == PULL:
            place = Place(Path(intent.detail["directory"]))
            end_job(guest, place)
            remove(place)
        elif intent.operation != REMOVE:
            continue
        Checkpoints(guest, journal).forget(intent.detail["checkpoints"])
        journal.done(intent.id, "recovered")
