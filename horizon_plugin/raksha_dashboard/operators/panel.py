from django.utils.translation import gettext_lazy as _
from horizon import Panel


class Operators(Panel):
    """Shown where the catalogue of the cloud has the service, to whom its policy lets see something."""

    name = _("Data Protection")
    slug = "data_protection"
    permissions = ("openstack.services.data-protection",)
    policy_rules = (("data-protection", "services:list"),)
