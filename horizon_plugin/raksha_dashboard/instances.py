"""The action "Protect" in the table of instances of Project → Compute: the workflow of a job with that VM chosen."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _
from horizon import tables
from openstack_dashboard.dashboards.project.instances.tables import InstancesTable

from raksha_dashboard.api import SERVICE_TYPE
from raksha_dashboard.api.summaries import service_there


class ProtectInstance(tables.LinkAction):
    name = "raksha_protect"
    verbose_name = _("Protect")
    classes = ("ajax-modal",)
    icon = "shield"
    policy_rules = ((SERVICE_TYPE, "backupjobs:create"),)

    def allowed(self, request: Any, _datum: Any = None) -> bool:
        return service_there(request)

    def get_link_url(self, datum: Any) -> str:
        # addresses are known only once all panels are
        from raksha_dashboard.overview.tables import create_url

        return create_url(datum.id, datum.name)


def add_protect() -> None:
    """Horizon has no setting for it: its table is given one more action, once."""
    options = InstancesTable._meta
    if ProtectInstance not in options.row_actions:
        options.row_actions = (*options.row_actions, ProtectInstance)
        InstancesTable.base_actions[ProtectInstance.name] = ProtectInstance()
