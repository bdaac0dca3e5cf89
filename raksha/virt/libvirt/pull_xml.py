"""XML of backup jobs and checkpoints, and what is read from it. Pure.

Every disk of the VM is named: libvirt's rules for those that are not differ between snapshots, backups and checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from lxml import etree
from msgspec import Struct

from raksha.virt.libvirt.domain_xml import parse_xml

_PREFIX = "raksha-"
#: what only Raksha calls a bitmap or checkpoint
OUR_NAME = re.compile(rf"{_PREFIX}[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}")


class BackupDisk(Struct, frozen=True):
    """One disk of a backup job."""

    target: str
    #: path of its scratch file
    scratch: str
    #: the checkpoint whose bitmap says what changed; None: that is not asked
    since: str | None


def bitmap_name(run: str) -> str:
    """What the checkpoint of a run and its bitmaps are called: they tell themselves from which run they count."""
    return f"{_PREFIX}{run}"


def backup_xml(socket: str, disks: Sequence[BackupDisk], left_out: Iterable[str]) -> str:
    """A pull backup that is served on a unix socket."""
    root = etree.Element("domainbackup", mode="pull")
    etree.SubElement(root, "server", transport="unix", socket=socket)
    listed = etree.SubElement(root, "disks")
    for each in disks:
        disk = etree.SubElement(listed, "disk", name=each.target, backup="yes", type="file", exportname=each.target)
        disk.set("backupmode", "incremental" if each.since else "full")
        if each.since:
            disk.set("incremental", each.since)
            disk.set("exportbitmap", export_bitmap(each.target))
        etree.SubElement(disk, "driver", type="qcow2")
        etree.SubElement(disk, "scratch", file=each.scratch)
    for target in left_out:
        etree.SubElement(listed, "disk", name=target, backup="no")
    return etree.tostring(root, encoding="unicode")


def export_bitmap(target: str) -> str:
    """What QEMU's NBD server calls the bitmap of changes."""
    return f"backup-{target}"


def checkpoint_xml(name: str, targets: Collection[str], all_targets: Iterable[str]) -> str:
    """A checkpoint to be made: bitmaps of its name on `targets`."""
    root = _checkpoint(name)
    disks = etree.SubElement(root, "disks")
    for target in all_targets:
        etree.SubElement(disks, "disk", name=target, checkpoint="bitmap" if target in targets else "no")
    return etree.tostring(root, encoding="unicode")


def redefinition(name: str, targets: Iterable[str], domain_xml: str, created: int) -> str:
    """A checkpoint whose bitmaps exist, for libvirt that has forgotten it. `created`: seconds since the epoch."""
    root = _checkpoint(name)
    etree.SubElement(root, "creationTime").text = str(created)
    disks = etree.SubElement(root, "disks")
    for target in targets:
        etree.SubElement(disks, "disk", name=target, checkpoint="bitmap", bitmap=name)
    root.append(parse_xml(domain_xml))
    return etree.tostring(root, encoding="unicode")


def _checkpoint(name: str) -> etree._Element:
    root = etree.Element("domaincheckpoint")
    etree.SubElement(root, "name").text = name
    return root


def socket_of(backup: str) -> str | None:
    """The socket of a backup job that is under way, by its XML; None: it has no unix socket."""
    server = parse_xml(backup).find("server")
    return server.get("socket") if server is not None else None


def qemu_owner(live_xml: str) -> tuple[int, int] | None:
    """User and group id of a running VM's QEMU, where libvirt has chosen them."""
    label = parse_xml(live_xml).findtext("./seclabel[@model='dac']/label")
    found = re.fullmatch(r"\+(\d+):\+(\d+)", label.strip()) if label else None
    return (int(found[1]), int(found[2])) if found else None
