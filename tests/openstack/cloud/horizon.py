"""Horizon with Raksha's plugin, for the tests that look at it with a browser. `scripts/setup-horizon` installs it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tests.openstack.cloud.daemons import CloudError, run, start, stop, wait_for_port
from tests.openstack.cloud.layout import IP, KEYSTONE_URL, MEMCACHED, REPOSITORY, ROOT, STATE

VENV = ROOT / "horizon-venv"
PLUGIN = REPOSITORY / "horizon_plugin/raksha_dashboard"
_LOCAL = VENV / "lib/python3.11/site-packages/openstack_dashboard/local"
_STATE = STATE / "horizon"
_SETTINGS = f"""\
DEBUG = False
ALLOWED_HOSTS = ["{IP}", "localhost"]
WEBROOT = "/"
LOCAL_PATH = "{_STATE}"
SECRET_KEY = "for tests only"
STATIC_ROOT = "{_STATE}/static"
STATIC_URL = "/static/"
COMPRESS_ENABLED = True
COMPRESS_OFFLINE = True
OPENSTACK_HOST = "{IP}"
OPENSTACK_KEYSTONE_URL = "{KEYSTONE_URL}"
OPENSTACK_KEYSTONE_DEFAULT_ROLE = "member"
SESSION_ENGINE = "django.contrib.sessions.backends.cache"
CACHES = {{
    "default": {{
        "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
        "LOCATION": "{IP}:{MEMCACHED}",
    }}
}}
TIME_ZONE = "UTC"
OPENSTACK_NEUTRON_NETWORK = {{
    "enable_router": False, "enable_quotas": False, "enable_ipv6": False, "enable_fip_topology_check": False,
}}
"""
_VARIABLES = {"DJANGO_SETTINGS_MODULE": "openstack_dashboard.settings", "PYTHONDONTWRITEBYTECODE": "1"}


def prepare() -> None:
    """Settings, the plugin's files, and what browsers load. Quick if nothing has changed."""
    if not (VENV / "stamp").exists():
        raise CloudError("Horizon is not installed: run scripts/setup-horizon")
    _STATE.mkdir(parents=True, exist_ok=True)
    (_LOCAL / "local_settings.py").write_text(_SETTINGS)
    for old in (_LOCAL / "enabled").glob("_*raksha*.py"):
        old.unlink()
    for file in sorted((PLUGIN / "enabled").glob("_[0-9]*.py")):
        shutil.copy(file, _LOCAL / "enabled")
    digest = hashlib.sha256(_SETTINGS.encode())
    for file in sorted([*PLUGIN.glob("static/**/*.*"), *PLUGIN.glob("enabled/*.py")]):
        digest.update(file.read_bytes())
    stamp = _STATE / "static.stamp"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    django = VENV / "bin/django-admin"
    run(django, "collectstatic", "--noinput", timeout=300, log="horizon-collect", **_VARIABLES)
    run(django, "compress", "--force", timeout=500, log="horizon-compress", **_VARIABLES)
    stamp.write_text(digest.hexdigest())


def up(name: str, port: int) -> None:
    """A Horizon of its own for who asks."""
    prepare()
    start(
        name,
        [
            VENV / "bin/uwsgi", "--http-socket", f"{IP}:{port}", "--virtualenv", VENV,
            "--module", "openstack_dashboard.wsgi:application", "--master", "--processes", "2", "--enable-threads",
            "--lazy-apps", "--need-app", "--buffer-size", "65535", "--die-on-term", "--no-orphans",
            "--static-map", f"/static={_STATE}/static",
        ],
        **_VARIABLES,
    )  # fmt: skip
    wait_for_port(name, port)


def down(name: str) -> None:
    stop(name)


def static() -> Path:
    return _STATE / "static"
