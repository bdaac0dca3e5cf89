from django.utils.translation import gettext_lazy as _
from horizon import Panel


class Jobs(Panel):
    """Shown where the catalogue of the cloud has the service, to whom its policy lets see something."""

    name = _("Backup Jobs")
    slug = "backup_jobs"
    permissions = ("openstack.services.data-protection",)
    policy_rules = (("data-protection", "backupjobs:list"),)
