"""The checker of the oracle must see every way in which a disk can be wrong; else no other test is worth anything."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.bed import RecordsWrong, check_records, make_header, make_record, read_records, slot_of
from tests.bed.image import SOURCES

BLOCK = 4096
SLOTS = 63


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two disks with 100 records each: the first 37 were overwritten by later ones."""
    paths = [tmp_path / "a", tmp_path / "b"]
    for number, path in enumerate(paths):
        fill(path, number, 100)
    return paths


def fill(path: Path, number: int, newest: int) -> None:
    path.write_bytes(bytes((SLOTS + 1) * BLOCK))
    for n in range(1, newest + 1):
        put(path, slot_of(n, SLOTS), make_record(n, number))
    put(path, 0, make_header(newest, number, SLOTS))


def put(path: Path, slot: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(slot * BLOCK)
        file.write(data)


def test_right_disks_pass(pair: list[Path]) -> None:
    assert check_records(pair, acknowledged=100) == [100, 100]


def test_first_disk_may_be_ahead_by_one(pair: list[Path]) -> None:
    fill(pair[0], 0, 101)
    assert check_records(pair, acknowledged=100) == [101, 100]


def test_record_before_its_header_is_right(pair: list[Path]) -> None:
    put(pair[0], slot_of(101, SLOTS), make_record(101, 0))
    assert check_records(pair) == [100, 100]


def test_empty_disks_have_no_records(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(BLOCK * 4))
    assert check_records([tmp_path / "a", tmp_path / "b"]) == [0, 0]


@pytest.mark.parametrize("at", [0, 63, 64, 2048, BLOCK - 1])
@pytest.mark.parametrize("n", [38, 77, 100])
def test_one_flipped_bit_is_found(pair: list[Path], n: int, at: int) -> None:
    record = bytearray(make_record(n, 1))
    record[at] ^= 1
    put(pair[1], slot_of(n, SLOTS), bytes(record))
    with pytest.raises(RecordsWrong, match=f"^1 wrong: b: record {n} .* damaged or lost"):
        check_records(pair)


def test_torn_record_is_found(pair: list[Path]) -> None:
    old, new = make_record(80 - SLOTS, 0), make_record(80, 0)
    put(pair[0], slot_of(80, SLOTS), new[:512] + old[512:])
    with pytest.raises(RecordsWrong, match=r"a: record 80 .* damaged or lost"):
        check_records(pair)


def test_lost_write_is_found(pair: list[Path]) -> None:
    put(pair[0], slot_of(80, SLOTS), make_record(80 - SLOTS, 0))
    with pytest.raises(RecordsWrong, match=r"a: record 80 .* an older one \(17\)"):
        check_records(pair)


def test_record_of_the_other_disk_is_found(pair: list[Path]) -> None:
    put(pair[1], slot_of(80, SLOTS), make_record(80, 0))
    with pytest.raises(RecordsWrong, match="b: record 80"):
        check_records(pair)


def test_write_from_after_the_capture_is_found(pair: list[Path]) -> None:
    put(pair[0], slot_of(102, SLOTS), make_record(102, 0))
    with pytest.raises(RecordsWrong, match=r"a: record 102 .* newer than the header"):
        check_records(pair)


def test_damaged_header_is_found(pair: list[Path]) -> None:
    put(pair[0], 0, make_header(100, 0, SLOTS)[:-1] + b"x")
    with pytest.raises(RecordsWrong, match="a: the header is damaged"):
        check_records(pair)


def test_short_disk_is_found(pair: list[Path]) -> None:
    with pair[1].open("r+b") as file:
        file.truncate(60 * BLOCK)
    with pytest.raises(RecordsWrong, match="b: the disk ends before slot 60"):
        check_records(pair)


@pytest.mark.parametrize(("first", "second"), [(102, 100), (99, 100), (100, 0)])
def test_disks_of_different_moments_are_found(pair: list[Path], first: int, second: int) -> None:
    fill(pair[0], 0, first)
    fill(pair[1], 1, second)
    with pytest.raises(RecordsWrong, match="different moments"):
        check_records(pair)


def test_lost_acknowledged_record_is_found(pair: list[Path]) -> None:
    with pytest.raises(RecordsWrong, match="record 101 was acknowledged"):
        check_records(pair, acknowledged=101)


def test_images_are_converted(pair: list[Path], tmp_path: Path) -> None:
    image = tmp_path / "b.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", pair[1], image], check=True)
    assert check_records([pair[0], (image, "qcow2")]) == [100, 100]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's program, run here on files."""
    program = tmp_path_factory.mktemp("writer") / "records"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCES / "records.c"], check=True)
    return program


def test_guest_and_host_agree(writer: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(bytes((SLOTS + 1) * BLOCK))
    log = tmp_path / "log"
    for _ in range(2):  # the second start goes on where the first was killed
        with log.open("a") as output:
            process = subprocess.Popen([writer, "write", "0", "0", *paths], stdout=output)
            wait_for_growth(log)
            process.kill()
            process.wait()
    printed = re.findall(r"ACK (\d+)\n", log.read_text())
    newest = check_records(paths, acknowledged=int(printed[-1]))
    assert newest[0] > SLOTS
    done = subprocess.run([writer, "check", "0", *paths], capture_output=True, text=True, check=True)
    assert done.stdout == f"VERDICT good {paths[0]}={newest[0]} {paths[1]}={newest[1]}\n"


def wait_for_growth(log: Path) -> None:
    """Until the writer went round all slots once more."""
    start = log.read_text().count("ACK")
    for _ in range(2000):
        if log.read_text().count("ACK") > start + SLOTS + 5:
            return
        time.sleep(0.01)
    raise AssertionError("the writer does not write")


def test_guest_finds_damage_too(writer: Path, pair: list[Path]) -> None:
    put(pair[0], slot_of(80, SLOTS), bytes(BLOCK))
    done = subprocess.run([writer, "check", "0", *pair], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"RECORDS WRONG {pair[0]} record 80 in slot {slot_of(80, SLOTS)}: damaged or lost" in done.stdout
    assert "VERDICT bad" in done.stdout
    put(pair[0], slot_of(80, SLOTS), make_record(80, 0))
    assert read_records(pair[0], 0).problems == ()
