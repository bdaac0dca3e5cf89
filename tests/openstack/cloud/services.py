"""Glance, Placement, Neutron's API, Cinder, Nova."""

from __future__ import annotations

import time

from tests.openstack.cloud.daemons import CloudError, start, tail, uwsgi, wait_for_port
from tests.openstack.cloud.layout import CINDER, ETC, GLANCE, NEUTRON, NOVA, PLACEMENT, VENV
from tests.openstack.cloud.rest import Cloud

_PORTS = {"glance": GLANCE, "placement": PLACEMENT, "neutron": NEUTRON, "cinder-api": CINDER, "nova-api": NOVA}
#: seconds until every service has reported for the first time
_REPORT = 120


def up() -> None:
    uwsgi("glance", GLANCE, "glance.wsgi.api:application",
          OS_GLANCE_CONFIG_DIR=str(ETC / "glance"), OS_GLANCE_CONFIG_FILES="glance-api.conf")  # fmt: skip
    uwsgi("placement", PLACEMENT, "placement.wsgi.api:application", OS_PLACEMENT_CONFIG_DIR=str(ETC / "placement"))
    neutron = str(ETC / "neutron/neutron.conf")
    uwsgi("neutron", NEUTRON, "neutron.wsgi.api:application",
          OS_NEUTRON_CONFIG_DIR=str(ETC / "neutron"), OS_NEUTRON_CONFIG_FILES=neutron)  # fmt: skip
    # Cinder takes its configuration from its arguments alone
    cinder = f"--config-file {ETC}/cinder/cinder.conf"
    uwsgi("cinder-api", CINDER, "cinder.wsgi.api:application", "--pyargv", cinder)
    uwsgi("nova-api", NOVA, "nova.wsgi.osapi_compute:application", OS_NOVA_CONFIG_DIR=str(ETC / "nova"))
    for project, parts in (("cinder", ("scheduler", "volume")), ("nova", ("conductor", "scheduler", "compute"))):
        for part in parts:
            configuration = ETC / project / f"{project}.conf"
            start(f"{project}-{part}", [VENV / f"bin/{project}-{part}", "--config-file", configuration])


def wait() -> None:
    """Until all have reported. Raises `CloudError`."""
    for name, port in _PORTS.items():
        wait_for_port(name, port)
    cloud = Cloud("admin")
    deadline = time.monotonic() + _REPORT
    while missing := _missing(cloud):
        if time.monotonic() > deadline:
            raise CloudError(f"not up: {missing}\n{tail('nova-compute')}\n{tail('cinder-volume')}")
        time.sleep(0.5)


def _missing(cloud: Cloud) -> list[str]:
    nova = [each["binary"] for each in cloud.nova.get("/os-services")["services"] if each["state"] == "up"]
    cinder = [each["host"] for each in cloud.cinder.get("/os-services")["services"] if each["state"] == "up"]
    wanted = {"nova-compute": nova, "nova-scheduler": nova, "nova-conductor": nova}
    wanted |= {"cloud@nfs": cinder, "cloud@ceph": cinder}
    missing = [name for name, there in wanted.items() if name not in there]
    if not missing and not cloud.nova.get("/os-hypervisors")["hypervisors"]:
        missing.append("a hypervisor")
    return missing
