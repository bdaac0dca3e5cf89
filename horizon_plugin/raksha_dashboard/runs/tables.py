"""Tables of runs, and what can be done to them."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy
from horizon import exceptions, tables

from raksha.client import errors
from raksha.client.records import Run
from raksha_dashboard import words
from raksha_dashboard.api import SERVICE_TYPE, client, told

STATUS = (
    ("available", True), ("degraded", True), ("error", False), ("cancelled", True), ("needs_attention", False),
)  # fmt: skip


def _job(action: Any) -> str:
    """Whose runs the page is about."""
    return action.table.kwargs["job_id"]


class Restore(tables.LinkAction):
    name = "restore"
    verbose_name = _("Restore")
    classes = ("ajax-modal",)
    icon = "undo"
    policy_rules = ((SERVICE_TYPE, "backupjobruns:restore"),)

    def allowed(self, _request: Any, datum: Run | None = None) -> bool:
        return datum is not None and datum.restorable

    def get_link_url(self, datum: Run) -> str:
        return reverse("horizon:project:backup_jobs:restore", args=(datum.backupjob_id, datum.id))


class _OnRuns(tables.BatchAction):
    failed = _("The run could not be changed.")

    def action(self, request: Any, obj_id: str) -> None:
        with told(request, self.failed, fail=True):
            self.do(client(request), _job(self), obj_id)

    def do(self, service: Any, job_id: str, run_id: str) -> None:
        raise NotImplementedError


class Protect(_OnRuns):
    name = "protect"
    icon = "lock"
    policy_rules = ((SERVICE_TYPE, "backupjobruns:update"),)
    help_text = _("Retention leaves protected restore points alone, and nobody can delete them.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Protect", "Protect", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Protected restore point", "Protected restore points", count)

    def allowed(self, _request: Any, datum: Run | None = None) -> bool:
        return datum is None or (datum.restorable and not datum.protected)

    def do(self, service: Any, job_id: str, run_id: str) -> None:
        service.runs.update(job_id, run_id, protected=True)


class Unprotect(_OnRuns):
    name = "unprotect"
    icon = "unlock"
    policy_rules = ((SERVICE_TYPE, "backupjobruns:update"),)

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("End Protection", "End Protection", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Ended protection of restore point", "Ended protection of restore points", count)

    def allowed(self, _request: Any, datum: Run | None = None) -> bool:
        return datum is None or datum.protected

    def do(self, service: Any, job_id: str, run_id: str) -> None:
        service.runs.update(job_id, run_id, protected=False)


class Verify(_OnRuns):
    name = "verify"
    icon = "check-square-o"
    policy_rules = ((SERVICE_TYPE, "backupjobruns:verify"),)
    help_text = _("All that is stored of it, and of what it builds on, is read and compared with what was sent.")
    failed = _("The verification could not be started.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Verify", "Verify", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Began to verify restore point", "Began to verify restore points", count)

    def allowed(self, _request: Any, datum: Run | None = None) -> bool:
        return datum is None or datum.restorable

    def do(self, service: Any, job_id: str, run_id: str) -> None:
        service.verifications.create(job_id, run_id)


class TestRestore(Verify):
    name = "test_restore"
    icon = "power-off"
    help_text = _("Its VMs are started on a host where they reach nobody, until they say that they are up.")
    failed = _("The test restore could not be started.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Test Restore", "Test Restores", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Began a test restore of", "Began test restores of", count)

    def do(self, service: Any, job_id: str, run_id: str) -> None:
        service.verifications.boot(job_id, run_id)


class Cancel(_OnRuns):
    name = "cancel"
    icon = "stop"
    action_type = "danger"
    policy_rules = ((SERVICE_TYPE, "backupjobruns:cancel"),)
    failed = _("The run could not be cancelled.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Cancel Run", "Cancel Runs", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Began to cancel run", "Began to cancel runs", count)

    def allowed(self, _request: Any, datum: Run | None = None) -> bool:
        return datum is None or datum.state in ("queued", "ready", "running")

    def do(self, service: Any, job_id: str, run_id: str) -> None:
        service.runs.cancel(job_id, run_id)


class DeleteRun(tables.DeleteAction):
    help_text = _("What is stored of it is deleted. Restore points that build on it stay whole.")
    policy_rules = ((SERVICE_TYPE, "backupjobruns:delete"),)

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Delete Restore Point", "Delete Restore Points", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Began to delete restore point", "Began to delete restore points", count)

    def allowed(self, _request: Any, datum: Run | None = None) -> bool:
        return datum is None or (datum.ended and not datum.protected)

    def delete(self, request: Any, obj_id: str) -> None:
        with told(request, _("The restore point could not be deleted."), fail=True):
            client(request).runs.delete(_job(self), obj_id)


class FilterRuns(tables.FilterAction):
    """By time, state or kind."""

    def filter(self, _table: Any, data: list[Run], filter_string: str) -> list[Run]:
        wanted = filter_string.lower()
        shown = {run.id: f"{words.moment(run.created_at)} {words.state(run.state)} {run.kind}".lower() for run in data}
        return [run for run in data if wanted in shown[run.id]]


class UpdateRun(tables.Row):
    ajax = True

    def get_data(self, request: Any, run_id: str) -> Run:
        try:
            return client(request).runs.get(self.table.kwargs["job_id"], run_id)
        except errors.NotFound as error:
            raise exceptions.NotFound from error


def _link(run: Run) -> str:
    return reverse("horizon:project:backup_jobs:run", args=(run.backupjob_id, run.id))


def _when(run: Run) -> str:
    return words.moment(run.taken_at or run.created_at)


def _state(run: Run) -> Any:
    if run.ended:
        return words.badge(run.state)
    return format_html("{}{}", words.badge(run.state), words.bar(run.progress.percent, _("Progress of the backup")))


def _kind(run: Run) -> Any:
    said = words.KINDS.get(run.kind, run.kind)
    if run.protected:
        return format_html('{} <span class="fa fa-lock" aria-hidden="true"></span> {}', said, _("protected"))
    return said


def _trigger(run: Run) -> Any:
    return words.TRIGGERS.get(run.trigger, run.trigger)


def _sent(run: Run) -> str:
    return words.size(run.progress.bytes_sent)


def _stored(run: Run) -> str:
    return words.size(run.bytes_stored)


def _consistency(run: Run) -> Any:
    return words.CONSISTENCY.get(run.consistency or "", "–")


def _verified(run: Run) -> str:
    return words.moment(run.verified_at)


def _why(run: Run) -> str:
    return words.said(run.error or run.queued_reason)


class RunsTable(tables.DataTable):
    when = tables.Column(_when, verbose_name=_("Point in time"), link=_link)
    state = tables.Column(_state, verbose_name=_("State"))
    kind = tables.Column(_kind, verbose_name=_("Kind"))
    trigger = tables.Column(_trigger, verbose_name=_("Started by"))
    consistency = tables.Column(_consistency, verbose_name=_("Consistency"))
    sent = tables.Column(_sent, verbose_name=_("Sent"), attrs={"data-type": "size"})
    stored = tables.Column(_stored, verbose_name=_("Stored"), attrs={"data-type": "size"})
    verified = tables.Column(_verified, verbose_name=_("Last verified"))
    why = tables.Column(_why, verbose_name=_("Remark"))
    activity = tables.Column("state", verbose_name=_("State"), hidden=True, status=True, status_choices=STATUS)

    def get_object_display(self, datum: Run) -> str:
        return _when(datum)

    class Meta:
        css_classes = "raksha-table"
        name = "runs"
        verbose_name = _("Runs")
        status_columns = ("activity",)
        row_class = UpdateRun
        table_actions = (FilterRuns, DeleteRun)
        row_actions = (Restore, Protect, Unprotect, Verify, TestRestore, Cancel, DeleteRun)


class UnderWayTable(tables.DataTable):
    """What goes on now."""

    when = tables.Column(_when, verbose_name=_("Begun"), link=_link)
    state = tables.Column(_state, verbose_name=_("State"))
    sent = tables.Column(_sent, verbose_name=_("Sent"))
    why = tables.Column(_why, verbose_name=_("Remark"))
    activity = tables.Column("state", verbose_name=_("State"), hidden=True, status=True, status_choices=STATUS)

    def get_object_display(self, datum: Run) -> str:
        return _when(datum)

    class Meta:
        css_classes = "raksha-table"
        name = "under_way"
        verbose_name = _("Under Way")
        status_columns = ("activity",)
        row_class = UpdateRun
        footer = False
        multi_select = False
        row_actions = (Cancel,)
