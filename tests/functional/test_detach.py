"""A disk is taken out of a running VM while a backup is at work on it: a real guest, which lets it go."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest

from raksha.virt.libvirt.domain_xml import parse_domain
from tests.bed import Bed, check_records
from tests.bed.machine import Machine
from tests.functional.crash_kit import World, world_on
from tests.functional.local_kit import Answer
from tests.functional.test_kills import stopped_at

pytestmark = [pytest.mark.bed, pytest.mark.slow, pytest.mark.timeout(900)]

BOTH = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG


def disk_of(xml: str, target: str) -> str:
    """The element of one disk."""
    before = xml.partition(f"<target dev='{target}'")[0]
    end = xml.index("</disk>", len(before)) + len("</disk>")
    return xml[before.rindex("<disk ") : end]


def take_out(vm: Machine) -> str:
    """vdb, from the running VM and its definition. Returns what its owner needs to put it back."""
    disk = disk_of(vm.xml(inactive=True), "vdb")
    vm.domain.detachDeviceFlags(disk, BOTH)
    deadline = time.monotonic() + 20
    while parse_domain(vm.xml()).disk("vdb"):
        assert time.monotonic() < deadline, "the guest does not let it go"
        time.sleep(0.05)
    return disk


def during_a_backup(world: World, vm: Machine, event: Callable[[], None]) -> Answer:
    return stopped_at(world, "vault.put.segment", event, None, "backup", vm.uuid, *world.options)


def writing(world: World) -> Machine:
    """A guest with two disks and a restore point, which writes on both."""
    world.bed.qcow2("base2")
    disks = [world.bed.qcow2("c", None, backing="base2.qcow2"), world.bed.raw("d")]
    vm = world.bed.machine(disks, name="real", pause=5000)
    vm.boot()
    vm.wait_for_records(10)
    world.local.good("backup", vm.uuid, *world.options)
    vm.wait_for_records(10)
    return vm


def holds(world: World, vm: Machine, run: str, acknowledged: int) -> None:
    into = world.place / run
    into.mkdir()
    made = world.local.good("restore", run, "--vm", vm.uuid, "--into", into, "--format", "raw").json
    check_records([(Path(disk["target"]), "raw") for disk in made["disks"]], acknowledged)


def test_from_an_overlay(bed: Bed, tmp_path: Path) -> None:
    """The run ends; what the disk was given since lies in its layers, which are named until it is back."""
    with world_on(bed, tmp_path) as world:
        vm = writing(world)
        taken: list[str] = []
        answer = during_a_backup(world, vm, lambda: taken.append(take_out(vm)))
        assert answer.error == "capture_failed" and "vdb" in answer.json["error"]["message"], answer
        acknowledged = vm.last_ack()
        without = world.local.good("backup", vm.uuid, *world.options)
        assert {target: disk["mode"] for target, disk in without.disks().items()} == {"vda": "delta"}
        layers = list(bed.directory.glob("d.raksha-*"))
        assert len(layers) == 2
        for path in layers:
            assert any(f"disk vdb was taken out of the VM without {path} being" in each for each in without.warnings)

        (disk,) = taken
        vm.domain.attachDeviceFlags(disk, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        since = vm.mark()
        vm.power_off()
        vm.boot()
        assert vm.verdict(since), "its records are not what it had written"
        assert vm.wait_for_records(10) > acknowledged
        acknowledged = vm.last_ack()
        run = world.local.good("backup", vm.uuid, *world.options).run
        holds(world, vm, run, acknowledged)
        again = world.local.good("backup", vm.uuid, *world.options)
        assert {disk["mode"] for disk in again.disks().values()} == {"delta"} and again.warnings == [], again
        world.local.good("release", vm.uuid)
        assert not list(bed.directory.glob("*.raksha-*.qcow2"))
        assert world.local.good("verify", "--data").json["findings"] == []


def test_from_a_frozen_view(bed: Bed, tmp_path: Path) -> None:
    """With the engine pull QEMU serves the disk itself; libvirt keeps it until that has ended."""
    with world_on(bed, tmp_path, "pull") as world:
        vm = writing(world)

        def refused() -> None:
            with pytest.raises(libvirt.libvirtError, match="active block job"):
                take_out(vm)

        acknowledged = vm.last_ack()
        answer = during_a_backup(world, vm, refused)
        assert (answer.code, answer.warnings) == (0, []), answer
        holds(world, vm, answer.run, acknowledged)
        acknowledged = vm.last_ack()
        disk = take_out(vm)
        without = world.local.good("backup", vm.uuid, *world.options)
        assert {target: disk["mode"] for target, disk in without.disks().items()} == {"vda": "delta"}

        vm.domain.attachDeviceFlags(disk, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        since = vm.mark()
        vm.power_off()
        vm.boot()
        assert vm.verdict(since), "its records are not what it had written"
        vm.wait_for_records(10)
        acknowledged = max(acknowledged, vm.last_ack())
        answer = world.local.good("backup", vm.uuid, *world.options)
        assert answer.warnings == []
        holds(world, vm, answer.run, acknowledged)
        world.local.good("release", vm.uuid)
        assert world.local.good("verify", "--data").json["findings"] == []
