"""XML of backup jobs and checkpoints: every disk named, nothing left to libvirt's choice."""

from __future__ import annotations

from lxml import etree

from raksha.virt.libvirt.pull_xml import (
    OUR_NAME,
    BackupDisk,
    backup_xml,
    bitmap_name,
    checkpoint_xml,
    qemu_owner,
    redefinition,
    socket_of,
)

RUN = "01234567-89ab-4cde-8f01-23456789abcd"


def disks(xml: str) -> dict[str, dict[str, str]]:
    return {str(each.get("name")): dict(each.attrib) for each in etree.fromstring(xml).iter("disk")}


def test_names_tell_the_run() -> None:
    assert bitmap_name(RUN) == f"raksha-{RUN}"
    assert OUR_NAME.fullmatch(bitmap_name(RUN))
    ours = bitmap_name(RUN)
    for foreign in ("raksha-", f"x{ours}", f"{ours}.1", "virtnbdbackup.0", ours[:-1]):
        assert not OUR_NAME.fullmatch(foreign)


def test_backup() -> None:
    chosen = [BackupDisk("vda", "/s/vda & co", "raksha-p"), BackupDisk("vdb", "/s/vdb", None)]
    xml = backup_xml("/s/nbd", chosen, ["hdc"])
    found = disks(xml)
    assert (found["vda"]["backupmode"], found["vda"]["incremental"]) == ("incremental", "raksha-p")
    assert found["vda"]["exportbitmap"] == "backup-vda" and found["vda"]["exportname"] == "vda"
    assert found["vdb"]["backupmode"] == "full" and "incremental" not in found["vdb"]
    assert found["hdc"] == {"name": "hdc", "backup": "no"}
    assert [str(each.get("file")) for each in etree.fromstring(xml).iter("scratch")] == ["/s/vda & co", "/s/vdb"]
    assert socket_of(xml) == "/s/nbd"


def test_socket_of_other_backups() -> None:
    assert socket_of("<domainbackup mode='push'><disks/></domainbackup>") is None
    assert socket_of("<domainbackup mode='pull'><server transport='tcp' name='x' port='1'/></domainbackup>") is None


def test_checkpoint_names_every_disk() -> None:
    found = disks(checkpoint_xml("raksha-r", {"vda"}, ["vda", "vdb", "hdc"]))
    assert {name: each["checkpoint"] for name, each in found.items()} == {"vda": "bitmap", "vdb": "no", "hdc": "no"}


def test_redefinition_carries_the_domain() -> None:
    root = etree.fromstring(redefinition("raksha-r", ["vda"], "<domain><name>x</name></domain>", 17))
    assert (root.findtext("name"), root.findtext("creationTime")) == ("raksha-r", "17")
    assert root.find("disks/disk").attrib == {"name": "vda", "checkpoint": "bitmap", "bitmap": "raksha-r"}
    assert root.findtext("domain/name") == "x"


def test_qemu_owner() -> None:
    label = "<domain><seclabel type='dynamic' model='{}'><label>{}</label></seclabel></domain>"
    assert qemu_owner(label.format("dac", "+64055:+994")) == (64055, 994)
    assert qemu_owner(label.format("dac", "libvirt-qemu:kvm")) is None
    assert qemu_owner(label.format("apparmor", "+1:+2")) is None
    assert qemu_owner("<domain/>") is None
