"""The whole promise, once: two tenants, servers with volumes, schedules, trouble between the runs, and all comes back.

The guests write numbered records all the time (`tests/bed/records.py` says what must hold of them at any instant).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.openstack.cloud.layout import CEPH_CONF, CEPH_POOL, KEYSTONE_URL, PASSWORD, REGION, VENV
from tests.openstack.cloud.rest import Cloud
from tests.openstack.guest import Guest
from tests.openstack.restores import asked_for, left, remove
from tests.openstack.service import ENDED, Service, canary

pytestmark = pytest.mark.timeout(1800)

#: bytes at the start of each volume that records are in
SPAN = 4 << 20
#: µs between two records
PAUSE = 20_000
#: seconds; the least that the deployment of these tests allows
EVERY = 60
#: what a tenant finds below a run's folder, as the specification has it, and the map that Raksha itself reads by
LAYOUT = re.compile(r"run\.json|[0-9a-f-]{36}/(VMMetadata|vd[abc]/(Backup|BackupMetadata|BackupMap-[0-9a-f]{64}))")


class Protected:
    """A tenant's server with a volume on NFS and one in Ceph, and the job that protects it."""

    def __init__(self, raksha: Service, cloud: Cloud, admin: Cloud) -> None:
        self.raksha, self.cloud, self._admin = raksha, cloud, admin
        self.vm = cloud.server("all-of-it")
        self.volumes = [cloud.volume(kind, kind) for kind in ("nfs", "ceph")]
        for volume in self.volumes:
            cloud.attach(self.vm, volume)
        self.guest = Guest(admin, self.vm)
        self.job = ""

    def write(self, *disks: str) -> None:
        """From now on; what is there must be whole."""
        self.guest.shell("killall records; sleep 0.2; killall -9 records; true")
        paths = " ".join(f"/dev/{disk}" for disk in disks)
        script = f"exec records write {SPAN} {PAUSE} {paths} >/run/acks 2>&1"
        self.guest.agent("guest-exec", path="/bin/sh", arg=["-c", script])
        self.raksha.wait(self.acknowledged)

    def acknowledged(self) -> int:
        """The newest record that the guest was told is on all disks."""
        return int(self.guest.shell("grep ACK /run/acks | tail -n 1 | cut -d ' ' -f 2").strip() or 0)

    def protect(self) -> None:
        self.raksha.sees(self.cloud, self.vm)
        body = {"name": "each minute", "vms": [{"id": self.vm}], "schedule": {"every": EVERY}}
        self.job = self.raksha.of(self.cloud).post("/backupjobs", body)["id"]

    def runs(self) -> list[Any]:
        """The newest first."""
        return list(self.raksha.of(self.cloud).get(f"/backupjobs/{self.job}/backupjobruns")["backupjobruns"])

    def point_after(self, earlier: Sequence[Any]) -> Any:
        """The first that a schedule makes after those runs."""
        known = {run["id"] for run in earlier}

        def made() -> Any:
            runs = (run for run in reversed(self.runs()) if run["id"] not in known)
            return next((run["id"] for run in runs if run["state"] == "available"), None)

        found = self.raksha.wait(made, 300)
        run = self.raksha.of(self.cloud).get(f"/backupjobs/{self.job}/backupjobruns/{found}")
        assert run["trigger"] == "schedule", run
        return run

    def rest(self) -> None:
        """No run is under way, and none will be."""
        api = self.raksha.of(self.cloud)
        api.put(f"/backupjobs/{self.job}", {"enabled": False}, headers={"If-Match": "*"})
        self.raksha.wait(lambda: all(run["state"] in ENDED for run in self.runs()), 240)

    def delete(self) -> None:
        self.guest.close()
        self.cloud.delete_server(self.vm)
        for volume in self.volumes:
            self.cloud.delete_volume(volume)

    def new_guest(self, server: str) -> Guest:
        guest = Guest(self._admin, server)
        guest.wait_until_ready()
        return guest


def kinds(run: Any) -> dict[str, str]:
    (vm,) = run["vms"]
    return {disk["resource"]: disk["backup"]["kind"] for disk in vm["resources"] if disk["backup"] is not None}


def sent(run: Any) -> int:
    """Bytes that went to the vault."""
    (vm,) = run["vms"]
    return sum(disk["progress"]["bytes_sent"] for disk in vm["resources"] if disk["backup"] is not None)


def check(guest: Guest, disks: Sequence[str], at_least: int) -> None:
    """All records up to the newest are on all disks, which are of one instant."""
    told = guest.shell(f"records check {SPAN} {' '.join(f'/dev/{disk}' for disk in disks)}")
    newest = [int(each) for each in re.findall(r"=(\d+)", told)]
    assert "VERDICT good" in told and len(newest) == len(disks) and min(newest) >= at_least > 0, (told, at_least)


def openstack(cloud: Cloud, *words: str | Path) -> str:
    """The command, as the tenant calls it."""
    login = {
        "OS_AUTH_URL": KEYSTONE_URL, "OS_USERNAME": cloud.name, "OS_PASSWORD": PASSWORD, "OS_PROJECT_NAME": cloud.name,
        "OS_USER_DOMAIN_ID": "default", "OS_PROJECT_DOMAIN_ID": "default", "OS_REGION_NAME": REGION,
        "OS_IDENTITY_API_VERSION": "3", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    command = [str(VENV / "bin/openstack"), *map(str, words)]
    done = subprocess.run(
        command, env={**os.environ, **login}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def saved(cloud: Cloud, container: str, points: Sequence[Any], vm: str, disk: str, folder: Path) -> Path:
    """The newest point's copy of a disk with those that it builds on, each where the container has it."""
    for run in points:
        name = f"{run['backupjob_id']}/{run['id']}/{vm}/{disk}/Backup"
        target = folder / name
        target.parent.mkdir(parents=True)
        openstack(cloud, "object", "save", "--file", target, container, name)
    return target


def same(image: Path, other: str) -> None:
    """What other people's tools make of it is the disk `other`, byte for byte. Raises `CalledProcessError`."""
    raw = image.with_name("converted.raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", raw, other], check=True)


@pytest.fixture
def both(raksha: Service, demo: Cloud, alt: Cloud, admin: Cloud) -> Iterator[list[Protected]]:
    """Both tenants', with records being written, and nothing of them at the end."""
    with ExitStack() as undo:
        found = []
        for cloud in (demo, alt):
            undo.callback(remove, cloud, left(cloud))
            found.append(Protected(raksha, cloud, admin))
        for each in found:
            each.guest.wait_until_ready()
            each.write("vdb", "vdc")
        yield found


def test_two_tenants_lose_their_servers_and_get_them_back(
    raksha: Service, both: list[Protected], tmp_path: Path
) -> None:
    one, other = both
    known: list[list[int]] = [[each.acknowledged() for each in both]]
    for each in both:
        each.protect()
    points = [[each.point_after([]) for each in both]]
    for first in points[0]:
        assert kinds(first) == {"vda": "full", "vdb": "full", "vdc": "full"}, first

    one.cloud.nova.post(f"/servers/{one.vm}/action", {"reboot": {"type": "HARD"}})
    one.cloud.wait_for_server(one.vm, "ACTIVE")
    one.guest.wait_until_ready()
    one.write("vdb", "vdc")
    other.write("vdb")
    other.cloud.detach(other.vm, other.volumes[1])
    known.append([each.acknowledged() for each in both])
    earlier = [each.runs() for each in both]
    points.append([each.point_after(runs) for each, runs in zip(both, earlier, strict=True)])
    for each in both:
        each.rest()
    assert kinds(points[1][0]) == dict.fromkeys(("vda", "vdb", "vdc"), "incremental"), points[1][0]
    assert kinds(points[1][1]) == dict.fromkeys(("vda", "vdb"), "incremental"), points[1][1]
    for full, incremental in zip(*points, strict=True):
        # all records that there can be, on two volumes, and what booting has changed
        assert sent(incremental) < min(sent(full), 4 * SPAN), (sent(full), sent(incremental))
    for each in both:
        each.delete()

    for number, runs in enumerate(points):
        disks = [["vdb", "vdc"], ["vdb", "vdc"] if number == 0 else ["vdb"]]
        wanted = [asked_for(raksha, each.cloud, run, {"kind": "server"}) for each, run in zip(both, runs, strict=True)]
        done = [wait() for wait in wanted]
        for each, restore, volumes, least in zip(both, done, disks, known[number], strict=True):
            assert restore["state"] == "done", (restore, raksha.logs()[-6000:])
            guest = each.new_guest(restore["result"]["vms"][0]["vm"])
            check(guest, volumes, least)
            guest.close()

    # what the first tenant finds in its own account, and what other people's tools make of that
    container = f"{raksha.prefix}_backupjobs"
    listed = openstack(one.cloud, "object", "list", "--all", "-f", "value", "-c", "Name", container).splitlines()
    for run in (points[0][0], points[1][0]):
        folder = f"{one.job}/{run['id']}/"
        below = [name.removeprefix(folder) for name in listed if name.startswith(folder)]
        assert len(below) == 2 + 3 * 3 and all(LAYOUT.fullmatch(name) for name in below), below
    made = {disk["disk"]: disk for disk in done[0]["result"]["vms"][0]["disks"]}
    chain = [points[0][0], points[1][0]]
    ceph = f"rbd:{CEPH_POOL}/volume-{made['vdc']['volume']}:conf={CEPH_CONF}"
    same(saved(one.cloud, container, chain, one.vm, "vdc", tmp_path), ceph)
    image = tmp_path / "image.qcow2"
    openstack(one.cloud, "image", "save", "--file", image, made["vda"]["image"])
    flat = tmp_path / "image.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, flat], check=True)
    same(saved(one.cloud, container, chain, one.vm, "vda", tmp_path), str(flat))
    # no tenant has anything of the other's
    for each, stranger in ((one, other), (other, one)):
        mine = openstack(each.cloud, "object", "list", "--all", "-f", "value", "-c", "Name", container)
        assert stranger.vm not in mine and stranger.job not in mine
    canary(raksha, one.cloud, other.cloud)
