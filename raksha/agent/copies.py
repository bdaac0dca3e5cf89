"""The stored copies that an order for a backup refers to, turned into what a capture and the pipeline ask for.

Which copies these are, a scheduler has decided and pinned; here they are only read.
"""

from __future__ import annotations

from collections.abc import Sequence

from raksha.backup.parents import Parents, pin_copies
from raksha.errors import Damaged
from raksha.states import Reason
from raksha.tasks import BackupOrder, Copy
from raksha.vault.catalog import Catalog
from raksha.vault.dedupe import DedupeIndex
from raksha.virt.capture import CaptureRequest, DiskCapture, History, Parent, StoredCopy


def request(catalog: Catalog, order: BackupOrder) -> CaptureRequest:
    parents = parents_of(order)
    return CaptureRequest(
        vm=order.vm,
        backupjobrun=order.backupjobrun,
        backupjob=order.backupjob,
        since=parents.since,
        full_reason=Reason.ASKED if order.full else Reason.FIRST_RUN,
        exclude=frozenset(order.exclude),
        quiesce=order.quiesce,
        history=history_of(catalog, _all(order)),
    )


def parents_of(order: BackupOrder) -> Parents:
    """On what each disk builds, or why it has a full copy although there are older ones."""
    reasons = dict(order.reasons)
    if order.full:
        targets = {*order.parents, *reasons}
        return Parents(dict.fromkeys(targets), dict.fromkeys(targets, Reason.ASKED))
    since: dict[str, Parent | None] = dict.fromkeys(reasons)
    since |= {target: Parent(copy.key.backupjobrun, copy.size) for target, copy in order.parents.items()}
    return Parents(since, reasons)


def history_of(catalog: Catalog, copies: Sequence[Copy]) -> History:
    """For an engine that meets the change tracker of another host."""

    def find(target: str, beginning: str) -> Sequence[StoredCopy]:
        found = []
        for copy in sorted(copies, key=lambda each: each.number):
            key = copy.key
            if key.resource == target and key.backupjobrun.startswith(beginning):
                try:
                    tracker = catalog.metadata(key).tracker
                except Damaged:  # then nothing is known of it
                    continue
                found.append(StoredCopy(key.backupjobrun, key.backupjob, copy.number, tracker))
        return found

    return find


def pin(catalog: Catalog, order: BackupOrder, disk: DiskCapture, dedupe: DedupeIndex) -> None:
    """Let a full copy share segments with this disk's last copy and with disks on the same base image."""
    mine = sorted((each for each in _all(order) if each.key.resource == disk.target), key=lambda each: -each.number)
    pin_copies(catalog, [each.key for each in mine], [each.key for each in order.clones], disk.base_image, dedupe)


def _all(order: BackupOrder) -> list[Copy]:
    """Of this VM's disks."""
    return [*order.parents.values(), *(each for each in order.history if each.key.vm == order.vm)]
