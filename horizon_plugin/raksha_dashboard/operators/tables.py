"""What operators see: processes, jobs of all projects, usage of each."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy
from horizon import tables
from msgspec import Struct

from raksha.client.records import Job, Service
from raksha_dashboard import schedules, words
from raksha_dashboard.api import SERVICE_TYPE, client, told


class JobOfProject(Struct, frozen=True):
    project: str
    job: Job

    @property
    def id(self) -> str:
        return self.job.id


class UsageOfProject(Struct, frozen=True):
    """`problem`: why nothing is known."""

    id: str
    name: str
    used: Any = None
    limits: Any = None
    problem: str = ""


class _SetState(tables.BatchAction):
    policy_rules = ((SERVICE_TYPE, "services:update"),)
    state = ""

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Changed process", "Changed processes", count)

    def allowed(self, _request: Any, datum: Service | None = None) -> bool:
        return datum is None or datum.state != self.state

    def action(self, request: Any, obj_id: str) -> None:
        with told(request, _("The process could not be changed."), fail=True):
            client(request).services.update(obj_id, state=self.state)


class Enable(_SetState):
    name = "enable"
    state = "enabled"
    icon = "play"

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Enable", "Enable", count)


class Drain(_SetState):
    """It finishes what it has, and takes nothing new."""

    name = "drain"
    state = "draining"
    icon = "pause"

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Drain", "Drain", count)


class Forget(tables.DeleteAction):
    policy_rules = ((SERVICE_TYPE, "services:delete"),)
    help_text = _("Only a process that has been silent for ten minutes can be forgotten.")

    @staticmethod
    def action_present(count: int) -> Any:
        return ngettext_lazy("Forget", "Forget", count)

    @staticmethod
    def action_past(count: int) -> Any:
        return ngettext_lazy("Forgot process", "Forgot processes", count)

    def allowed(self, _request: Any, datum: Service | None = None) -> bool:
        return datum is None or not datum.alive

    def delete(self, request: Any, obj_id: str) -> None:
        with told(request, _("The process could not be forgotten."), fail=True):
            client(request).services.delete(obj_id)


def _alive(service: Service) -> Any:
    return _("Up") if service.alive else _("Silent")


def _state(service: Service) -> Any:
    return words.badge(service.state)


def _load(service: Service) -> str:
    return f"{service.running} / {service.capacity}" if service.capacity else "–"


def _heard(service: Service) -> Any:
    return words.ago(service.heartbeat_at)


class ServicesTable(tables.DataTable):
    kind = tables.Column("kind", verbose_name=_("Process"))
    name = tables.Column("name", verbose_name=_("Name"))
    host = tables.Column("host", verbose_name=_("Host"))
    zone = tables.Column("zone", verbose_name=_("Zone"))
    alive = tables.Column(_alive, verbose_name=_("Up"))
    state = tables.Column(_state, verbose_name=_("State"))
    load = tables.Column(_load, verbose_name=_("Tasks"))
    heard = tables.Column(_heard, verbose_name=_("Last heard of"))
    version = tables.Column("version", verbose_name=_("Version"))

    class Meta:
        css_classes = "raksha-table"
        name = "services"
        verbose_name = _("Processes")
        multi_select = False
        row_actions = (Enable, Drain, Forget)


def _job_name(row: JobOfProject) -> str:
    return row.job.name


def _schedule(row: JobOfProject) -> str:
    return schedules.words(row.job.schedule)


def _job_state(row: JobOfProject) -> Any:
    return words.badge(row.job.state)


def _members(row: JobOfProject) -> Any:
    return len(row.job.vms) + len(row.job.volumes) if row.job.vm_selector is None else _("By tags")


def _next(row: JobOfProject) -> str:
    return words.moment(row.job.next_run_at)


def _why(row: JobOfProject) -> str:
    return words.said(row.job.state_reason)


class AllJobsTable(tables.DataTable):
    project = tables.Column("project", verbose_name=_("Project"))
    name = tables.Column(_job_name, verbose_name=_("Name"))
    members = tables.Column(_members, verbose_name=_("VMs"))
    schedule = tables.Column(_schedule, verbose_name=_("Schedule"))
    state = tables.Column(_job_state, verbose_name=_("State"))
    next = tables.Column(_next, verbose_name=_("Next run"))
    why = tables.Column(_why, verbose_name=_("Remark"))

    def get_object_display(self, datum: JobOfProject) -> str:
        return datum.job.name

    class Meta:
        css_classes = "raksha-table"
        name = "all_jobs"
        verbose_name = _("Backup Jobs of All Projects")
        multi_select = False


def _used(name: str, said: Any = str) -> Any:
    def shown(row: UsageOfProject) -> str:
        return "–" if row.used is None else said(getattr(row.used, name))

    return shown


def _most(row: UsageOfProject) -> Any:
    most = getattr(row.limits, "max_stored_bytes", None)
    return "–" if row.limits is None else _("no limit") if most is None or most < 0 else words.size(most)


class UsageTable(tables.DataTable):
    name = tables.Column("name", verbose_name=_("Project"))
    jobs = tables.Column(_used("jobs"), verbose_name=_("Jobs"))
    runs = tables.Column(_used("runs"), verbose_name=_("Runs"))
    under_way = tables.Column(_used("runs_under_way"), verbose_name=_("Under way"))
    stored = tables.Column(_used("stored_bytes", words.size), verbose_name=_("Stored"))
    most = tables.Column(_most, verbose_name=_("May store"))
    problem = tables.Column("problem", verbose_name=_("Remark"))

    class Meta:
        css_classes = "raksha-table"
        name = "usage"
        verbose_name = _("Usage per Project")
        multi_select = False
