"""Verifications of a job: what was looked at, and what came of it."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy
from horizon import exceptions, tables

from raksha.client import errors
from raksha.client.records import Verification
from raksha_dashboard import words
from raksha_dashboard.api import SERVICE_TYPE, client, told

STATUS = (("done", True), ("error", False), ("cancelled", True))
#: as many findings as a row shows
_SHOWN = 3


class CancelVerification(tables.BatchAction):
    name = "cancel"
    icon = "stop"
    action_type = "danger"
    policy_rules = ((SERVICE_TYPE, "verifications:cancel"),)

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Cancel Verification", "Cancel Verifications", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Began to cancel verification", "Began to cancel verifications", count)

    def allowed(self, _request: Any, datum: Verification | None = None) -> bool:
        return datum is None or not datum.ended

    def action(self, request: Any, obj_id: str) -> None:
        with told(request, _("The verification could not be cancelled."), fail=True):
            client(request).verifications.cancel(obj_id)


class UpdateVerification(tables.Row):
    ajax = True

    def get_data(self, request: Any, verification_id: str) -> Verification:
        try:
            return client(request).verifications.get(verification_id)
        except errors.NotFound as error:
            raise exceptions.NotFound from error


def _when(row: Verification) -> str:
    return words.moment(row.created_at)


def _what(row: Verification) -> Any:
    if row.boot:
        return _("Test restore")
    if not row.data:
        return _("Whether all is there")
    if row.percent < 100:
        return _("%s%% of the data") % row.percent
    return _("All data")


def _of(row: Verification) -> Any:
    if row.backupjobrun_id is None:
        return _("All restore points")
    at = reverse("horizon:project:backup_jobs:run", args=(row.backupjob_id, row.backupjobrun_id))
    return format_html('<a href="{}">{}</a>', at, _("One restore point"))


def _state(row: Verification) -> Any:
    if row.ended:
        return words.badge(row.state)
    return format_html(
        "{}{}", words.badge(row.state), words.bar(row.progress.percent, _("Progress of the verification"))
    )


def _result(row: Verification) -> Any:
    """What a person has to know of it, the worst first."""
    if row.error is not None:
        return words.said(row.error)
    if not row.ended or row.state == "cancelled":
        return "–"
    if row.boot:
        return format_html_join("; ", "{}: {}", ((vm.name or vm.id, _booted(vm)) for vm in row.vms))
    said = [ngettext_lazy("%d damaged object", "%d damaged objects", len(row.findings)) % len(row.findings)]
    said += [f"{finding.object}: {finding.detail}" for finding in row.findings[:_SHOWN]]
    if row.healed:
        said.append(ngettext_lazy("%d object healed", "%d objects healed", len(row.healed)) % len(row.healed))
    if not row.findings:
        said[0] = _("Nothing is damaged")
    return format_html_join("; ", "{}", ((each,) for each in said))


def _booted(vm: Any) -> Any:
    return _("came up") if vm.outcome == "proven" else words.said(vm.reason) or _("not known")


class VerificationsTable(tables.DataTable):
    when = tables.Column(_when, verbose_name=_("Asked for"))
    what = tables.Column(_what, verbose_name=_("What is looked at"))
    of = tables.Column(_of, verbose_name=_("Of"))
    state = tables.Column(_state, verbose_name=_("State"))
    result = tables.Column(_result, verbose_name=_("Result"))
    activity = tables.Column("state", verbose_name=_("State"), hidden=True, status=True, status_choices=STATUS)

    def get_object_display(self, datum: Verification) -> str:
        return _when(datum)

    class Meta:
        css_classes = "raksha-table"
        name = "verifications"
        verbose_name = _("Verifications")
        status_columns = ("activity",)
        row_class = UpdateVerification
        multi_select = False
        row_actions = (CancelVerification,)
