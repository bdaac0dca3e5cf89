"""Pages of jobs."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.views import View
from horizon import tables, tabs, workflows
from horizon.utils import functions

from raksha.client import errors
from raksha.client.records import Job
from raksha_dashboard import fields, schedules, words
from raksha_dashboard.api import client, message, told
from raksha_dashboard.api.summaries import JobRow, row, vm_names
from raksha_dashboard.jobs.tables import JobsTable
from raksha_dashboard.jobs.tabs import JobTabs
from raksha_dashboard.jobs.workflow import CreateJob, UpdateJob

INDEX = "horizon:project:backup_jobs:index"
#: times that the preview of a schedule shows
_TIMES = 5


class IndexView(tables.DataTableView):
    table_class = JobsTable
    page_title = _("Backup Jobs")
    _more = False

    def get_data(self) -> list[JobRow]:
        with told(self.request, _("The backup jobs could not be read.")):
            service, marker = client(self.request), self.request.GET.get("marker")
            page = service.jobs.page(limit=functions.get_page_size(self.request), marker=marker, sort="name:asc")
            self._more = page.marker is not None
            names = vm_names(self.request)
            return [row(service, job, names) for job in page.entries]
        return []

    def has_more_data(self, _table: Any) -> bool:
        return self._more


class DetailView(tabs.TabbedTableView):
    tab_group_class = JobTabs
    template_name = "raksha_dashboard/detail.html"
    page_title = "{{ shown.name }}"

    @cached_property
    def shown(self) -> JobRow:
        with told(self.request, _("The backup job could not be read."), redirect=reverse(INDEX)):
            service = client(self.request)
            return row(service, service.jobs.get(self.kwargs["job_id"]), vm_names(self.request))
        raise AssertionError

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        context["shown"] = self.shown
        context["state"] = words.badge(self.shown.job.state)
        context["url"] = reverse(INDEX)
        context["actions"] = JobsTable(self.request).render_row_actions(self.shown)
        return context

    def get_tabs(self, request: Any, *_args: Any, **kwargs: Any) -> JobTabs:
        if self._tab_group is None:
            self._tab_group = self.tab_group_class(request, shown=self.shown, **kwargs)
        return self._tab_group


class _WorkflowView(workflows.WorkflowView):
    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        fields.prepare(context["workflow"])
        # of the breadcrumb, which Horizon's own workflows leave without
        return {**context, "page_title": self.page_title}


class CreateView(_WorkflowView):
    """`?vm=ID`: with this VM chosen, as the table of instances links it."""

    workflow_class = CreateJob
    page_title = _("Create Backup Job")

    def get_initial(self) -> dict[str, Any]:
        chosen = [vm for vm in self.request.GET.getlist("vm") if vm]
        name = self.request.GET.get("name", "")
        zone = self.request.COOKIES.get("django_timezone") or self.request.session.get("django_timezone", "UTC")
        return {
            "vms": chosen, "name": name, "zone": zone, "often": schedules.DAILY, "at": "02:00", "keep": "some",
            "daily": 7, "weekly": 4,
        }  # fmt: skip


class UpdateView(_WorkflowView):
    workflow_class = UpdateJob
    page_title = _("Edit Backup Job")

    @cached_property
    def job(self) -> Job:
        with told(self.request, _("The backup job could not be read."), redirect=reverse(INDEX)):
            return client(self.request).jobs.get(self.kwargs["job_id"])
        raise AssertionError

    def get_initial(self) -> dict[str, Any]:
        job = self.job
        return {
            "job_id": job.id, "etag": job.etag, "before": job, "name": job.name, "description": job.description,
            "vms": [vm.id for vm in job.vms],
            "excluded": [f"{vm.id}/{disk}" for vm in job.vms for disk in vm.excluded_disks],
            "quiesce": job.quiesce, "consistency_group": job.consistency_group, "on_vm_failure": job.on_vm_failure,
            **schedules.to_form(job.schedule), **schedules.retention_to_form(job.retention),
        }  # fmt: skip


class SchedulePreviewView(View):
    """A piece of a page: when the schedule of the form would fire."""

    def get(self, request: Any) -> HttpResponse:
        body = schedules.from_form(request.GET)
        context: dict[str, Any] = {"by_hand": body is None}
        if body is not None:
            try:
                found = client(request).previews.schedule(body, count=_TIMES)
                context["times"] = [(words.moment(each.scheduled_at), each.full) for each in found.fire_times]
            except errors.ClientError as error:
                context["problem"] = message("", error).strip()
        return render(request, "raksha_dashboard/schedule_preview.html", context)


class RetentionPreviewView(View):
    """A piece of a page: what the retention of the form would keep; of a job, which of its restore points."""

    def get(self, request: Any) -> HttpResponse:
        retention = schedules.retention_from_form(request.GET)
        context: dict[str, Any] = {"words": schedules.retention_words(retention)}
        job_id = request.GET.get("job_id")
        if job_id and retention is not None:
            try:
                found = client(request).previews.retention(job_id, retention)
                context["kept"], context["deleted"] = found.kept, found.deleted
                context["decisions"] = [
                    (words.moment(each.taken_at), each.kept, "; ".join(each.reasons))
                    for each in reversed(found.decisions)
                ]
            except errors.ClientError as error:
                context["problem"] = message("", error).strip()
        elif not job_id:
            context["note"] = _now("There are no restore points yet.")
        return render(request, "raksha_dashboard/retention_preview.html", context)
