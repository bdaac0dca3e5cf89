"""Test restores with a real libvirt: what comes up is proven, what does not is not, and nothing is left of either."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from lxml import etree

from tests.bed import Bed
from tests.bed.bed import UEFI
from tests.bed.boot_disk import boot_disk
from tests.bed.machine import Machine
from tests.bed.namespace import NamespaceHost
from tests.functional.overlay_kit import MIB
from tests.functional.serve_kit import Served

pytestmark = pytest.mark.bed

#: what the guest prints when it is up
UP = "READY cloud"
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
#: seconds; without KVM GRUB alone takes some
BOOT = 240
#: at which an agent dies while it has such a VM
POINTS = ["boot.make.done", "libvirt.createXML.done", "boot.remove"]


@pytest.fixture
def served(bed: Bed, tmp_path: Path) -> Iterator[Served]:
    boots = bed.directory / "boots"
    boots.mkdir(mode=0o711)
    bed.host.give(boots)
    made = Served(bed, tmp_path, test_restore_dir=boots, test_restore_memory=192)
    yield made
    made.close()


def machine(bed: Bed, disk: Path | None, *, uefi: bool = False) -> Machine:
    """A VM that is shut off, with a network, and with a console in a file: neither is to be part of a test."""
    path = bed.directory / "boot.qcow2"
    if disk is None:
        bed.qcow2("boot", 4 * MIB)
    else:
        shutil.copy(disk, path)
        bed.host.give(path)
    name = f"{bed.directory.name}-vm"
    firmware = ""
    if uefi:
        shutil.copy(VARIABLES, bed.directory / "vm.nvram")
        bed.host.give(bed.directory / "vm.nvram")
        firmware = UEFI.format(nvram=bed.directory / "vm.nvram")
    xml = f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>1024</memory><vcpu>4</vcpu>
        <os><type arch='x86_64' machine='pc'>hvm</type>{firmware}</os><features><acpi/></features><devices>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'/>
          <target dev='vda' bus='virtio'/></disk>
        <interface type='user'><model type='virtio'/></interface>
        <serial type='file'><source path='{bed.directory}/console.log'/></serial></devices></domain>"""
    made = Machine(bed.host, name, serial=bed.directory / "console.log", xml=xml)
    bed._stack.callback(made.close)
    bed._stack.callback(made.remove)
    return made


class Story:
    """A VM that was backed up, and tests of that."""

    def __init__(self, bed: Bed, served: Served, disk: Path | None, *, uefi: bool = False, **job: Any) -> None:
        self.bed, self.served = bed, served
        self.machine = machine(bed, disk, uefi=uefi)
        self.before = self._untouched()
        served.start()
        self.job = served.job(self.machine.uuid, **job)
        self.run = served.queue(self.job, "full")
        served.available(self.job, self.run)

    def _untouched(self) -> tuple[str, bool, str]:
        content = hashlib.sha256((self.bed.directory / "boot.qcow2").read_bytes()).hexdigest()
        return self.machine.xml(inactive=True), self.machine.running, content

    def begin(self, **how: Any) -> str:
        path = f"backupjobs/{self.job}/backupjobruns/{self.run}/verify"
        return str(self.served.ask("POST", path, {"boot": True, **how})["id"])

    def tests(self) -> list[libvirt.virDomain]:
        with self.bed.host.connect() as connection:
            return [each for each in connection.listAllDomains() if each.name().startswith("raksha-test-")]

    def ended(self, id: str) -> dict[str, Any]:
        deadline = time.monotonic() + BOOT + 60
        while (found := self.served.ask("GET", f"verifications/{id}"))["state"] in ("queued", "running"):
            assert time.monotonic() < deadline, (found, self.served.log.read_text()[-3000:])
            time.sleep(0.2)
        return dict(found)

    def assert_nothing_is_left(self) -> None:
        self.served.until(lambda: not self.tests(), "VMs of tests are gone")
        self.served.until(lambda: not list((self.bed.directory / "boots").iterdir()), "and their disks")
        assert self._untouched() == self.before
        assert [vm["id"] for vm in self.served.ask("GET", "vms")["vms"]] == [self.machine.uuid]

    @property
    def shown(self) -> dict[str, Any]:
        return self.served.shown(self.job, self.run)


def outcome(found: dict[str, Any]) -> tuple[Any, ...]:
    (vm,) = found["vms"]
    return found["state"], vm["outcome"], vm["proven_by"], vm["reason"] and vm["reason"]["code"]


@pytest.mark.slow
def test_proven_by_the_agent_after_a_kill_then_by_a_marker_without_a_network(bed: Bed, served: Served) -> None:
    story = Story(bed, served, boot_disk())
    assert (story.shown["proven_restorable_at"], story.shown["vms"][0]["proven_by"]) == (None, None)
    first = story.begin(timeout=BOOT)
    (running,) = served.until(story.tests, "a VM is started for the test")
    definition = etree.fromstring(running.XMLDesc())
    devices = definition.find("devices")
    assert devices is not None
    assert definition.findtext("vcpu") == "2" and definition.findtext("memory") == str(192 * 1024)
    assert not running.isPersistent() and devices.find("interface") is None
    assert [each.get("type") for each in devices.findall("serial")] == ["pty"]
    sources = [each.get("file") or "" for each in devices.iterfind("disk/source")]
    assert len(sources) == 1 and sources[0].startswith(f"{bed.directory}/boots/boot-")

    served.kill()
    served.until(lambda: not story.tests(), "it ends with its agent")
    served.start()
    assert outcome(story.ended(first)) == ("done", "proven", "guest_agent", None)
    story.assert_nothing_is_left()
    run = story.shown
    assert run["vms"][0]["proven_by"] == "guest_agent"
    proven = run["proven_restorable_at"]
    assert proven is not None and proven == run["vms"][0]["proven_restorable_at"]
    job = served.ask("GET", f"backupjobs/{story.job}")
    assert (job["proven_restorable_at"], job["proven_run_id"]) == (proven, story.run)

    again = story.ended(story.begin(timeout=BOOT, marker=UP))
    assert outcome(again) == ("done", "proven", "marker", None)
    assert story.shown["proven_restorable_at"] > proven
    story.assert_nothing_is_left()
    assert served.stop()[0] == 0


def test_a_disk_that_does_not_boot_is_not_proven(bed: Bed, served: Served) -> None:
    story = Story(bed, served, None)
    silent = story.ended(story.begin(timeout=10, marker=UP))
    assert outcome(silent) == ("done", "failed", None, "no_marker")
    vm = story.shown["vms"][0]
    assert (story.shown["proven_restorable_at"], vm["proven_restorable_at"]) == (None, None)
    assert vm["unproven_at"] and vm["unproven_reason"]["code"] == "no_marker"
    # nothing is known of an agent in it: that it is silent tells nothing
    assert outcome(story.ended(story.begin(timeout=10))) == ("done", "unknown", None, "nothing_to_tell")
    assert story.shown["proven_restorable_at"] is None

    cancelled = story.begin(timeout=600)
    served.until(story.tests, "a VM is started for the test")
    served.ask("POST", f"verifications/{cancelled}/cancel")
    assert story.ended(cancelled)["state"] == "cancelled"
    story.assert_nothing_is_left()
    assert served.stop()[0] == 0


def test_when_it_is_time_for_it_the_newest_restore_point_is_booted(bed: Bed, served: Served) -> None:
    story = Story(bed, served, None, test_restore={"every": 86400, "marker": UP, "timeout": 10})
    found = served.until(lambda: served.ask("GET", "verifications")["verifications"], "it is time for it")
    assert [(each["trigger"], each["boot"], each["backupjobrun_id"]) for each in found] == [
        ("schedule", True, story.run)
    ]
    assert outcome(story.ended(found[0]["id"])) == ("done", "failed", None, "no_marker")
    time.sleep(1)
    assert len(served.ask("GET", "verifications")["verifications"]) == 1
    assert served.stop()[0] == 0


def test_what_the_vault_lost_is_not_proven(bed: Bed, served: Served) -> None:
    story = Story(bed, served, boot_disk())
    vault = Path(served.told["vault"].removeprefix("file://"))
    segment = max(vault.glob("**/backupjobs_segments/**/*"), key=lambda path: path.stat().st_size * path.is_file())
    segment.write_bytes(b"nothing")
    assert outcome(story.ended(story.begin(timeout=10))) == ("done", "failed", None, "disk_lost")
    story.assert_nothing_is_left()
    assert served.stop()[0] == 0


@pytest.mark.slow
def test_with_uefi_and_its_variables(bed: Bed, served: Served) -> None:
    """The firmware itself says on the console that it came up, and found nothing to boot from on an empty disk."""
    story = Story(bed, served, None, uefi=True)
    begun = story.begin(timeout=BOOT, marker="BdsDxe: ")
    (running,) = served.until(story.tests, "a VM is started for the test")
    system = etree.fromstring(running.XMLDesc()).find("os")
    assert system is not None and (system.findtext("loader") or "").startswith("/usr/share/OVMF/OVMF_CODE")
    assert (system.findtext("nvram") or "").startswith(f"{bed.directory}/boots/boot-")
    assert outcome(story.ended(begun)) == ("done", "proven", "marker", None)
    story.assert_nothing_is_left()
    assert served.stop()[0] == 0


@pytest.mark.slow
@pytest.mark.system
def test_with_qemu_system_below_the_state_directory() -> None:
    host = NamespaceHost()
    host.start()
    try:
        with Bed(host) as bed:
            folder = bed.directory / "served"
            folder.mkdir(mode=0o711)
            (bed.directory / "boots").mkdir()
            served = Served(bed, folder)
            try:
                story = Story(bed, served, None, uefi=True)
                begun = story.begin(timeout=BOOT, marker="BdsDxe: ")
                served.until(story.tests, "a VM is started for the test")
                boots = served.state / "boots"
                (scratch,) = boots.iterdir()
                assert {path.name for path in scratch.iterdir()} == {"disk0.qcow2", "nvram.fd"}
                assert {path.stat().st_mode & 0o077 for path in scratch.iterdir()} == {0}
                assert outcome(story.ended(begun)) == ("done", "proven", "marker", None)
                story.assert_nothing_is_left()
                assert list(boots.iterdir()) == []
                assert served.stop()[0] == 0
            finally:
                served.close()
    finally:
        host.close()


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_an_agent_that_dies_leaves_nothing(bed: Bed, served: Served, point: str) -> None:
    story = Story(bed, served, None)
    served.stop()
    served.start(crash_at=point)
    begun = story.begin(timeout=10, marker=UP)
    served.dead()
    served.until(lambda: not story.tests(), "it ends with its agent")
    served.start()
    assert outcome(story.ended(begun)) == ("done", "failed", None, "no_marker")
    story.assert_nothing_is_left()
    assert served.stop()[0] == 0


@pytest.mark.slow
def test_a_libvirtd_that_was_restarted_proves_nothing_and_leaves_nothing(bed: Bed, served: Served) -> None:
    """It has forgotten that the VM is to end with its agent."""
    story = Story(bed, served, None)
    begun = story.begin(timeout=600, marker=UP)
    served.until(story.tests, "a VM is started for the test")
    bed.host.kill()
    bed.host.start()
    found = story.ended(begun)
    assert (found["state"], found["error"]["code"]) == ("error", "hypervisor_unavailable")
    assert story.shown["vms"][0]["unproven_at"] is None
    assert outcome(story.ended(story.begin(timeout=10, marker=UP))) == ("done", "failed", None, "no_marker")
    story.assert_nothing_is_left()
    assert served.stop()[0] == 0
