"""usage: python -m tests.openstack.cloud up | down [--wipe] | status

`up` is for root. Run again, it starts what does not run. `down` ends every daemon and every server's QEMU; `--wipe`
also removes all their data.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import libvirt

from tests.openstack.cloud import configuration, daemons, identity, infrastructure, layout, services, storage, tenants

_STEPS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("MariaDB, RabbitMQ, memcached, libvirt, Ceph", infrastructure.up),
    ("configuration", configuration.write),
    ("schemas and Keystone", identity.up),
    ("Swift", storage.up),
    ("Glance, Placement, Neutron, Cinder, Nova", services.up),
    ("until Swift answers", storage.wait),
    ("until all have reported", services.wait),
    ("image, flavor, network, volume types", tenants.up),
)


def up() -> None:
    if os.geteuid():
        raise daemons.CloudError("only root can start a cloud")
    if not (layout.VENV / "stamp").exists():
        raise daemons.CloudError("OpenStack is not installed: run scripts/setup --cloud")
    layout.make()
    started = time.monotonic()
    for what, step in _STEPS:
        before = time.monotonic()
        step()
        print(f"{what}: {time.monotonic() - before:.1f} s", flush=True)
    print(f"the cloud is up: {time.monotonic() - started:.0f} s")


def down(wipe: bool) -> None:
    with suppress(libvirt.libvirtError):
        connection = libvirt.open(layout.LIBVIRT_URI)
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            domain.destroy()
        connection.close()
    below = {"mariadb", "epmd", "rabbit", "memcached", "libvirt", "ceph-mon", "ceph-osd", "ceph-mgr"}
    for name in daemons.names():
        if name not in below:
            daemons.stop(name)
    infrastructure.down()
    if wipe:
        shutil.rmtree(layout.STATE)


def status() -> None:
    for name in daemons.names():
        print(f"{name:16} {'runs' if daemons.running(name) else 'ended'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["up", "down", "status"])
    parser.add_argument("--wipe", action="store_true")
    options = parser.parse_args()
    try:
        {"up": up, "down": lambda: down(options.wipe), "status": status}[options.verb]()
    except daemons.CloudError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
