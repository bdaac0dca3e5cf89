"""Tabs of a job."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _
from horizon import tabs

from raksha_dashboard import charts, schedules, words
from raksha_dashboard.api import client, told
from raksha_dashboard.runs.tables import RunsTable, UnderWayTable
from raksha_dashboard.verifications.tables import VerificationsTable

#: as many verifications as are shown, the newest first
_NEWEST = 50


class OverviewTab(tabs.TableTab):
    name = _("Overview")
    slug = "overview"
    template_name = "raksha_dashboard/job_overview.html"
    table_classes = (UnderWayTable,)

    def get_under_way_data(self) -> list[Any]:
        return [run for run in self.tab_group.kwargs["shown"].runs if not run.ended]

    def get_context_data(self, request: Any, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(request, **kwargs)
        shown = self.tab_group.kwargs["shown"]
        newest = shown.points[0] if shown.points else None
        context |= {
            "shown": shown, "schedule": schedules.words(shown.job.schedule), "newest": newest,
            "next": words.moment(shown.job.next_run_at), "stored": words.size(shown.stored),
            "reason": words.said(shown.job.state_reason), "state": words.badge(shown.job.state),
            "bars": charts.bars(shown.runs),
            "chain": charts.chain(shown.runs), "newest_at": words.moment(newest.taken_at if newest else None),
            "newest_ago": words.ago(newest.taken_at if newest else None),
            "missed": words.said(shown.job.last_missed_reason), "proven": words.moment(shown.job.proven_restorable_at),
            "verified": words.moment(max((run.verified_at for run in shown.points if run.verified_at), default=None)),
        }  # fmt: skip
        return context


class RunsTab(tabs.TableTab):
    name = _("Runs")
    slug = "runs"
    template_name = "horizon/common/_detail_table.html"
    table_classes = (RunsTable,)
    preload = False

    def get_runs_data(self) -> list[Any]:
        return list(self.tab_group.kwargs["shown"].runs)


class VerificationsTab(tabs.TableTab):
    name = _("Verifications")
    slug = "verifications"
    template_name = "horizon/common/_detail_table.html"
    table_classes = (VerificationsTable,)
    preload = False

    def get_verifications_data(self) -> list[Any]:
        with told(self.request, _("The verifications could not be read.")):
            job = self.tab_group.kwargs["shown"].job
            return list(client(self.request).verifications.list(backupjob_id=job.id, limit=_NEWEST))
        return []


class SettingsTab(tabs.Tab):
    name = _("Settings")
    slug = "settings"
    template_name = "raksha_dashboard/job_settings.html"

    def get_context_data(self, _request: Any) -> dict[str, Any]:
        shown = self.tab_group.kwargs["shown"]
        job = shown.job
        excluded = {vm.id: ", ".join(vm.excluded_disks) for vm in job.vms}
        return {
            "job": job, "schedule": schedules.words(job.schedule), "full": schedules.full_words(job.schedule),
            "retention": schedules.retention_words(job.retention), "quiesce": words.QUIESCE.get(job.quiesce),
            "vms": [(vm.id, name, excluded[vm.id]) for vm, name in zip(job.vms, shown.vm_names, strict=False)],
            "created": words.moment(job.created_at), "updated": words.moment(job.updated_at),
        }  # fmt: skip


class JobTabs(tabs.TabGroup):
    slug = "job"
    tabs = (OverviewTab, RunsTab, VerificationsTab, SettingsTab)
    sticky = True
