"""Horizon's own settings for tests, with the plugin."""

import openstack_dashboard.enabled
from openstack_dashboard.test.settings import *  # noqa: F403
from openstack_dashboard.test.settings import HORIZON_CONFIG, INSTALLED_APPS
from openstack_dashboard.utils import settings as settings_utils

import raksha_dashboard.enabled

for kept in ("dashboards", "default_dashboard"):
    HORIZON_CONFIG.pop(kept, None)
settings_utils.update_dashboards(
    [openstack_dashboard.enabled, raksha_dashboard.enabled], HORIZON_CONFIG, INSTALLED_APPS
)
# Horizon's own applications have been added twice by now
INSTALLED_APPS = list(dict.fromkeys(INSTALLED_APPS))
