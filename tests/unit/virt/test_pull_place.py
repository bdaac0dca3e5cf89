"""Where scratch files and sockets go: room, names, owners, and what is taken away again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from raksha.config import Settings
from raksha.errors import CaptureFailed, NoSpaceForScratch
from raksha.virt.libvirt import pull_place
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.pull_place import Place, place_of

MIB = 1 << 20


def settings(path: Path, **changes: object) -> Settings:
    return Settings("qemu:///session", path / "state", **changes)  # type: ignore[arg-type]


def test_one_directory_per_run_and_vm(tmp_path: Path) -> None:
    places = {place_of(settings(tmp_path), run, vm) for run in ("aaaa", "bbbb") for vm in ("1111", "2222")}
    assert len(places) == 4
    assert {place.directory.parent for place in places} == {tmp_path / "state/scratch"}
    elsewhere = place_of(settings(tmp_path, scratch_dir=tmp_path / "fast"), "../../etc", "1-1")
    assert elsewhere.directory == tmp_path / "fast/raksha-etc-11"


def test_room(tmp_path: Path) -> None:
    place = place_of(settings(tmp_path), "run", "vm")
    pull_place.check_space("vm", place, [MIB], settings(tmp_path, overlay_reserve_min=MIB))
    free = pull_place.free_bytes(tmp_path)
    pull_place.check_space("vm", place, [free], settings(tmp_path, overlay_reserve_min=0, overlay_reserve=0.5))
    for reserve in ({"overlay_reserve_min": 2 * free}, {"overlay_reserve": 1.0, "overlay_reserve_max": 1 << 60}):
        with pytest.raises(NoSpaceForScratch, match="bytes free"):
            pull_place.check_space("vm", place, [2 * free], settings(tmp_path, **reserve))
    both = settings(tmp_path, overlay_reserve_min=free // 2 + MIB, overlay_reserve=0.0)
    with pytest.raises(NoSpaceForScratch):  # together they want more than there is
        pull_place.check_space("vm", place, [1, 1], both)


def test_made_and_removed(tmp_path: Path) -> None:
    place = Place(tmp_path / "place")
    pull_place.make("vm", place, "<domain/>", [])
    assert stat.S_IMODE(place.directory.stat().st_mode) == 0o700
    place.scratch("vda").touch()
    pull_place.remove(place)
    pull_place.remove(place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.system
def test_belongs_to_whom_qemu_runs_as(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    os.chown(disk, 65534, 65534)
    label = "<domain><seclabel model='dac'><label>+12:+34</label></seclabel></domain>"
    for number, (xml, owner) in enumerate([(label, (12, 34)), ("<domain/>", (65534, 65534))]):
        place = Place(tmp_path / str(number))
        pull_place.make("vm", place, xml, [Layer("pool/volume", "network", "raw"), Layer(str(disk), "file", "raw")])
        status = place.directory.stat()
        assert (status.st_uid, status.st_gid) == owner


def test_what_stands_there_stays(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "place").symlink_to(tmp_path / "theirs")
    with pytest.raises(FileExistsError):
        pull_place.make("vm", Place(tmp_path / "place"), "<domain/>", [])


def test_name_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(CaptureFailed, match="scratch_dir"):
        pull_place.make("vm", Place(tmp_path / ("x" * 120)), "<domain/>", [])
