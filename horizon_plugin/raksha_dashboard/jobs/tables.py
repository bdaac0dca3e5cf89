"""The table of backup jobs, and what can be done to them."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy
from horizon import exceptions, tables

from raksha.client import errors
from raksha_dashboard import schedules, words
from raksha_dashboard.api import SERVICE_TYPE, client, told
from raksha_dashboard.api.summaries import JobRow, row, vm_names

DETAIL = "horizon:project:backup_jobs:detail"
#: how Horizon's tables know that a row needs no more looking at: everything else is under way
STATUS = (
    ("none", True), ("available", True), ("degraded", True), ("error", False), ("cancelled", True),
    ("needs_attention", False), ("done", True),
)  # fmt: skip


class CreateJob(tables.LinkAction):
    name = "create"
    verbose_name = _("Create Backup Job")
    url = "horizon:project:backup_jobs:create"
    classes = ("ajax-modal",)
    icon = "plus"
    policy_rules = ((SERVICE_TYPE, "backupjobs:create"),)


class EditJob(tables.LinkAction):
    name = "edit"
    verbose_name = _("Edit Job")
    url = "horizon:project:backup_jobs:update"
    classes = ("ajax-modal",)
    icon = "pencil"
    policy_rules = ((SERVICE_TYPE, "backupjobs:update"),)

    def allowed(self, _request: Any, datum: JobRow | None = None) -> bool:
        return datum is not None and datum.job.state != "deleting"


class _OnJobs(tables.BatchAction):
    """Says what the API said where it refuses."""

    failed = _("The job could not be changed.")

    def action(self, request: Any, obj_id: str) -> None:
        with told(request, self.failed, fail=True):
            self.do(client(request), obj_id)

    def do(self, service: Any, job_id: str) -> None:
        raise NotImplementedError


class RunNow(_OnJobs):
    name = "run"
    classes = ("btn-run",)
    icon = "play"
    policy_rules = ((SERVICE_TYPE, "backupjobruns:create"),)
    failed = _("The backup could not be started.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Run Now", "Run Now", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Started job", "Started jobs", count)

    def allowed(self, _request: Any, datum: JobRow | None = None) -> bool:
        return datum is None or (datum.job.state in ("active", "paused") and datum.under_way is None)

    def do(self, service: Any, job_id: str) -> None:
        service.runs.start(job_id)


class RunFull(RunNow):
    name = "run_full"

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Run a Full Backup Now", "Run Full Backups Now", count)

    def do(self, service: Any, job_id: str) -> None:
        service.runs.start(job_id, kind="full")


class Verify(_OnJobs):
    """All restore points, in one pass."""

    name = "verify"
    icon = "check-square-o"
    policy_rules = ((SERVICE_TYPE, "backupjobs:verify"),)
    failed = _("The verification could not be started.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Verify Restore Points", "Verify Restore Points", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Began to verify job", "Began to verify jobs", count)

    def allowed(self, _request: Any, datum: JobRow | None = None) -> bool:
        return datum is None or bool(datum.points)

    def do(self, service: Any, job_id: str) -> None:
        service.verifications.create(job_id)


class TestRestore(Verify):
    """Of the newest restore point."""

    name = "test_restore"
    icon = "power-off"
    failed = _("The test restore could not be started.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Test the Newest Restore Point", "Test the Newest Restore Points", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Began a test restore of job", "Began test restores of jobs", count)

    def do(self, service: Any, job_id: str) -> None:
        service.verifications.boot(job_id)


class Pause(_OnJobs):
    name = "pause"
    icon = "pause"
    policy_rules = ((SERVICE_TYPE, "backupjobs:update"),)
    failed = _("The job could not be paused.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Pause Schedule", "Pause Schedules", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Paused job", "Paused jobs", count)

    def allowed(self, _request: Any, datum: JobRow | None = None) -> bool:
        return datum is None or datum.job.state == "active"

    def do(self, service: Any, job_id: str) -> None:
        service.jobs.pause(job_id)


class Resume(_OnJobs):
    name = "resume"
    icon = "play-circle"
    policy_rules = ((SERVICE_TYPE, "backupjobs:update"),)
    failed = _("The job could not be resumed.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Resume Schedule", "Resume Schedules", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Resumed job", "Resumed jobs", count)

    def allowed(self, _request: Any, datum: JobRow | None = None) -> bool:
        return datum is None or datum.job.state in ("paused", "suspended")

    def do(self, service: Any, job_id: str) -> None:
        service.jobs.resume(job_id)


class TakeOver(_OnJobs):
    """Of a job whose owner left."""

    name = "take_over"
    icon = "user"
    policy_rules = ((SERVICE_TYPE, "backupjobs:take_over"),)
    failed = _("The job could not be taken over.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Take Over", "Take Over", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Took over job", "Took over jobs", count)

    def allowed(self, _request: Any, datum: JobRow | None = None) -> bool:
        why = datum.job.state_reason if datum is not None else None
        return why is not None and why.code == "trust_broken"

    def do(self, service: Any, job_id: str) -> None:
        service.jobs.take_over(job_id)


class DeleteJob(tables.DeleteAction):
    help_text = _("All restore points of these jobs are deleted as well, and cannot be brought back.")
    policy_rules = ((SERVICE_TYPE, "backupjobs:delete"),)

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Delete Job and Its Restore Points", "Delete Jobs and Their Restore Points", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Began to delete job", "Began to delete jobs", count)

    def allowed(self, _request: Any, datum: JobRow | None = None) -> bool:
        return datum is None or datum.job.state != "deleting"

    def delete(self, request: Any, obj_id: str) -> None:
        with told(request, _("The job could not be deleted."), fail=True):
            client(request).jobs.delete(obj_id, with_runs=True)


class FilterJobs(tables.FilterAction):
    """By name or VM, among those of the page."""

    def filter(self, _table: Any, data: list[JobRow], filter_string: str) -> list[JobRow]:
        wanted = filter_string.lower()
        return [each for each in data if wanted in " ".join((each.name, *each.vm_names)).lower()]


class UpdateJob(tables.Row):
    """Asked for while something is under way. A job that is gone leaves the table."""

    ajax = True

    def get_data(self, request: Any, job_id: str) -> JobRow:
        service = client(request)
        try:
            return row(service, service.jobs.get(job_id), vm_names(request))
        except errors.NotFound as error:
            raise exceptions.NotFound from error


def name(datum: JobRow) -> Any:
    return datum.name


def link(datum: JobRow) -> str:
    return reverse(DETAIL, args=(datum.id,))


def vms(datum: JobRow) -> Any:
    if datum.job.vm_selector is not None:
        chosen = datum.job.vm_selector
        pairs = [f"{key}={value}" for key, value in chosen.metadata.items()]
        return _("All with %s") % ", ".join((*chosen.tags, *pairs))
    shown, more = ", ".join(datum.vm_names[:3]), len(datum.vm_names) - 3
    return f"{shown}, +{more}" if more > 0 else shown or "–"


def schedule(datum: JobRow) -> Any:
    said = schedules.words(datum.job.schedule)
    if datum.job.state == "active":
        return said
    return format_html("{}<br>{}", said, words.badge(datum.job.state))


def activity(datum: JobRow) -> str:
    """Of Horizon's status column: what goes on, or how the last run ended."""
    if datum.job.state == "deleting":
        return "deleting"
    run = datum.under_way or datum.last
    return run.state if run is not None else "none"


def last_run(datum: JobRow) -> Any:
    run = datum.under_way or datum.last
    if run is None:
        return words.badge("none")
    shown = words.badge("deleting" if datum.job.state == "deleting" else run.state)
    if not run.ended:
        return format_html("{}{}", shown, words.bar(run.progress.percent, _("Progress of the backup")))
    at = reverse("horizon:project:backup_jobs:run", args=(run.backupjob_id, run.id))
    return format_html('{}<br><a href="{}">{}</a>', shown, at, words.moment(run.created_at))


def next_run(datum: JobRow) -> Any:
    return words.moment(datum.job.next_run_at)


def points(datum: JobRow) -> int:
    return len(datum.points)


def proven(datum: JobRow) -> Any:
    return words.moment(datum.job.proven_restorable_at)


def stored(datum: JobRow) -> str:
    return words.size(datum.stored)


class JobsTable(tables.DataTable):
    name = tables.Column(name, verbose_name=_("Name"), link=link)
    vms = tables.Column(vms, verbose_name=_("VMs"))
    schedule = tables.Column(schedule, verbose_name=_("Schedule"))
    last = tables.Column(last_run, verbose_name=_("Last run"))
    next = tables.Column(next_run, verbose_name=_("Next run"))
    points = tables.Column(points, verbose_name=_("Restore points"), attrs={"data-type": "int"})
    proven = tables.Column(proven, verbose_name=_("Last proven restorable"))
    stored = tables.Column(stored, verbose_name=_("Stored"), attrs={"data-type": "size"})
    activity = tables.Column(activity, verbose_name=_("State"), hidden=True, status=True, status_choices=STATUS)

    class Meta:
        css_classes = "raksha-table"
        name = "jobs"
        verbose_name = _("Backup Jobs")
        status_columns = ("activity",)
        row_class = UpdateJob
        table_actions = (CreateJob, FilterJobs, RunNow, Pause, Resume, DeleteJob)
        table_actions_menu = (Pause, Resume)
        row_actions = (RunNow, EditJob, RunFull, Verify, TestRestore, Pause, Resume, TakeOver, DeleteJob)
