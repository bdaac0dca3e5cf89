"""Which VMs are protected."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _
from horizon import tables

from raksha_dashboard import words
from raksha_dashboard.api import SERVICE_TYPE
from raksha_dashboard.api.summaries import VmRow


class Protect(tables.LinkAction):
    name = "protect"
    verbose_name = _("Protect")
    classes = ("ajax-modal",)
    icon = "shield"
    policy_rules = ((SERVICE_TYPE, "backupjobs:create"),)

    def get_link_url(self, datum: VmRow) -> str:
        return create_url(datum.id, datum.name)

    def allowed(self, _request: Any, datum: VmRow | None = None) -> bool:
        return datum is not None and (datum.vm.refusal is None or datum.vm.refusal.code == "vm_not_seen")


def create_url(vm_id: str, name: str) -> str:
    """The workflow, with this VM chosen."""
    return f"{reverse('horizon:project:backup_jobs:create')}?{urlencode({'vm': vm_id, 'name': name})}"


def _link(row: VmRow) -> str:
    return reverse("horizon:project:instances:detail", args=(row.id,))


def _protected(row: VmRow) -> Any:
    if row.active and row.last_success:
        return format_html(
            '<span class="raksha-state raksha-good"><span class="fa fa-shield" aria-hidden="true"></span> {}</span>',
            _("Protected"),
        )
    if row.active:
        return format_html('<span class="raksha-state raksha-busy">{}</span>', _("Not backed up yet"))
    if row.jobs:
        return format_html('<span class="raksha-state raksha-odd">{}</span>', _("No schedule is active"))
    return format_html('<span class="raksha-state raksha-bad">{}</span>', _("Not protected"))


def _jobs(row: VmRow) -> Any:
    pairs = [(reverse("horizon:project:backup_jobs:detail", args=(job.id,)), job.name) for job in row.jobs]
    return format_html_join(", ", '<a href="{}">{}</a>', pairs) if pairs else "–"


def _last(row: VmRow) -> Any:
    if row.last_success is None:
        return "–"
    return format_html("{}<br><span class='raksha-note'>{}</span>", words.ago(row.last_success),
                       words.moment(row.last_success))  # fmt: skip


def _size(row: VmRow) -> str:
    return words.size(sum(disk.size or 0 for disk in row.vm.disks)) if row.vm.disks else "–"


def _remark(row: VmRow) -> str:
    return words.said(row.vm.refusal)


class VmsTable(tables.DataTable):
    name = tables.Column("name", verbose_name=_("Virtual machine"), link=_link)
    protected = tables.Column(_protected, verbose_name=_("Protection"))
    last = tables.Column(_last, verbose_name=_("Last success"))
    jobs = tables.Column(_jobs, verbose_name=_("Backup jobs"))
    size = tables.Column(_size, verbose_name=_("Size of disks"))
    remark = tables.Column(_remark, verbose_name=_("Remark"))

    class Meta:
        css_classes = "raksha-table"
        name = "vms"
        verbose_name = _("Virtual Machines")
        multi_select = False
        row_actions = (Protect,)
