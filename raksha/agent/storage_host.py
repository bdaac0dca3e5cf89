"""What this host can do with volumes of a cloud, and what an earlier process of its agent has left mounted."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from raksha.virt.libvirt import image

#: without these there is no cloud
_PACKAGES = ("cinderclient", "novaclient", "os_brick")
#: kinds of storage that os-brick connects to, and the program that it needs for each
_PROGRAMS = {"nfs": "mount.nfs", "iscsi": "iscsiadm", "nvme": "nvme"}
_FIBRE_CHANNEL = Path("/sys/class/fc_host")


def able() -> list[str]:
    """Kinds of storage that volumes can be taken from here; none without the packages of the cloud, and root."""
    if os.geteuid() or any(find_spec(name) is None for name in _PACKAGES):
        return []
    found = [kind for kind, program in _PROGRAMS.items() if shutil.which(program)]
    found += ["fibre_channel"] if _FIBRE_CHANNEL.is_dir() and any(_FIBRE_CHANNEL.iterdir()) else []
    found += ["rbd"] if image.speaks_to_ceph() else []
    return sorted(found)


def sweep() -> None:
    """Unmount shares that a killed process of this host has left. What is in the cloud, tasks and schedulers remove."""
    if able():
        # only where there is a cloud: it takes a second to import
        from raksha.openstack import attach

        attach.sweep()
