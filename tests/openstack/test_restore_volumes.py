"""Volumes that an agent writes where they are: new ones, and over those of the project; what becomes of cancelled and
of killed attempts; and the disks of a server that is stopped."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from tests.openstack.cloud.configuration import NFS_EXPORT
from tests.openstack.cloud.layout import CEPH_CONF, CEPH_POOL, DATA
from tests.openstack.cloud.rest import Cloud, Refused
from tests.openstack.guest import Guest
from tests.openstack.restores import ENDED, left, restored
from tests.openstack.service import Service, canary

pytestmark = pytest.mark.timeout(1500)

MIB, GIB = 1 << 20, 1 << 30
KINDS = ("nfs", "ceph")
#: what Cinder's own metadata says of one that is half-written
HALF_WRITTEN = "raksha_half_written"


def place(volume: str, kind: str) -> str:
    """As qemu-img names it."""
    if kind == "ceph":
        return f"rbd:{CEPH_POOL}/volume-{volume}:conf={CEPH_CONF}"
    return str(NFS_EXPORT / f"volume-{volume}")


def put(volume: str, kind: str, pieces: dict[int, bytes]) -> None:
    """Write to a volume from outside, at these offsets."""
    for offset, data in pieces.items():
        if kind == "nfs":
            with (NFS_EXPORT / f"volume-{volume}").open("r+b") as volume_file:
                volume_file.seek(offset)
                volume_file.write(data)
            continue
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            words = ["-c", f"write -s {file.name} {offset} {len(data)}", "-c", "flush"]
            subprocess.run(["qemu-io", "-f", "raw", *words, place(volume, kind)], check=True, capture_output=True)


def digest(volume: str, kind: str, folder: Path) -> str:
    """Of all that the volume holds."""
    raw = folder / "read.raw"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", place(volume, kind), raw], check=True)
    with raw.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    raw.unlink()
    return found


def expected(pieces: dict[int, bytes], size: int = GIB) -> str:
    found, at = hashlib.sha256(), 0
    for offset, data in sorted(pieces.items()):
        found.update(bytes(offset - at))
        found.update(data)
        at = offset + len(data)
    found.update(bytes(size - at))
    return found.hexdigest()


def taken(volume: str, kind: str) -> int:
    """Bytes that it takes in its storage."""
    if kind == "nfs":
        return (NFS_EXPORT / f"volume-{volume}").stat().st_blocks * 512
    words = ["rbd", "-c", CEPH_CONF, "diff", f"{CEPH_POOL}/volume-{volume}"]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[1:]
    return sum(int(line.split()[1]) for line in told)


class Protected(Struct, frozen=True):
    """A server that was backed up twice, and what its volumes held."""

    server: str
    volumes: dict[str, str]
    runs: tuple[Any, ...]
    #: by run, what each volume held at which offset
    held: tuple[dict[str, dict[int, bytes]], ...]


@pytest.fixture(scope="module")
def protected(raksha: Service, demo: Cloud) -> Iterator[Protected]:
    """It is stopped, and has hardly booted: nothing of it is used but its disks."""
    volumes = {kind: demo.volume(f"data-{kind}", kind) for kind in KINDS}
    first = {kind: {0: os.urandom(3 * MIB), 500 * MIB + 512: os.urandom(120 * MIB)} for kind in KINDS}
    for kind, volume in volumes.items():
        put(volume, kind, first[kind])
    server = demo.server("stopped")
    try:
        for volume in volumes.values():
            demo.attach(server, volume)
        raksha.sees(demo, server)
        job = raksha.of(demo).post("/backupjobs", {"name": "volumes", "vms": [{"id": server}], "quiesce": "never"})
        runs = [raksha.run(demo, job["id"])]
        assert runs[0]["state"] == "available", (runs, raksha.logs()[-4000:])
        # the beginning is other data, and of the rest a part is none
        second = {}
        for kind, volume in volumes.items():
            second[kind] = {0: os.urandom(MIB), MIB: bytes(2 * MIB), 500 * MIB + 512: first[kind][500 * MIB + 512]}
            put(volume, kind, {0: second[kind][0], MIB: bytes(2 * MIB)})
        runs.append(raksha.run(demo, job["id"]))
        assert runs[1]["state"] == "available", (runs, raksha.logs()[-4000:])
        demo.nova.post(f"/servers/{server}/action", {"os-stop": None})
        demo.wait_for_server(server, "SHUTOFF")
        yield Protected(server, volumes, tuple(runs), (first, second))
    finally:
        demo.delete_server(server)
        for volume in volumes.values():
            demo.wait_for_volume(volume, "available")
            demo.delete_volume(volume)


def disks_of(raksha: Service, cloud: Cloud, run: Any, protected: Protected) -> dict[str, str]:
    """By kind of volume, its disk."""
    (vm,) = run["vms"]
    return dict(zip(KINDS, [volume["device"].removeprefix("/dev/") for volume in vm["server"]["volumes"]], strict=True))


def shown(cloud: Cloud, volume: str) -> Any:
    return cloud.cinder.get(f"/volumes/{volume}")["volume"]


def test_new_volumes_are_written_where_they_are(
    raksha: Service, protected: Protected, demo: Cloud, tmp_path: Path
) -> None:
    before = left(demo)
    for run, held in zip(protected.runs, protected.held, strict=True):
        disks = disks_of(raksha, demo, run, protected)
        wanted = [{"id": protected.server, "disks": list(disks.values())}]
        restore = restored(raksha, demo, run, {"kind": "volume"}, vms=wanted)
        assert restore["state"] == "done", (restore, raksha.logs()[-6000:])
        made = {disk["disk"]: disk["volume"] for disk in restore["result"]["vms"][0]["disks"]}
        # no way round by an image, and each was attached to this host
        assert {each["kind"] for each in restore["made"]} == {"volume", "attachment"}
        for kind, disk in disks.items():
            volume = shown(demo, made[disk])
            assert (volume["status"], volume["volume_type"], volume["attachments"]) == ("available", kind, [])
            assert volume["bootable"] == "false" and volume["size"] == 1
            assert digest(made[disk], kind, tmp_path) == expected(held[kind])
            assert taken(made[disk], kind) < 140 * MIB
            demo.delete_volume(made[disk])
    assert left(demo) == before


def test_volumes_of_the_project_are_written_over(
    raksha: Service, protected: Protected, demo: Cloud, alt: Cloud, tmp_path: Path
) -> None:
    run, held = protected.runs[1], protected.held[1]
    disks = disks_of(raksha, demo, run, protected)
    path = f"/backupjobs/{run['backupjob_id']}/backupjobruns/{run['id']}"
    own = {"nfs": demo.volume("own", "nfs", 2), "ceph": demo.volume("own", "ceph")}
    theirs = alt.volume("theirs", "ceph")
    before = left(demo)
    try:
        garbage = os.urandom(8 * MIB)
        for kind, volume in own.items():
            put(volume, kind, {0: garbage, 300 * MIB: garbage, shown(demo, volume)["size"] * GIB - 8 * MIB: garbage})
        over = {disks[kind]: volume for kind, volume in own.items()}
        body = {"target": {"kind": "volume"},
                "vms": [{"id": protected.server, "disks": list(over), "overwrite": over}]}  # fmt: skip
        for wrong in (theirs, protected.volumes["ceph"], "11111111-0000-4000-8000-000000000000"):
            for dry in (True, False):
                vms = [{"id": protected.server, "disks": [disks["ceph"]], "overwrite": {disks["ceph"]: wrong}}]
                with pytest.raises(Refused, match="overwrite") as answer:
                    raksha.of(demo).post(path, {**body, "vms": vms, "dry_run": dry})
                assert answer.value.status == 400
        assert raksha.of(demo).post(path, {**body, "dry_run": True})["problems"] == []
        restore = restored(raksha, demo, run, body["target"], vms=body["vms"])
        assert restore["state"] == "done", (restore, raksha.logs()[-6000:])
        assert {disk["volume"] for disk in restore["result"]["vms"][0]["disks"]} == set(own.values())
        for kind, volume in own.items():
            after = shown(demo, volume)
            assert (after["status"], after["attachments"], after["metadata"]) == ("available", [], {})
            assert digest(volume, kind, tmp_path) == expected(held[kind], after["size"] * GIB)
        assert left(demo) == before
    finally:
        for volume in own.values():
            demo.delete_volume(volume)
        alt.delete_volume(theirs)
    canary(raksha, demo, alt)


def begun(raksha: Service, cloud: Cloud, run: Any, body: dict[str, Any], what: str) -> Any:
    """A restore, as soon as it has told of something of this kind."""
    path = f"/backupjobs/{run['backupjob_id']}/backupjobruns/{run['id']}"
    id = raksha.of(cloud).post(path, body)["id"]

    def under_way() -> Any:
        found = raksha.of(cloud).get(f"/restores/{id}")
        assert found["state"] not in ENDED, found
        return found if any(each["kind"] == what for each in found["made"]) else None

    return raksha.wait(under_way)


def ended(raksha: Service, cloud: Cloud, restore: str) -> Any:
    def over() -> Any:
        found = raksha.of(cloud).get(f"/restores/{restore}")
        return found if found["state"] in ENDED else None

    return raksha.wait(over, 300)


@pytest.mark.parametrize(("kind", "what"), [("volume", "attachment"), ("image", "image"), ("server", "image")])
def test_what_was_cancelled_leaves_nothing(
    raksha: Service, protected: Protected, demo: Cloud, kind: str, what: str
) -> None:
    before = left(demo)
    restore = begun(raksha, demo, protected.runs[0], {"target": {"kind": kind}}, what)
    raksha.of(demo).post(f"/restores/{restore['id']}/cancel")
    over = ended(raksha, demo, restore["id"])
    assert over["state"] == "cancelled", (over, raksha.logs()[-4000:])
    assert left(demo) == before


def test_an_agent_that_was_killed_does_it_again(
    raksha: Service, protected: Protected, demo: Cloud, tmp_path: Path
) -> None:
    """New volumes are made again, and one that is written over is written from its beginning."""
    run, held = protected.runs[0], protected.held[0]
    disks = disks_of(raksha, demo, run, protected)
    own = demo.volume("own", "ceph")
    before = left(demo)
    made: set[str] = set()
    try:
        vm = {"id": protected.server, "disks": list(disks.values()), "overwrite": {disks["ceph"]: own}}
        restore = begun(raksha, demo, run, {"target": {"kind": "volume"}, "vms": [vm]}, "attachment")
        (half,) = left(demo)["volumes"] - before["volumes"]
        demo.wait_for_volume(half, "in-use")
        raksha.commands["agent"].end(signal.SIGKILL)
        assert shown(demo, half)["status"] == "in-use"
        raksha.commands["agent"].start()
        again = raksha.wait(lambda: (found := raksha.of(demo).get(f"/restores/{restore['id']}"))
                            and any(each["kind"] == "overwritten_volume" for each in found["made"])
                            and shown(demo, own)["status"] == "in-use" and found, 120)  # fmt: skip
        assert again["state"] == "running"
        raksha.commands["agent"].end(signal.SIGKILL)
        assert shown(demo, own)["metadata"][HALF_WRITTEN].endswith(" cloud")
        with pytest.raises(Refused):
            raksha.of(demo).post(
                f"/backupjobs/{run['backupjob_id']}/backupjobruns/{run['id']}",
                {"target": {"kind": "volume"}, "vms": [vm]},
            )
        raksha.commands["agent"].start()
        over = ended(raksha, demo, restore["id"])
        assert over["state"] == "done", (over, raksha.logs()[-6000:])
        result = {disk["disk"]: disk["volume"] for disk in over["result"]["vms"][0]["disks"]}
        made = left(demo)["volumes"] - before["volumes"]
        assert made == {result[disks["nfs"]]} and result[disks["ceph"]] == own
        assert half not in made
        for kind, disk in disks.items():
            assert shown(demo, result[disk])["status"] == "available"
            assert digest(result[disk], kind, tmp_path) == expected(held[kind])
        assert HALF_WRITTEN not in shown(demo, own)["metadata"]
        assert left(demo)["images"] == before["images"]
        assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "raksha-volume-" in line]
    finally:
        if raksha.commands["agent"].process is None:
            raksha.commands["agent"].start()
        for volume in {*made, own}:
            demo.delete_volume(volume)


def test_disks_of_a_stopped_server_are_restored_in_place(
    raksha: Service, protected: Protected, demo: Cloud, admin: Cloud, tmp_path: Path
) -> None:
    """One of them, then all; meanwhile nobody can start it, and then it boots."""
    server = protected.server
    first, second = protected.runs
    disks = disks_of(raksha, demo, second, protected)
    boot = Path(DATA / "nova/instances" / server / "disk")
    as_file = restored(
        raksha, demo, second, {"kind": "files", "format": "qcow2"}, vms=[{"id": server, "disks": ["vda"]}]
    )
    assert as_file["state"] == "done", (as_file, raksha.logs()[-4000:])
    was = image_digest(Path(as_file["result"]["vms"][0]["disks"][0]["path"]), tmp_path)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4M", boot], check=True, capture_output=True)
    only = [{"id": server, "disks": [disks["ceph"]]}]
    restore = begun(raksha, demo, first, {"target": {"kind": "in_place"}, "vms": only}, "disk")
    shown_now = demo.nova.get(f"/servers/{server}")["server"]
    assert shown_now["locked"] and restore["id"] in shown_now["locked_reason"]
    with pytest.raises(Refused) as answer:
        demo.nova.post(f"/servers/{server}/action", {"os-start": None})
    assert answer.value.status == 409
    assert ended(raksha, demo, restore["id"])["state"] == "done", raksha.logs()[-6000:]
    assert not demo.nova.get(f"/servers/{server}")["server"]["locked"]
    held = {"nfs": protected.held[1]["nfs"], "ceph": protected.held[0]["ceph"]}
    for kind, volume in protected.volumes.items():
        assert digest(volume, kind, tmp_path) == expected(held[kind])
    assert image_digest(boot, tmp_path) != was
    everything = restored(raksha, demo, second, {"kind": "in_place"}, vms=[{"id": server}])
    assert everything["state"] == "done", (everything, raksha.logs()[-6000:])
    for kind, volume in protected.volumes.items():
        assert digest(volume, kind, tmp_path) == expected(protected.held[1][kind])
    assert image_digest(boot, tmp_path) == was
    demo.nova.post(f"/servers/{server}/action", {"os-start": None})
    demo.wait_for_server(server, "ACTIVE")
    running = restored(raksha, demo, second, {"kind": "in_place"}, vms=[{"id": server}])
    assert (running["state"], running["error"]["code"]) == ("error", "vm_busy"), running
    guest = Guest(admin, server)
    guest.wait_until_ready()
    guest.close()


def image_digest(path: Path, folder: Path) -> str:
    """Of what a qcow2 image shows."""
    raw = folder / "boot.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    with raw.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    raw.unlink()
    return found
