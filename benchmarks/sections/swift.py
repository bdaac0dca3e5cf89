"""A full backup into a real Swift on loopback, against a plain parallel upload of the same bytes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.contenders import Raksha, fresh, upload, zstd_alone
from benchmarks.goals import Goal
from benchmarks.image import make_image
from benchmarks.machine import a_bed, idle
from benchmarks.measuring import Figures, Place, settle
from tests.bed.swift import running

TITLE = "To Swift"
ABOUT = """\
Real proxy, account, container and object servers, one replica, on the same cores. The upload is eight threads of
python-swiftclient that send the files of a directory vault of the same disk; the compression is `zstd alone`, as above.
"""
GOALS = (
    Goal(
        "full: time of (plain upload + zstd alone) / time of Raksha",
        lambda all_: (all_["plain upload"] + all_["zstd alone"]) / all_["raksha full to Swift"],
        0.8,
    ),
)


def measure(place: Place, figures: Figures) -> None:
    disk = place.directory / "disk.raw"
    make_image(disk, place.quick)
    with (
        TemporaryDirectory(prefix="rksw-", dir=place.directory) as folder,
        running(Path(folder)) as swift,
        a_bed() as bed,
    ):
        vm = idle(bed, "off", disk).name
        local = Raksha(place.directory, bed.uri)
        local.full(vm)
        for number in range(place.rounds):
            settle(disk, local.vault)
            figures.ran("zstd alone", zstd_alone(disk))
            settle(disk, local.vault)
            figures.ran("plain upload", upload(local.vault, f"plain{number}", swift.env))
            settle(disk)
            state = place.directory / f"to-swift-{number}"
            remote = Raksha(state, bed.uri, f"swift://bench{number}")
            remote.environment |= swift.env
            state.mkdir()
            figures.ran("raksha full to Swift", remote("backup", vm, "--full"))
            fresh(state)
        fresh(local.vault)
