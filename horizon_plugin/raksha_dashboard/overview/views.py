"""What is protected and what is not, and how much of the limits is used."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from horizon import tables

from raksha_dashboard import words
from raksha_dashboard.api import client, told
from raksha_dashboard.api.summaries import VmRow, vms
from raksha_dashboard.overview.tables import VmsTable


class IndexView(tables.DataTableView):
    table_class = VmsTable
    template_name = "raksha_dashboard/overview.html"
    page_title = _("Data Protection")

    def get_data(self) -> list[VmRow]:
        found: list[VmRow] = []
        with told(self.request, _("The virtual machines could not be read.")):
            found = vms(self.request)
        # what needs a person comes first
        return sorted(found, key=lambda row: (bool(row.active and row.last_success), bool(row.active), row.name))

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        rows = context["table"].data
        good = sum(1 for row in rows if row.active and row.last_success)
        context |= {"total": len(rows), "good": good, "bad": len(rows) - good}
        context["used"] = []
        with told(self.request, _("Usage and limits could not be read.")):
            context["used"] = used(self.request)
        return context


def used(request: Any) -> list[dict[str, Any]]:
    """Of each limit how much is used."""
    service = client(request)
    usage, limits = service.usage.get(), service.limits.get()
    rows = (
        (_now("Backup jobs"), usage.jobs, limits.max_jobs, str),
        (_now("Restore points and other runs"), usage.runs, limits.max_runs, str),
        (_now("Stored"), usage.stored_bytes, limits.max_stored_bytes, words.size),
        (_now("Under way"), usage.runs_under_way, limits.max_runs_under_way, str),
    )
    return [
        {
            "name": name, "used": said(count), "most": said(most) if bounded else _now("no limit"),
            "percent": min(100, round(100 * count / most)) if bounded and most else 0, "bounded": bounded,
        }
        for name, count, most, said in rows
        for bounded in (most is not None and most >= 0,)
    ]  # fmt: skip
