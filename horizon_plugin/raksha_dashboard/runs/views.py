"""Pages of one run."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _
from django.views import View
from horizon import views, workflows

from raksha.client import errors
from raksha.client.records import Run
from raksha_dashboard import fields, words
from raksha_dashboard.api import client, message, told
from raksha_dashboard.runs import steps
from raksha_dashboard.runs.restore import RestoreRun, asked, token
from raksha_dashboard.runs.tables import RunsTable

JOBS = "horizon:project:backup_jobs:index"


class _OfRun:
    request: Any
    kwargs: dict[str, Any]

    @property
    def job_url(self) -> str:
        return reverse("horizon:project:backup_jobs:detail", args=(self.kwargs["job_id"],))

    @cached_property
    def run(self) -> Run:
        with told(self.request, _("The run could not be read."), redirect=self.job_url):
            return client(self.request).runs.get(self.kwargs["job_id"], self.kwargs["run_id"])
        raise AssertionError


class RunView(_OfRun, views.HorizonTemplateView):
    template_name = "raksha_dashboard/run.html"
    page_title = "{{ title }}"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        run = self.run
        with told(self.request, _("The backup job could not be read."), redirect=reverse(JOBS)):
            job = client(self.request).jobs.get(run.backupjob_id)
        title = f"{job.name}, {words.moment(run.taken_at or run.created_at)}"
        context = super().get_context_data(title=title, **kwargs)
        table = RunsTable(self.request, job_id=run.backupjob_id)
        context |= {
            "job": job, "job_url": self.job_url, "url": f"{self.job_url}?tab=job__runs",
            "actions": table.render_row_actions(run), **steps.shown(run),
            "custom_breadcrumb": [(job.name, self.job_url)],
        }  # fmt: skip
        return context


class LiveView(_OfRun, View):
    """The page's middle, asked for again while something is under way."""

    def get(self, request: Any, **_kwargs: Any) -> HttpResponse:
        return render(request, "raksha_dashboard/run_live.html", steps.shown(self.run))


class RestoreView(_OfRun, workflows.WorkflowView):
    workflow_class = RestoreRun
    page_title = _("Restore")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        fields.prepare(context["workflow"])
        return {**context, "page_title": self.page_title}

    def get_initial(self) -> dict[str, Any]:
        run = self.run
        disks = [f"{vm.vm_id}/{disk.resource}" for vm in run.vms or () for disk in vm.resources]
        return {
            "run": run,
            "job_id": run.backupjob_id,
            "run_id": run.id,
            "disks": disks,
            "kind": "server",
            "start": True,
        }


class PlanView(_OfRun, View):
    """A piece of a page: what the restore of the form would do, and what stands in its way."""

    def get(self, request: Any, **_kwargs: Any) -> HttpResponse:
        context: dict[str, Any] = {}
        target, vms = asked(request.GET, self.run)
        if vms:
            try:
                service, there = client(request).restores, token(request, target)
                plan = service.plan(self.run.backupjob_id, self.run.id, target, vms, target_token=there)
                context = {
                    "plan": plan, "total": words.size(plan.bytes_total), "stored": words.size(plan.bytes_stored),
                    "problems": [words.said(each) for each in plan.problems],
                }  # fmt: skip
            except errors.ClientError as error:
                context["refused"] = message("", error).strip()
        return render(request, "raksha_dashboard/plan.html", context)
