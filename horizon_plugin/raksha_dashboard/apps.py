"""What is done once, when Django has loaded all its applications."""

from pathlib import Path

from django.apps import AppConfig
from django.conf import settings

#: of the service in Keystone's catalogue, and of its rules
SERVICE_TYPE = "data-protection"


class RakshaDashboard(AppConfig):
    name = "raksha_dashboard"
    verbose_name = "Raksha"

    def ready(self) -> None:
        _add_policy()
        # Horizon's tables can be imported from here on, and not before
        from raksha_dashboard import instances

        instances.add_protect()


def _add_policy() -> None:
    """Operators who name files of their own in POLICY_FILES keep them."""
    conf = Path(__file__).parent / "conf"
    settings.POLICY_FILES.setdefault(SERVICE_TYPE, str(conf / "raksha_policy.yaml"))
    settings.DEFAULT_POLICY_FILES.setdefault(SERVICE_TYPE, str(conf / "raksha_default_policy.yaml"))
