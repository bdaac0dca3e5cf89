"""The test bed itself: guests boot, their records verify, a freeze holds writes, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import libvirt
import pytest

from tests.bed import Bed, BedError, RecordsWrong, SessionHost, SystemHost, check_records

pytestmark = pytest.mark.bed
MIB = 1024 * 1024


def test_boots_writes_and_goes_on_after_a_reboot(bed: Bed) -> None:
    bed.qcow2("base")
    a, b = bed.qcow2("a", None, backing="base.qcow2"), bed.raw("b")
    vm = bed.machine([a, b], pause=0)
    started = time.monotonic()
    vm.boot()
    assert time.monotonic() - started < 20
    assert vm.verdict()
    vm.wait_for_records(50)
    vm.shut_down()
    last = vm.last_ack()
    newest = check_records([(a.path, "qcow2"), b.path], last)
    assert last >= 50
    assert newest[0] - last <= 1

    mark = vm.mark()
    vm.boot()
    assert vm.verdict(since=mark)
    vm.wait_for(f"ACK {newest[1] + 1}\n", since=mark)
    vm.power_off()
    assert check_records([(a.path, "qcow2"), b.path], vm.last_ack())[0] > newest[0]


@pytest.mark.slow
def test_damage_is_found_by_host_and_guest(bed: Bed) -> None:
    a, b = bed.raw("a"), bed.raw("b")
    vm = bed.machine([a, b], pause=0)
    vm.boot()
    vm.wait_for_records(100)
    vm.power_off()
    check_records([a.path, b.path], vm.last_ack())
    with b.path.open("r+b") as disk:
        record = next(at for at in range(4096, 16 * MIB, 4096) if os.pread(disk.fileno(), 8, at) == b"RKRECORD")
        disk.seek(record + 1000)
        disk.write(b"!")
    with pytest.raises(RecordsWrong, match=r"b\.raw: record \d+ in slot \d+ is damaged"):
        check_records([a.path, b.path])
    mark = vm.mark()
    vm.boot()
    assert not vm.verdict(since=mark)


def test_paused_guest_has_written_all_it_acknowledged(bed: Bed, tmp_path: Path) -> None:
    a, b = bed.raw("a"), bed.raw("b")
    vm = bed.machine([a, b], pause=0)
    vm.boot()
    for _ in range(3):
        vm.wait_for_records(30)
        vm.domain.suspend()
        copies = [Path(shutil.copy(disk.path, tmp_path)) for disk in (a, b)]
        check_records(copies, vm.last_ack())
        vm.domain.resume()


def test_disks_copied_one_after_the_other_are_found_out(bed: Bed, tmp_path: Path) -> None:
    a, b = bed.raw("a"), bed.raw("b")
    vm = bed.machine([a, b], pause=0)
    vm.boot()
    vm.wait_for_records(20)
    first = Path(shutil.copy(a.path, tmp_path))
    vm.wait_for_records(20)
    vm.domain.suspend()
    second = Path(shutil.copy(b.path, tmp_path))
    with pytest.raises(RecordsWrong, match="different moments"):
        check_records([first, second])


@pytest.mark.slow
def test_freeze_holds_writes_to_a_mounted_file_system(bed: Bed, tmp_path: Path) -> None:
    disk = bed.raw("a", 64 * MIB)
    vm = bed.machine([disk], mode="fs", pause=0)
    vm.boot()
    vm.wait_for_records(20)
    assert vm.agent("guest-fsfreeze-freeze") == 1
    assert vm.agent("guest-fsfreeze-status") == "frozen"
    vm.wait_for("HOOK freeze")
    time.sleep(0.3)  # what was acknowledged before the freeze may still be on its way through the serial line
    frozen_at = vm.last_ack()
    time.sleep(1.5)
    assert vm.last_ack() == frozen_at

    copy = Path(shutil.copy(disk.path, tmp_path))
    assert "needs_recovery" not in features(copy)
    records = tmp_path / "records"
    subprocess.run(["/usr/sbin/debugfs", "-R", f"dump /records {records}", copy], check=True, capture_output=True)
    check_records([records], frozen_at)

    assert vm.agent("guest-fsfreeze-thaw") == 1
    vm.wait_for("HOOK thaw")
    vm.wait_for_records(20)
    assert "needs_recovery" in features(Path(shutil.copy(disk.path, tmp_path / "mounted")))


def features(image: Path) -> str:
    output = subprocess.run(["/usr/sbin/dumpe2fs", "-h", image], check=True, capture_output=True, text=True).stdout
    found = re.search(r"^Filesystem features:(.*)$", output, re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.slow
def test_freeze_can_be_slow(bed: Bed) -> None:
    vm = bed.machine([bed.raw("a", 64 * MIB)], mode="fs", freeze_delay=3)
    vm.boot()
    vm.wait_for_records(1)
    started = time.monotonic()
    vm.agent("guest-fsfreeze-freeze")
    assert time.monotonic() - started > 2.5
    vm.agent("guest-fsfreeze-thaw")


def test_daemon_can_be_killed_and_the_guest_goes_on(bed: Bed, session_host: SessionHost) -> None:
    a, b = bed.raw("a"), bed.raw("b")
    vm = bed.machine([a, b])
    vm.boot()
    old = session_host.pid
    session_host.kill()
    assert not Path(f"/proc/{old}").exists()
    vm.wait_for_records(20)
    with pytest.raises(libvirt.libvirtError):
        session_host.connect()
    session_host.start()
    assert session_host.pid != old
    assert vm.running
    vm.wait_for_agent()
    assert vm.run("/bin/echo", "hello") == "hello\n"


@pytest.mark.slow
def test_programs_run_inside_the_guest_and_fail_loudly(bed: Bed) -> None:
    vm = bed.machine([bed.raw("a")], mode="idle")
    vm.boot()
    assert vm.run("/bin/cat", "/sys/block/vda/size") == f"{16 * MIB // 512}\n"
    with pytest.raises(BedError, match="No such file"):
        vm.run("/bin/cat", "/nothing")


@pytest.mark.slow
def test_check_mode_tells_and_shuts_down(bed: Bed) -> None:
    disks = [bed.raw("a"), bed.raw("b")]
    writer = bed.machine(disks, pause=0)
    writer.boot()
    writer.wait_for_records(20)
    writer.power_off()
    checker = bed.machine(disks, name="checker", mode="check")
    checker.start()
    assert checker.verdict()
    checker.wait_until_off()
    assert f"VERDICT good /dev/vda={check_records([disk.path for disk in disks])[0]} " in checker.log()


@pytest.mark.slow
def test_uefi_guest_has_its_variables(bed: Bed) -> None:
    vm = bed.machine([bed.raw("a")], mode="idle", machine="q35", uefi=True)
    vm.boot()
    assert (bed.directory / "vm.nvram").stat().st_size > 0
    assert "/sys/firmware/efi" in vm.run("/bin/ls", "-d", "/sys/firmware/efi")


def test_nothing_is_left(session_host: SessionHost) -> None:
    with Bed(session_host) as made:
        vm = made.machine([made.raw("a")], mode="idle")
        vm.start()
        directory, name = made.directory, vm.name
        assert directory.exists()
    assert not directory.exists()
    connection = session_host.connect()
    assert name not in [domain.name() for domain in connection.listAllDomains()]
    connection.close()
    assert not [line for line in Path("/proc").glob("[0-9]*/cmdline") if name.encode() in read_or_empty(line)]


def read_or_empty(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.slow
@pytest.mark.system
def test_block_device_on_the_system_daemon(system_bed: Bed, system_host: SystemHost) -> None:
    a, b = system_bed.qcow2("a"), system_bed.loop("b")
    vm = system_bed.machine([a, b], pause=0)
    vm.boot()
    vm.wait_for_records(50)
    vm.shut_down()
    check_records([(a.path, "qcow2"), b.path], vm.last_ack())
    check_records([(a.path, "qcow2"), system_bed.loop_file(b)], vm.last_ack())


@pytest.mark.system
def test_read_errors_can_be_switched_on(system_bed: Bed) -> None:
    disk, trigger = system_bed.failing("a")
    vm = system_bed.machine([disk], mode="idle")
    vm.boot()
    read = ("/bin/dd", "if=/dev/vda", "of=/dev/null", "bs=4k", "count=1", "iflag=direct")
    vm.run(*read)
    trigger.touch()
    with pytest.raises(BedError, match="Input/output error"):
        vm.run(*read)
    trigger.unlink()
    vm.run(*read)
