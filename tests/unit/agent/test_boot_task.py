"""Booting a VM for a test, as far as it can be told without a hypervisor: what it waits for, and when it gives up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raksha.agent import boot_scratch, boot_task
from raksha.agent.boot_definition import definition_of
from raksha.agent.boot_task import _Watch, require_memory
from raksha.errors import HypervisorUnavailable, Interrupted, NoMemoryForTest, VmNotFound
from raksha.server import AttachedVolume, Flavor, Server
from raksha.states import BootOutcome, ProvenBy
from raksha.tasks import Booted, BootOrder
from raksha.vault.metadata import VMMetadata

GIB = 1 << 30


class Vm:
    """Fulfils what is asked of a connection, a guest and a console."""

    uuid = "u"

    def __init__(self, *chunks: bytes, agent: bool = False, ends: bool = False) -> None:
        self._chunks = iter(chunks)
        self._agent, self._ends = agent, ends
        self.pings = 0

    def read(self) -> bytes:
        return next(self._chunks, b"")

    def agent_answers(self, _seconds: int) -> bool:
        self.pings += 1
        return self._agent

    def guest(self, _uuid: str) -> Any:
        if self._ends:
            raise VmNotFound(vm="u", uri="")
        return self


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A second passes with each look at it."""
    ticks = iter(range(100_000))
    monkeypatch.setattr(boot_task.time, "monotonic", lambda: float(next(ticks)))
    yield


def watched(vm: Vm, scratch: Path, **more: Any) -> Booted:
    order = BootOrder(verification="v", backupjob="j", backupjobrun="r", vm="u", timeout=30, **more)
    told: Any = vm
    return _Watch(told, told, told, order, scratch, lambda: None)()


def test_a_marker_counts_wherever_the_console_was_cut(tmp_path: Path) -> None:
    vm = Vm(b"booting ... web lo", b"", b"gin", b": ", agent=True)
    assert watched(vm, tmp_path, marker="login:").proven_by == ProvenBy.MARKER
    assert vm.pings == 0, "that alone was asked for"


def test_the_agent_counts_where_no_marker_was_asked_for(tmp_path: Path) -> None:
    assert watched(Vm(agent=True), tmp_path).proven_by == ProvenBy.GUEST_AGENT


@pytest.mark.parametrize(
    ("more", "outcome", "code"),
    [
        ({"marker": "login:"}, BootOutcome.FAILED, "no_marker"),
        ({"marker": "login:", "expects_agent": True}, BootOutcome.FAILED, "no_marker"),
        ({"expects_agent": True}, BootOutcome.FAILED, "no_agent"),
        ({}, BootOutcome.UNKNOWN, "nothing_to_tell"),
    ],
)
def test_silence(tmp_path: Path, more: dict[str, Any], outcome: BootOutcome, code: str) -> None:
    found = watched(Vm(b"logi", b"logn:"), tmp_path, **more)
    assert (found.outcome, found.proven_by, (found.reason or {})["code"]) == (outcome, None, code)
    assert found.seconds is not None and found.seconds >= 30


def test_one_that_ends(tmp_path: Path) -> None:
    found = watched(Vm(ends=True), tmp_path)
    assert (found.outcome, (found.reason or {})["code"]) == (BootOutcome.FAILED, "ended")


def test_a_console_that_never_stops_holds_up_nothing(tmp_path: Path) -> None:
    class Endless(Vm):
        def read(self) -> bytes:
            return b"x" * 1000

    assert (watched(Endless(), tmp_path, marker="y").reason or {})["code"] == "no_marker"


def test_one_that_writes_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk0.qcow2").write_bytes(b"0")
    monkeypatch.setattr(boot_task, "GROWTH", 64 * 1024)

    class Writing(Vm):
        def read(self) -> bytes:
            (tmp_path / "disk0.qcow2").write_bytes(b"1" * 256 * 1024)
            return b""

    assert (watched(Writing(), tmp_path).reason or {})["code"] == "writes"


def test_it_ends_when_it_is_to_end(tmp_path: Path) -> None:
    def check() -> None:
        raise Interrupted

    told: Any = Vm(agent=True)
    order = BootOrder(verification="v", backupjob="j", backupjobrun="r", vm="u", timeout=30)
    with pytest.raises(Interrupted):
        _Watch(told, told, told, order, tmp_path, check)()


def test_vms_that_work_come_first(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {3 * GIB // 1024} kB\n")
    require_memory(2 * GIB, meminfo)
    with pytest.raises(NoMemoryForTest):
        require_memory(2 * GIB + 2, meminfo)


class NoVm:
    """A libvirt that has none."""

    def __init__(self, uri: str) -> None:
        if uri == "away":
            raise HypervisorUnavailable(uri=uri, detail="no answer")

    def guest(self, vm: str) -> None:
        raise VmNotFound(vm=vm, uri="")

    def close(self) -> None:
        pass


def test_a_sweep_takes_what_is_ours_and_unlocked_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_scratch, "Connection", NoVm)
    uri, identity = "there", "00000000-0000-4000-8000-000000000001"
    for name in ("other", "boot-other", f"boot-{identity.replace('1', '2')}"):
        (tmp_path / name).mkdir()
    (tmp_path / f"boot-{identity.replace('1', '3')}").symlink_to(tmp_path / "other")
    with boot_scratch.scratch(uri, tmp_path, identity) as path:
        boot_scratch.sweep(uri, tmp_path)
        left = {each.name for each in tmp_path.iterdir()}
        assert left == {"other", "boot-other", path.name, f"boot-{identity.replace('1', '3')}"}
    assert not path.exists() and (tmp_path / "other").is_dir()


def test_disks_stay_while_nobody_knows_whether_their_vm_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_scratch, "Connection", NoVm)
    with boot_scratch.scratch("away", tmp_path, "00000000-0000-4000-8000-000000000001") as path:
        pass
    boot_scratch.sweep("away", tmp_path)
    assert path.is_dir()
    boot_scratch.sweep("there", tmp_path)
    assert not path.exists()


def machine(**more: Any) -> VMMetadata:
    return VMMetadata(format=1, vm="u", name="web", power="running", domain_xml="", live_xml=None, nvram=None, **more)


def test_a_server_of_which_only_storage_was_read_gets_a_definition() -> None:
    volumes = (
        AttachedVolume(id="2", size=1, device="/dev/vdb"),
        AttachedVolume(id="1", size=1, device="/dev/vda", boot_index=0),
        AttachedVolume(id="3", size=1),
    )
    built = {"hw_firmware_type": "uefi", "hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi"}
    flavor = Flavor(name="f", vcpus=4, ram=2048, disk=0)
    server = Server(id="u", name="web", status="ACTIVE", flavor=flavor, volumes=volumes, image_properties=built)
    text = definition_of(machine(server=server)) or ""
    assert text.index("vda") < text.index("vdb") and text.count("<disk") == 2
    for part in ('unit="MiB">2048', "<vcpu>4", 'firmware="efi"', 'machine="q35"', 'bus="scsi"', 'model="virtio-scsi"'):
        assert part in text, part
    assert definition_of(machine()) is None
