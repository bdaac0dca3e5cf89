"""Where everything of the cloud is."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
ROOT = (REPOSITORY / ".cache" / "cloud").resolve()
VENV = ROOT / "venv"
PACKAGES = VENV / "lib/python3.11/site-packages"
#: what `down --wipe` removes
STATE = ROOT / "state"
ETC = STATE / "etc"
RUN = STATE / "run"
LOG = STATE / "log"
#: a shared mount: QEMU sees what is mounted below it later
DATA = STATE / "data"
#: the libvirtd that Nova has for itself, seen from outside its namespace
LIBVIRT = STATE / "libvirt"
LIBVIRT_URI = f"qemu:///system?socket={LIBVIRT}/run/libvirt-sock"
CEPH_CONF = ETC / "ceph.conf"
CEPH_POOL = "volumes"

IP = "127.0.0.1"
#: of every user, and of the database and the bus
PASSWORD = "s3cret"
REGION = "RegionOne"
#: name of the one host
HOST = "cloud"

MARIADB = 13306
RABBIT = 15672
RABBIT_MAPPER = 15673
RABBIT_CLUSTER = 15674
MEMCACHED = 21211
CEPH_MON = 13300
KEYSTONE = 15000
GLANCE = 19292
PLACEMENT = 18778
NEUTRON = 19696
CINDER = 18776
NOVA = 18774
SWIFT = 18080
SWIFT_ACCOUNT = 16202
SWIFT_CONTAINER = 16201
SWIFT_OBJECT = 16200

KEYSTONE_URL = f"http://{IP}:{KEYSTONE}/v3"
MESSAGES = f"rabbit://cloud:{PASSWORD}@{IP}:{RABBIT}/"


def database(name: str) -> str:
    """The address of a service's database."""
    return f"mysql+pymysql://cloud:{PASSWORD}@{IP}:{MARIADB}/{name}?charset=utf8"


def make() -> None:
    for folder in (ETC, RUN, LOG, DATA):
        folder.mkdir(parents=True, exist_ok=True)
    # other users (QEMU, MySQL) come through here
    for folder in (ROOT, STATE, ETC, DATA):
        folder.chmod(0o755)


def environment(**more: str) -> dict[str, str]:
    """For a daemon: little of what this process has."""
    return {
        "PATH": f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": os.environ.get("HOME", "/root"),
        "LANG": "C.UTF-8",
        "PYTHONWARNINGS": "ignore",
        "CEPH_CONF": str(CEPH_CONF),
        **more,
    }
