from django.utils.translation import gettext_lazy as _
from horizon import Panel


class Overview(Panel):
    """Shown where the catalogue of the cloud has the service, to whom its policy lets see something."""

    name = _("Overview")
    slug = "protection_overview"
    permissions = ("openstack.services.data-protection",)
    policy_rules = (("data-protection", "backupjobs:list"),)
