"""The panel of the admin dashboard."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _
from horizon import exceptions, tabs
from openstack_dashboard import api

from raksha.client import errors
from raksha_dashboard.api import client, message, told
from raksha_dashboard.operators import tables


def _projects(request: Any) -> list[Any]:
    """All that are enabled."""
    try:
        found, _more = api.keystone.tenant_list(request, paginate=False)
    except Exception:
        exceptions.handle(request, _("The projects could not be read."))
        return []
    return sorted((each for each in found if each.enabled), key=lambda each: each.name)


class ServicesTab(tabs.TableTab):
    name = _("Processes")
    slug = "services"
    template_name = "horizon/common/_detail_table.html"
    table_classes = (tables.ServicesTable,)

    def get_services_data(self) -> list[Any]:
        with told(self.request, _("The processes could not be read.")):
            return sorted(client(self.request).services.list(), key=lambda each: (each.kind, each.name))
        return []


class JobsTab(tabs.TableTab):
    name = _("Backup Jobs")
    slug = "all_jobs"
    template_name = "horizon/common/_detail_table.html"
    table_classes = (tables.AllJobsTable,)
    preload = False

    def get_all_jobs_data(self) -> list[Any]:
        found = []
        for project in _projects(self.request):
            with told(self.request, _("The backup jobs of project %s could not be read.") % project.name):
                found += [
                    tables.JobOfProject(project.name, job) for job in client(self.request, project.id).jobs.list()
                ]
        return found


class UsageTab(tabs.TableTab):
    name = _("Usage")
    slug = "usage"
    template_name = "horizon/common/_detail_table.html"
    table_classes = (tables.UsageTable,)
    preload = False

    def get_usage_data(self) -> list[Any]:
        found = []
        for project in _projects(self.request):
            service = client(self.request, project.id)
            try:
                used, limits = service.usage.get(), service.limits.get()
            except errors.ClientError as error:
                found.append(tables.UsageOfProject(project.id, project.name, problem=message("", error).strip()))
            else:
                found.append(tables.UsageOfProject(project.id, project.name, used, limits))
        return found


class OperatorTabs(tabs.TabGroup):
    slug = "data_protection"
    tabs = (ServicesTab, JobsTab, UsageTab)
    sticky = True


class IndexView(tabs.TabbedTableView):
    tab_group_class = OperatorTabs
    template_name = "raksha_dashboard/operators.html"
    page_title = _("Data Protection")
