"""A captured VM comes back as a new domain; and what the list of VMs says about protecting them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raksha.errors import TargetExists
from raksha.virt.libvirt.connection import Connection
from raksha.virt.libvirt.define import NewDisk, define, plan_domain
from raksha.virt.libvirt.listing import list_vms
from raksha.virt.libvirt.overlay_survey import OverlayDemands
from tests.bed import Bed
from tests.bed.disks import Disk
from tests.bed.machine import Machine
from tests.functional.overlay_kit import MIB, Guest, Kit, kit_on


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed) as made:
        yield made


@pytest.mark.slow
@pytest.mark.bed
def test_new_domain_boots_beside_the_old_one(kit: Kit, bed: Bed) -> None:
    vm = bed.machine([bed.raw("a", 8 * MIB), bed.qcow2("b", 8 * MIB)], uefi=True, machine="q35", pause=0)
    vm.boot()
    vm.wait_for_records(20)
    request = kit.request(vm.uuid)
    capture = kit.capture(request)
    acknowledged = vm.last_ack()
    kit.points.store(request.backupjobrun, capture)
    assert capture.finish() == []
    disks = {}
    for target, image in kit.points.images[request.backupjobrun].items():
        path = bed.directory / f"new-{target}.raw"
        path.write_bytes(image)
        disks[target] = NewDisk(str(bed.host.give(path)), "raw")
    nvram = bed.directory / "new.nvram"
    assert capture.machine.nvram is not None
    nvram.write_bytes(capture.machine.nvram)
    bed.host.give(nvram)
    name = f"{vm.name}-new"
    plan = plan_domain(capture.machine.domain_xml, name, disks, str(nvram))
    with pytest.raises(TargetExists):
        define(kit.engine.connection, plan_domain(plan.xml, vm.name, disks, None))
    serial = bed.directory / f"vm.log-{name}"
    bed.host.give(bed._touched(serial.name))
    guest = define(kit.engine.connection, plan)
    restored = Machine(bed.host, name, serial=serial)
    try:
        assert (guest.uuid, guest.name) == (plan.uuid, name)
        guest.start()
        assert restored.verdict(), "the restored disks hold what the guest had written"
        assert restored.wait_for_records(5) > 0
        assert vm.running and vm.wait_for_records(1) > acknowledged
    finally:
        restored.remove()
        restored.close()
    assert not nvram.exists()


def test_list(kit: Kit, bed: Bed) -> None:
    extra = Disk(bed.raw("shared", MIB).path, "raw", extra="<shareable/>")
    cdrom = Disk(bed.raw("cd", MIB).path, "raw", target="hdc", extra="<readonly/>")
    one = Guest(bed, [bed.raw("a", 4 * MIB), extra, cdrom], name="one")
    one.start()
    two = Guest(bed, [bed.qcow2("b", 2 * MIB)], name="two")
    run = kit.run(one, exclude=frozenset(["vdb"]))
    with Connection(bed.uri) as connection:
        listed = list_vms(connection, kit.journal, lambda _: ("overlay", OverlayDemands()))
        found = {entry.name: entry for entry in listed}
    first, second = found[one.machine.name], found[two.machine.name]
    assert (first.uuid, first.power, first.reason) == (one.uuid, "running", None)
    assert (second.power, second.disks[0].size, second.disks[0].counts_from) == ("shut off", 2 * MIB, ())
    vda, vdb, hdc = first.disks
    assert vda.protectable and vda.counts_from == (run,) and vda.layers == 1 and vda.size == 4 * MIB
    assert not vdb.protectable and "shareable" in (vdb.reason or "")
    assert not hdc.protectable and hdc.reason == "a cdrom"
