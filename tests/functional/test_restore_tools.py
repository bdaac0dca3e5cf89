"""Restores held against other people's tools: loop devices with stale content, QEMU's locks, qemu-img."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from msgspec.structs import replace as replace_order

from raksha.errors import (
    BadName,
    DeviceHalfWritten,
    DiskLost,
    Interrupted,
    LibvirtFailed,
    MetadataInvalid,
    TargetExists,
    TargetUnusable,
)
from raksha.restore.base import RawBase
from raksha.restore.context import Context
from raksha.restore.device import BlockDevice
from raksha.restore.disk import restore_disk
from raksha.restore.machine import MachineOrder, Placement, restore_machine
from raksha.restore.tpm import tpm_directory
from raksha.states import Format
from raksha.types import Geometry
from raksha.virt.libvirt.connection import Connection
from tests.bed import Bed
from tests.unit.restore.vault import CLUSTER, CountingStore, Vault, context, pattern

SIZE = 4 * 1024 * 1024


def qemu_img(*arguments: object) -> None:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def loop_device(file: Path, *options: str) -> Iterator[Path]:
    """A block device over a file."""
    made = subprocess.run(["losetup", "--find", "--show", *options, file], check=True, capture_output=True, text=True)
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A file full of what stood there before, a bit larger than the disk."""
    file = tmp_path / "device"
    file.write_bytes(b"stale and secret" * ((SIZE + 64 * 1024) // 16))
    return file


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    vault = Vault(tmp_path, Geometry(SIZE - 512, CLUSTER, 8))
    vault.add({number: pattern(number) for number in (*range(3, 300), 1023)})
    vault.add({5: None, 100: pattern(1), 400: pattern(2)})
    return vault


@pytest.mark.system
def test_a_device_reads_as_the_disk_and_zero_to_its_end(vault: Vault, stale: Path, tmp_path: Path) -> None:
    with loop_device(stale) as device:
        restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
        found = device.read_bytes()
    assert found[: SIZE - 512] == vault.models[-1]
    assert not any(found[SIZE - 512 :])
    assert len(found) == SIZE + 64 * 1024
    assert stale.read_bytes() == found


@pytest.mark.system
def test_a_device_that_cannot_zero_is_written_with_zeroes(
    vault: Vault, stale: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr("raksha.restore.device._libc", type("Libc", (), {"fallocate": staticmethod(refuse)}))
    with loop_device(stale) as device:
        restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
        assert device.read_bytes() == vault.models[-1].ljust(SIZE + 64 * 1024, b"\0")


@pytest.mark.system
def test_a_device_with_large_sectors(vault: Vault, stale: Path, tmp_path: Path) -> None:
    with loop_device(stale, "--sector-size", "4096") as device:
        restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
        assert device.read_bytes() == vault.models[-1].ljust(SIZE + 64 * 1024, b"\0")


@pytest.mark.system
def test_a_device_that_is_too_small_is_left_alone(vault: Vault, tmp_path: Path) -> None:
    file = tmp_path / "small"
    file.write_bytes(b"x" * (SIZE - 4096))
    with loop_device(file) as device, pytest.raises(TargetUnusable, match=f"it has {SIZE - 4096} bytes"):
        restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
    assert file.read_bytes() == b"x" * (SIZE - 4096)


@pytest.mark.system
def test_a_mounted_device_is_left_alone(vault: Vault, tmp_path: Path) -> None:
    file, there = tmp_path / "file", tmp_path / "there"
    there.mkdir()
    with file.open("wb") as made:
        made.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", file], check=True)
    with loop_device(file) as device:
        subprocess.run(["mount", device, there], check=True)
        try:
            (there / "letter").write_text("dear all")
            with pytest.raises(TargetUnusable, match="in use"):
                restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
            assert (there / "letter").read_text() == "dear all"
        finally:
            subprocess.run(["umount", there], check=True)


def opened(pid: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(link.readlink()))
    return found


@pytest.mark.system
def test_a_device_that_qemu_has_open_is_left_alone(vault: Vault, stale: Path, tmp_path: Path) -> None:
    before = stale.read_bytes()
    socket = tmp_path / "nbd"
    with loop_device(stale) as device:
        qemu = subprocess.Popen(["qemu-nbd", "--persistent", "-f", "raw", "-k", socket, device])
        try:
            while not (socket.exists() and str(device) in opened(qemu.pid)):
                assert qemu.poll() is None
                time.sleep(0.01)
            with pytest.raises(TargetUnusable, match="in use"):
                restore_disk(vault.source(), BlockDevice(device), context(tmp_path))
        finally:
            qemu.send_signal(signal.SIGTERM)
            qemu.wait()
        assert device.read_bytes() == before


def test_what_is_no_device_is_left_alone(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(TargetUnusable, match="no block device"):
        restore_disk(vault.source(), BlockDevice(tmp_path / "file"), context(tmp_path))
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.system
@pytest.mark.parametrize("fault", ["cancel", "missing"])
def test_a_half_written_device_is_called_that(vault: Vault, stale: Path, tmp_path: Path, fault: str) -> None:
    store = CountingStore(vault.store)
    source = vault.source(store=store)
    how = Context(spool_dir=tmp_path, workers=1)

    def break_at_the_tenth(name: str) -> None:
        if sum(store.gets.values()) == 10:
            vault.store.delete(name) if fault == "missing" else how.cancel.set()

    store.before_get = break_at_the_tenth
    with loop_device(stale) as device:
        with pytest.raises(DeviceHalfWritten) as caught:
            restore_disk(source, BlockDevice(device), how)
        assert caught.value.fields["target"] == str(device)
        assert isinstance(caught.value.__cause__, Interrupted if fault == "cancel" else DiskLost)
        # it was let go
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))


@pytest.mark.system
def test_damage_seen_before_a_device_is_touched_is_told_as_it_is(vault: Vault, stale: Path, tmp_path: Path) -> None:
    before = stale.read_bytes()
    source = vault.source()
    vault.store.delete(vault.made[0].map_name)
    source.readers[0]._source._blocks.clear()
    with loop_device(stale) as device, pytest.raises(DiskLost):
        restore_disk(source, BlockDevice(device), context(tmp_path))
    assert stale.read_bytes() == before


# -- a new libvirt domain -------------------------------------------------------------------------------------


@pytest.fixture
def target(bed: Bed) -> Path:
    made = bed.directory / "target"
    made.mkdir()
    return bed.host.give(made)


def two_disks(tmp_path: Path) -> list[Vault]:
    vaults = [Vault(tmp_path, Geometry(SIZE, CLUSTER, 8), disk=disk) for disk in ("vda", "vdb")]
    for at, vault in enumerate(vaults):
        vault.add({number: pattern(1000 * at + number) for number in range(3, 200)})
        vault.add({5: None, 100: pattern(1), 400: pattern(2 + at)})
    return vaults


def place(vaults: list[Vault], name: str, directory: Path, form: Format = Format.QCOW2) -> list[Placement]:
    """Each disk as a file of its own."""
    sources = [vault.source() for vault in vaults]
    return [Placement(source, directory / f"{name}-{source.disk}.{form}", form) for source in sources]


def order(bed: Bed, vaults: list[Vault], target: Path, **more: object) -> MachineOrder:
    source = bed.machine([bed.qcow2("a"), bed.raw("b")], uefi="nvram" in more)
    name = f"{bed.directory.name}-back"
    placed = place(vaults, name, target, Format(more.pop("format", "qcow2")))
    return MachineOrder(name, source.xml(inactive=True), placed, **more)


def defined(bed: Bed) -> list[str]:
    """Of this test."""
    with closing(bed.host.connect()) as connection:
        names = [domain.name() for domain in connection.listAllDomains()]
    return sorted(name for name in names if name.startswith(bed.directory.name))


@pytest.fixture
def connection(bed: Bed) -> Iterator[Connection]:
    with Connection(bed.uri) as made:
        yield made
        for name in defined(bed):
            if name.endswith("-back"):
                guest = made._connection.lookupByName(name)
                if guest.isActive():
                    guest.destroy()
                guest.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


@pytest.mark.bed
@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_a_restored_vm_is_defined_with_its_disks(
    bed: Bed, connection: Connection, tmp_path: Path, target: Path, disk_format: str
) -> None:
    vaults = two_disks(tmp_path)
    wanted = order(bed, vaults, target, format=disk_format)

    made = restore_machine(connection, wanted, context(tmp_path))

    xml = etree.fromstring(connection.guest(made.uuid).inactive_xml())
    original = etree.fromstring(wanted.domain_xml)
    assert xml.findtext("name") == wanted.name
    assert xml.findtext("uuid") == made.uuid != original.findtext("uuid")
    paths = [element.get("file") for element in xml.iterfind("devices/disk/source")]
    assert paths == [str(target / f"{wanted.name}-{disk}.{disk_format}") for disk in ("vda", "vdb")]
    for path, vault in zip(paths, vaults, strict=True):
        (tmp_path / "model").write_bytes(vault.models[-1])
        qemu_img("compare", "-f", disk_format, "-F", "raw", path, tmp_path / "model")
    assert not made.started
    assert sorted(each.name for each in target.iterdir()) == sorted(Path(path).name for path in paths)


@pytest.mark.bed
def test_a_restored_vm_starts_if_asked(bed: Bed, connection: Connection, tmp_path: Path, target: Path) -> None:
    vaults = two_disks(tmp_path)
    made = restore_machine(connection, order(bed, vaults, target, start=True), context(tmp_path))
    assert (made.started, made.start_error) == (True, None)
    assert connection.guest(made.uuid).is_active()


@pytest.mark.bed
def test_a_vm_that_cannot_start_stays_and_tells_why(
    bed: Bed, connection: Connection, tmp_path: Path, target: Path
) -> None:
    wanted = order(bed, two_disks(tmp_path), target, start=True)
    missing = re.sub("<kernel>[^<]*", "<kernel>/nowhere/kernel", wanted.domain_xml)
    made = restore_machine(connection, replace_order(wanted, domain_xml=missing), context(tmp_path))
    assert not made.started
    assert "/nowhere/kernel" in (made.start_error or "")
    assert connection.guest(made.uuid).name == wanted.name


@pytest.mark.bed
def test_uefi_variables_come_with_it(bed: Bed, connection: Connection, tmp_path: Path, target: Path) -> None:
    variables = Path("/usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes()
    wanted = order(bed, two_disks(tmp_path), target, nvram=variables, nvram_path=target / "back.fd")
    made = restore_machine(connection, wanted, context(tmp_path))
    assert (target / "back.fd").read_bytes() == variables
    assert f">{target / 'back.fd'}</nvram>" in connection.guest(made.uuid).inactive_xml()


@pytest.mark.bed
def test_the_state_of_a_tpm_comes_with_it(
    bed: Bed, connection: Connection, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    buffer = io.BytesIO()
    (tmp_path / "state" / "tpm2").mkdir(parents=True)
    (tmp_path / "state" / "tpm2" / "tpm2-00.permall").write_bytes(b"sealed")
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(tmp_path / "state", arcname=".")
    wanted = order(bed, two_disks(tmp_path), target, files={"tpm.tar": buffer.getvalue()})

    made = restore_machine(connection, wanted, context(tmp_path))

    there = tpm_directory("qemu:///session", made.uuid)
    assert there.is_relative_to(tmp_path / "config")
    assert (there / "tpm2" / "tpm2-00.permall").read_bytes() == b"sealed"


@pytest.mark.bed
@pytest.mark.parametrize("fault", ["segment", "definition", "nvram", "cancel", "target", "tpm"])
def test_a_failed_restore_leaves_neither_vm_nor_file(
    bed: Bed, connection: Connection, tmp_path: Path, target: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    vaults = two_disks(tmp_path)
    wanted = order(bed, vaults, target, nvram=b"variables", nvram_path=target / "back.fd")
    how = context(tmp_path)
    expected: type[Exception] = LibvirtFailed
    left: list[str] = []
    if fault == "segment":
        vaults[1].store.delete(vaults[1].made[0].rows[4].name)
        expected = DiskLost
    elif fault == "definition":
        xml = wanted.domain_xml.replace("<devices>", "<devices><emulator>/nowhere/qemu</emulator>")
        wanted = replace_order(wanted, domain_xml=xml)
    elif fault == "nvram":
        (target / "back.fd").write_bytes(b"mine")
        expected, left = TargetExists, ["back.fd"]
    elif fault == "cancel":
        how.cancel.set()
        expected = Interrupted
    elif fault == "target":
        wanted.disks[1].path.write_bytes(b"mine")
        expected, left = TargetExists, [wanted.disks[1].path.name]
    else:
        wanted = replace_order(wanted, files={"tpm.tar": b"no archive"})
        expected = MetadataInvalid

    with pytest.raises(expected):
        restore_machine(connection, wanted, how)

    assert sorted(each.name for each in target.iterdir()) == left
    assert all((target / name).read_bytes() == b"mine" for name in left)
    assert defined(bed) == [f"{bed.directory.name}-vm"]
    assert not list((tmp_path / "config").rglob("*"))


@pytest.mark.bed
def test_a_name_that_is_taken_is_refused_before_anything_is_written(
    bed: Bed, connection: Connection, tmp_path: Path, target: Path
) -> None:
    wanted = order(bed, two_disks(tmp_path), target)
    with pytest.raises(TargetExists, match=f"VM {bed.directory.name}-vm"):
        restore_machine(connection, replace_order(wanted, name=f"{bed.directory.name}-vm"), context(tmp_path))
    assert list(target.iterdir()) == []


@pytest.mark.bed
def test_one_disk_only(bed: Bed, connection: Connection, tmp_path: Path, target: Path) -> None:
    made = restore_machine(connection, order(bed, two_disks(tmp_path)[:1], target), context(tmp_path))
    xml = etree.fromstring(connection.guest(made.uuid).inactive_xml())
    assert [element.get("dev") for element in xml.iterfind("devices/disk/target")] == ["vda"]
    assert any(warning.startswith("vdb:") for warning in made.warnings)


@pytest.mark.bed
def test_thin_on_the_base_image(bed: Bed, connection: Connection, tmp_path: Path, target: Path) -> None:
    vaults = two_disks(tmp_path)
    base = target / "golden"
    base.write_bytes(vaults[0].models[0])
    wanted = order(bed, vaults, target)
    first, second = wanted.disks
    thin = [replace_order(first, base=RawBase(base)), second]
    made = restore_machine(connection, replace_order(wanted, disks=thin), context(tmp_path))
    (tmp_path / "model").write_bytes(vaults[0].models[-1])
    qemu_img("compare", "-f", "qcow2", "-F", "raw", thin[0].path, tmp_path / "model")
    assert list(made.thin) == ["vda"]
    assert made.thin["vda"].restored.written == 2 * CLUSTER


@pytest.mark.system
def test_a_disk_on_a_block_device(system_bed: Bed, stale: Path, tmp_path: Path) -> None:
    vaults = two_disks(tmp_path)
    with loop_device(stale) as device, Connection(system_bed.uri) as connection:
        source = system_bed.machine([system_bed.qcow2("a"), system_bed.raw("b")])
        name = f"{system_bed.directory.name}-back"
        first, second = place(vaults, name, system_bed.directory)
        placed = [first, replace_order(second, path=device, format=Format.RAW, device=True)]
        made = restore_machine(connection, MachineOrder(name, source.xml(inactive=True), placed), context(tmp_path))
        try:
            xml = etree.fromstring(connection.guest(made.uuid).inactive_xml())
            assert [dict(element.attrib) for element in xml.iterfind("devices/disk/source")] == [
                {"file": str(placed[0].path)},
                {"dev": str(device)},
            ]
            assert device.read_bytes()[:SIZE] == vaults[1].models[-1]
        finally:
            connection.guest(made.uuid).undefine()


@pytest.mark.bed
@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "x" * 201, "new\nline"])
def test_a_name_that_is_no_file_name_is_refused(bed: Bed, connection: Connection, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadName):
        restore_machine(connection, MachineOrder(name, "<domain/>", []), context(tmp_path))
    assert defined(bed) == []
