from django.utils.translation import gettext_lazy as _
from horizon import Panel


class Restores(Panel):
    """Shown where the catalogue of the cloud has the service, to whom its policy lets see something."""

    name = _("Restores")
    slug = "protection_restores"
    permissions = ("openstack.services.data-protection",)
    policy_rules = (("data-protection", "restores:list"),)
