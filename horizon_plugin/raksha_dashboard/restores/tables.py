"""The table of restores."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy
from horizon import exceptions, tables

from raksha.client import errors
from raksha.client.records import Restore
from raksha_dashboard import words
from raksha_dashboard.api import SERVICE_TYPE, client, told

STATUS = (("done", True), ("error", False), ("cancelled", True), ("needs_attention", False))


class Cancel(tables.BatchAction):
    name = "cancel"
    icon = "stop"
    action_type = "danger"
    policy_rules = ((SERVICE_TYPE, "restores:cancel"),)

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Cancel Restore", "Cancel Restores", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Began to cancel restore", "Began to cancel restores", count)

    def allowed(self, _request: Any, datum: Restore | None = None) -> bool:
        return datum is None or datum.state in ("queued", "running")

    def action(self, request: Any, obj_id: str) -> None:
        with told(request, _("The restore could not be cancelled."), fail=True):
            client(request).restores.cancel(obj_id)


class UpdateRestore(tables.Row):
    ajax = True

    def get_data(self, request: Any, restore_id: str) -> Restore:
        try:
            return client(request).restores.get(restore_id)
        except errors.NotFound as error:
            raise exceptions.NotFound from error


def _when(restore: Restore) -> str:
    return words.moment(restore.created_at)


def _link(restore: Restore) -> str:
    return reverse("horizon:project:protection_restores:detail", args=(restore.id,))


def _target(restore: Restore) -> Any:
    return words.TARGETS.get(restore.target.kind, restore.target.kind)


def names(restore: Restore) -> str:
    """Of what comes of it, as far as it was named."""
    return ", ".join(vm.name or vm.id[:8] for vm in restore.vms) or "–"


def _state(restore: Restore) -> Any:
    if restore.ended:
        return words.badge(restore.state)
    return format_html(
        "{}{}", words.badge(restore.state), words.bar(restore.progress.percent, _("Progress of the restore"))
    )


def _size(restore: Restore) -> str:
    return words.size(restore.progress.bytes_total)


def _error(restore: Restore) -> str:
    return words.said(restore.error)


class RestoresTable(tables.DataTable):
    when = tables.Column(_when, verbose_name=_("Begun"), link=_link)
    target = tables.Column(_target, verbose_name=_("Restored to"))
    names = tables.Column(names, verbose_name=_("New names"))
    state = tables.Column(_state, verbose_name=_("State"))
    size = tables.Column(_size, verbose_name=_("Size"))
    error = tables.Column(_error, verbose_name=_("Remark"))
    activity = tables.Column("state", verbose_name=_("State"), hidden=True, status=True, status_choices=STATUS)

    def get_object_display(self, datum: Restore) -> str:
        return _when(datum)

    class Meta:
        css_classes = "raksha-table"
        name = "restores"
        verbose_name = _("Restores")
        status_columns = ("activity",)
        row_class = UpdateRestore
        multi_select = False
        row_actions = (Cancel,)
