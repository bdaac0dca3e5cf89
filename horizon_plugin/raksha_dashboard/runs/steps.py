"""A run as its page shows it: facts, VMs with disks, and what happened when."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from django.urls import reverse
from django.utils.translation import gettext as _
from msgspec import Struct

from raksha.client.records import Run
from raksha_dashboard import words


class Step(Struct, frozen=True):
    """A line of the log."""

    when: datetime | None
    text: str
    look: str = "good"

    @property
    def at(self) -> str:
        return words.moment(self.when) if self.when is not None else ""


def shown(run: Run) -> dict[str, Any]:
    """What the templates `run.html` and `run_live.html` need."""
    skew = words.seconds(run.skew_seconds)
    if run.skew_error_seconds is not None:
        skew = f"{skew} ± {words.seconds(run.skew_error_seconds)}"
    return {
        "run": run, "state": words.badge(run.state), "kind": words.KINDS.get(run.kind, run.kind),
        "trigger": words.TRIGGERS.get(run.trigger, run.trigger), "taken": words.moment(run.taken_at),
        "consistency": words.CONSISTENCY.get(run.consistency or "", "–"), "skew": skew,
        "frozen": words.seconds(run.frozen_seconds), "sent": words.size(run.progress.bytes_sent),
        "stored": words.size(run.bytes_stored), "proven": words.moment(run.proven_restorable_at),
        "verified": words.moment(run.verified_at),
        "bar": None if run.ended else words.bar(run.progress.percent, _("Progress of the backup")),
        "vms": [_vm(vm) for vm in run.vms or ()],
        "steps": sorted(_steps(run), key=lambda step: step.when or datetime.max.replace(tzinfo=UTC)),
        "live": None if run.ended else reverse("horizon:project:backup_jobs:run_live", args=(run.backupjob_id, run.id)),
        "problem": words.said(run.error), "waiting": words.said(run.queued_reason),
    }  # fmt: skip


def _vm(vm: Any) -> dict[str, Any]:
    disks = [
        {
            "name": disk.resource, "size": words.size(disk.size), "kind": words.KINDS.get(disk.kind or "", "–"),
            "reason": words.reason(disk.reason) if disk.reason else "", "sent": words.size(disk.progress.bytes_sent),
            "stored": words.size(disk.backup.bytes_stored if disk.backup else None),
            "bar": words.bar(disk.progress.percent, disk.resource) if vm.state in ("pending", "running") else None,
        }
        for disk in vm.resources
    ]  # fmt: skip
    return {
        "name": words.vm_name(vm), "id": vm.vm_id, "state": words.badge(vm.state), "disks": disks,
        "engine": vm.engine or "–", "consistency": words.CONSISTENCY.get(vm.consistency or "", "–"),
        "frozen": words.seconds(vm.frozen_seconds), "error": words.said(vm.error), "warnings": vm.warnings,
        "excluded": ", ".join(vm.excluded_disks), "host": vm.host or "–",
    }  # fmt: skip


def _steps(run: Run) -> Iterator[Step]:
    yield Step(run.created_at, _("Asked for: %s") % words.TRIGGERS.get(run.trigger, run.trigger))
    if run.queued_reason is not None and not run.ended:
        yield Step(None, _("Waits: %s") % words.said(run.queued_reason), "busy")
    if run.started_at is not None:
        yield Step(run.started_at, _("Started"))
    for vm in run.vms or ():
        name = words.vm_name(vm)
        if vm.taken_at is not None:
            said = words.CONSISTENCY.get(vm.consistency or "", vm.consistency or "–")
            yield Step(vm.taken_at, _("%(vm)s: snapshot taken. %(how)s") % {"vm": name, "how": said})
        for warning in vm.warnings:
            yield Step(vm.taken_at, f"{name}: {warning}", "odd")
        for disk in vm.resources:
            if disk.backup is not None:
                text = _("%(vm)s, %(disk)s: %(kind)s copy stored, %(size)s") % {
                    "vm": name, "disk": disk.resource, "kind": words.KINDS.get(disk.backup.kind, disk.backup.kind),
                    "size": words.size(disk.backup.bytes_stored),
                }  # fmt: skip
                yield Step(run.finished_at, text)
        yield from _tests(name, vm)
        if vm.error is not None:
            yield Step(run.finished_at, f"{name}: {words.said(vm.error)}", "bad")
    for warning in run.warnings:
        yield Step(run.taken_at, warning, "odd")
    if run.cancel_requested_at is not None:
        yield Step(run.cancel_requested_at, _("Somebody asked to cancel it"), "odd")
    if run.ended and run.finished_at is not None:
        yield Step(run.finished_at, _("Ended: %s") % words.state(run.state), words.look(run.state))
    if run.error is not None:
        yield Step(run.finished_at, words.said(run.error), "bad")


def _tests(name: str, vm: Any) -> Iterator[Step]:
    """What came of booting it where it reaches nobody."""
    if vm.proven_restorable_at is not None:
        yield Step(vm.proven_restorable_at, _("%s: came up in a test restore") % name)
    if vm.unproven_at is not None:
        said = {"vm": name, "why": words.said(vm.unproven_reason)}
        yield Step(vm.unproven_at, _("%(vm)s: not proven by a test restore. %(why)s") % said, "bad")
