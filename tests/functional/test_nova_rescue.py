"""A server in rescue: what it runs from is not its own disk, so nothing of it becomes a restore point."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lxml import etree

from raksha.virt.libvirt.domain_xml import parse_domain
from raksha.virt.libvirt.survey import in_rescue
from tests.bed import Bed
from tests.functional.local_kit import REFUSED, Local, nothing_changes, two_disks
from tests.functional.overlay_kit import Guest
from tests.functional.test_overlay_nova import INSTANCE

pytestmark = pytest.mark.bed


@pytest.fixture
def local(bed: Bed, tmp_path: Path) -> Local:
    # where QEMU, another user, may make its scratch files
    return Local(bed.uri, bed.directory / "state", f"file://{tmp_path}/vault")


@pytest.fixture
def guest(bed: Bed) -> Guest:
    made = two_disks(bed)
    made.off()
    xml = made.machine.xml(inactive=True)
    made.machine.connection.defineXML(xml.replace("<memory ", INSTANCE + "<memory ", 1))
    made.start()
    return made


def rescued(xml: str, rescue: Path) -> str:
    """As Nova defines it: the rescue disk first, the server's own after it."""
    root = etree.fromstring(xml)
    (devices,) = root.iterfind("devices")
    disks = [disk for disk in devices.iterfind("disk") if disk.get("device") == "disk"]
    first = etree.fromstring(etree.tostring(disks[0]))
    for old in first.iterfind("address"):
        first.remove(old)
    first.find("source").set("file", str(rescue))
    for number, disk in enumerate(disks):
        for old in disk.iterfind("address"):
            disk.remove(old)
        disk.find("target").set("dev", f"vd{'bcd'[number]}")
    devices.insert(0, first)
    return etree.tostring(root, encoding="unicode")


@pytest.mark.parametrize("engine", ["overlay", "pull"])
def test_it_is_refused_running_and_shut_off_and_as_ever_afterwards(
    local: Local, guest: Guest, bed: Bed, engine: str
) -> None:
    xml = guest.machine.xml(inactive=True)
    own = Path(guest.sources()["vda"][0])
    rescue = bed.directory / "disk.rescue"
    guest.off()
    shutil.copy(own, rescue)
    rescue.chmod(0o666)
    guest.machine.connection.defineXML(rescued(xml, rescue))
    for running in (True, False):
        if running:
            guest.machine.domain.create()
        else:
            guest.machine.domain.destroy()
        with nothing_changes(local, guest):
            answer = local.refused("vm_busy", "backup", guest.uuid, "--engine", engine, exit_code=REFUSED)
            assert "in rescue" in answer.json["error"]["message"]
        (shown,) = local("vms").json["vms"]
        assert "in rescue" in shown["reason"]
    guest.machine.connection.defineXML(xml)
    guest.start()
    assert "vda" in local.backup(guest, "--engine", engine).disks()


def domain(source: str, kind: str = "file", metadata: str = INSTANCE) -> str:
    disk = f"<disk type='{kind}' device='disk'><source {source}/><target dev='vda'/></disk>"
    return f"<domain>{metadata}<devices>{disk}</devices></domain>"


@pytest.mark.parametrize(
    ("xml", "found"),
    [
        (domain("file='/var/lib/nova/instances/0e8c/disk.rescue'"), True),
        (domain("protocol='rbd' name='vms/0e8c_disk.rescue'", "network"), True),
        (domain("dev='/dev/nova/0e8c_disk.rescue'", "block"), True),
        (domain("file='/var/lib/nova/instances/0e8c/disk'"), False),
        (domain("file='/srv/disk.rescue'", metadata=""), False),
    ],
)
def test_what_is_a_rescue(xml: str, *, found: bool) -> None:
    assert in_rescue(parse_domain(xml)) is found
