"""States, sizes and reasons in words, in the language of whoever looks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.template import defaultfilters
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

#: of runs: what can be restored from
RESTORABLE = ("available", "degraded")
#: shown by the name of each state, of jobs, runs, VMs of runs, restores and processes
STATES = {
    "none": _("Never run"), "active": _("Active"), "paused": _("Paused"), "suspended": _("Suspended"),
    "queued": _("Waiting"), "ready": _("Starting"), "running": _("Running"), "committing": _("Finishing"),
    "available": _("Available"), "degraded": _("Degraded"), "cancelling": _("Being cancelled"),
    "cancelled": _("Cancelled"), "error": _("Failed"), "needs_attention": _("Needs attention"),
    "deleting": _("Being deleted"), "done": _("Done"), "pending": _("Waiting"), "stored": _("Stored"),
    "skipped": _("Left out"), "enabled": _("Enabled"), "draining": _("Draining"), "drained": _("Drained"),
    "disabled": _("Disabled"),
}  # fmt: skip
KINDS = {"full": _("Full"), "incremental": _("Incremental")}
TRIGGERS = {
    "schedule": _("Schedule"), "request": _("By hand"), "retry": _("Retry"),
}  # fmt: skip
CONSISTENCY = {
    "quiesced": _("Application: file systems were frozen"), "crash": _("Crash: as after a power cut"),
    "offline": _("Exact: it was shut off"), "paused": _("Crash: it was paused"),
}  # fmt: skip
QUIESCE = {
    "auto": _("Freeze file systems where the guest agent answers"),
    "require": _("Freeze file systems, or fail"),
    "never": _("Do not freeze"),
}
TARGETS = {
    "server": _("New server"), "volume": _("New volumes"), "image": _("Images"),
    "in_place": _("Over the server as it is"), "domain": _("New VM"), "files": _("Files"),
}  # fmt: skip
#: why a disk was not read as a plain increment
REASONS = {
    "first_run": _("First copy of this disk"),
    "asked_for_full": _("A full copy was asked for"),
    "no_tracker": _("Nothing had kept track of changes: compared with the last copy"),
    "tracker_counts_from_another_run": _("Changes were tracked since another copy: compared"),
    "restarted_below_the_overlay": _("The server was started below the overlay: compared"),
    "written_below_the_overlay": _("Something wrote below the overlay: compared"),
    "disk_replaced": _("The disk is another one"),
    "disk_resized": _("The size of the disk has changed"),
    "parent_damaged": _("The copy before is damaged"),
    "vm_shut_off": _("The server was shut off"),
    "union_of_layers": _("A failed run lies between: all changes since the last copy"),
    "no_bitmap_possible": _("This kind of disk cannot keep track of changes: compared with the last copy"),
    "bitmap_lost": _("The track of changes was lost: compared with the last copy"),
    "bitmap_inconsistent": _("The track of changes is not complete: compared with the last copy"),
    "backing_chain_changed": _("Other images lie below the disk: compared with the last copy"),
}
#: what each state looks like (raksha.scss)
_LOOKS = {
    "good": ("available", "active", "done", "stored", "enabled"),
    "bad": ("error", "needs_attention", "suspended"),
    "odd": ("degraded", "paused", "cancelled", "skipped", "draining", "drained", "disabled", "none"),
}
_ICONS = {"good": "fa-check", "bad": "fa-exclamation-triangle", "odd": "fa-pause", "busy": "fa-refresh"}


def state(name: str) -> Any:
    return STATES.get(name, name)


def look(name: str) -> str:
    return next((found for found, states in _LOOKS.items() if name in states), "busy")


def badge(name: str) -> SafeString:
    """A state that colour is not needed to read."""
    kind = look(name)
    return format_html(
        '<span class="raksha-state raksha-{}"><span class="fa {}" aria-hidden="true"></span> {}</span>',
        kind, _ICONS[kind], state(name),
    )  # fmt: skip


def bar(percent: int | None, about: Any) -> SafeString:
    """How far something is."""
    known = percent or 0
    return format_html(
        '<div class="raksha-bar" role="progressbar" aria-label="{}" aria-valuemin="0" aria-valuemax="100"'
        ' aria-valuenow="{}"><span style="width:{}%"></span><b>{}%</b></div>',
        about, known, known, known,
    )  # fmt: skip


def size(count: int | None) -> str:
    return "–" if count is None else str(defaultfilters.filesizeformat(count))


def moment(when: datetime | None) -> str:
    """In the time zone that the user has chosen in Horizon."""
    if when is None:
        return "–"
    return str(defaultfilters.date(timezone.localtime(when), "Y-m-d H:i"))


def ago(when: datetime | None) -> Any:
    if when is None:
        return _("never")
    return _("%s ago") % defaultfilters.timesince(when, datetime.now(UTC))


def seconds(count: float | None) -> str:
    """Of a freeze or a skew: milliseconds matter."""
    return "–" if count is None else f"{count * 1000:.0f} ms" if count < 1 else f"{count:.1f} s"


def reason(code: str | None) -> Any:
    return REASONS.get(code or "", code or "–")


def said(why: Any) -> str:
    """Of an error or a reason that the API gives."""
    return "" if why is None else (why.message or why.code)


def vm_name(vm: Any) -> str:
    """Of a VM in a run: what its cloud called it, else what its hypervisor does."""
    return (vm.server or {}).get("name") or vm.name or vm.vm_id
