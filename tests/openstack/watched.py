"""A server whose guest writes all the time, and the job that protects it: was anything lost?

Numbered records on its volumes (`tests/bed/records.py` says what must hold of them at any instant), and a counter on
its boot disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import libvirt
from lxml import etree

from tests.bed.records import check_records
from tests.openstack.cloud.layout import CEPH_CONF
from tests.openstack.cloud.rest import Cloud
from tests.openstack.guest import Guest
from tests.openstack.points import disk_of
from tests.openstack.service import ENDED, Service

#: bytes at the start of each volume that records are in; µs between two
SPAN, PAUSE = 4 << 20, 20_000
#: of the boot disk, where the counter is: beyond its file system
PLACE = 900 << 20
#: bytes a second of runs that are to take a while
_SLOW = 1_000_000
_COUNT = f"""
n=SINCE
while :; do
  n=$((n + 1))
  printf %016d $n | dd of=/dev/vda bs=4096 seek={PLACE >> 12} conv=notrunc,fsync 2>/dev/null || continue
  echo $n >/run/n.new && mv /run/n.new /run/n
  sleep 0.05
done"""
#: ends what writes, and not itself
_END = "for p in /proc/[0-9]*; do grep -qsE '[c]ount.sh|[r]ecords' $p/cmdline && kill -9 ${p#/proc/}; done"


class Watched:
    def __init__(self, raksha: Service, cloud: Cloud, admin: Cloud, folder: Path, **more: Any) -> None:
        """Ready, with a volume on NFS and one in Ceph. `more`: of the job."""
        self.raksha, self.cloud, self._folder = raksha, cloud, folder
        self.vm = cloud.server("watched")
        self.guest = Guest(admin, self.vm)
        self.volumes = [cloud.volume(kind, kind) for kind in ("nfs", "ceph")]
        for volume in self.volumes:
            cloud.attach(self.vm, volume)
        self.guest.wait_until_ready()
        raksha.sees(cloud, self.vm)
        body = {"name": "watched", "vms": [{"id": self.vm}], "retry": {"retries": 0}, **more}
        self.job = raksha.of(cloud).post("/backupjobs", body)["id"]
        #: written when the guest was asked last, by disk
        self.known: dict[str, int] = {}

    # -- the guest ----------------------------------------------------------------------------------

    def write(self, *volumes: str) -> None:
        """From now on: the counter goes on beyond all that was, records of these volumes begin anew."""
        since = self.known.get("vda", 0) + 1000
        script = _COUNT.replace("SINCE", str(since))
        self.guest.shell(f"{_END}; rm -f /run/acks /run/n")
        self.guest.shell(f"cat >/run/count.sh <<'END'\n{script}\nEND")
        self.guest.agent("guest-exec", path="/bin/sh", arg=["/run/count.sh"])
        self.known = {"vda": since}
        if volumes:
            paths = " ".join(f"/dev/{disk}" for disk in volumes)
            # records know which disk of theirs they are on: what is there from before may have been another one
            ready = "until [ -b $d ]; do sleep 0.1; done; dd if=/dev/zero of=$d bs=1M count=4 conv=notrunc,fsync"
            script = f"for d in {paths}; do {ready} 2>/dev/null; done; "
            script += f"exec records write {SPAN} {PAUSE} {paths} >/run/acks 2>&1"
            self.guest.agent("guest-exec", path="/bin/sh", arg=["-c", script])
            self.known |= dict.fromkeys(volumes, 0)
        try:
            self.raksha.wait(lambda: self.look()["vda"] > since and all(self.known.values()))
        except AssertionError as error:
            told = self.guest.shell("ls /dev/vd*; cat /run/n; tail -n 5 /run/acks; true")
            raise AssertionError(f"the guest does not write: {self.known} {told}") from error

    def look(self) -> dict[str, int]:
        """What the guest has been told is on its disks."""
        told = self.guest.shell("cat /run/n 2>/dev/null || echo 0; grep ACK /run/acks 2>/dev/null | tail -n 1").split()
        self.known["vda"] = max(self.known["vda"], int(told[0]))
        for volume in self.known.keys() - {"vda"}:
            self.known[volume] = int(told[2]) if len(told) > 2 else 0
        return self.known

    def counter(self, disk: str = "vda") -> int:
        """What is there now, as the guest reads it."""
        return int(self.guest.shell(f"dd if=/dev/{disk} bs=4096 skip={PLACE >> 12} count=1 2>/dev/null | head -c 16"))

    def act(self, what: str, *until: str, value: Any = None) -> None:
        self.cloud.nova.post(f"/servers/{self.vm}/action", {what: value})
        self.cloud.wait_for_server(self.vm, *until)

    def again(self, *volumes: str) -> None:
        """After it was started: nothing that it was told was lost, and it writes on."""
        self.guest.wait_until_ready()
        assert self.counter() >= self.known["vda"], "what the guest was told is on its boot disk is lost"
        self.write(*volumes)

    # -- its backups --------------------------------------------------------------------------------

    def backup(self) -> dict[str, tuple[str, str | None]]:
        """A run, and whether it is right: kind and reason of each disk."""
        known = dict(self.known)
        return self.checked(self.raksha.run(self.cloud, self.job), known)

    def checked(self, run: Any, known: dict[str, int]) -> dict[str, tuple[str, str | None]]:
        """A restore point has all that its guest was told before (`known`), and is of one instant."""
        assert run["state"] == "available", (run["error"], self.raksha.logs()[-4000:])
        self.last = run
        assert not run["vms"][0]["warnings"], run
        found = {disk: disk_of(self.raksha, self.cloud, run, disk, self._folder) for disk in how(run)}
        with found["vda"].open("rb") as file:
            file.seek(PLACE)
            assert int(file.read(16)) >= known["vda"]
        volumes = [disk for disk in known if disk != "vda" and disk in found]
        if volumes:
            check_records([found[disk] for disk in sorted(volumes)], known[volumes[0]])
        for path in found.values():
            path.unlink()
        return how(run)

    def during(self, event: Callable[[], object]) -> Any:
        """A run, when it has ended: the event came while its capture was open and its data was on the way."""
        api = self.raksha.of(self.cloud)
        self.slow(_SLOW)
        path = f"/backupjobs/{self.job}/backupjobruns/{api.post(f'/backupjobs/{self.job}/incremental')['id']}"
        self.raksha.wait(lambda: self._under_way(api.get(path))["progress"]["bytes_sent"] > 2 * _SLOW)
        event()
        assert api.get(path)["state"] not in ("available", "degraded"), "the run was over before the event was"

        def ended() -> Any:
            found = api.get(path)
            return found if found["state"] in ENDED else None

        run = self.raksha.wait(ended, 240)
        self.slow(None)
        return run

    def fill(self) -> None:
        """Data that no run has sent yet, beyond the records of the last volume."""
        self.guest.shell("dd if=/dev/urandom of=/dev/vdc bs=1M seek=100 count=24 conv=notrunc 2>/dev/null; sync")
        self.look()

    def _under_way(self, run: Any) -> Any:
        assert run["state"] not in ENDED, (run, self.raksha.logs()[-4000:])
        return run

    def slow(self, limit: int | None) -> None:
        """Bytes a second of its next runs."""
        body = {"bandwidth_limit": limit}
        self.raksha.of(self.cloud).put(f"/backupjobs/{self.job}", body, headers={"If-Match": "*"})

    def image(self, name: str) -> Any:
        """An image of it, made by its owner; when Nova has done what it does for that."""
        self.cloud.nova.post(f"/servers/{self.vm}/action", {"createImage": {"name": name}})

        def made() -> Any:
            (image,) = self.cloud.glance.get(f"/images?name={quote(name)}")["images"] or [{"status": "gone"}]
            busy = self.cloud.nova.get(f"/servers/{self.vm}")["server"]["OS-EXT-STS:task_state"]
            return image if busy is None and image["status"] != "queued" else None

        return self.raksha.wait(made, 180)

    def address(self, source: str) -> str:
        """Of a raw volume, for qemu-img."""
        return source if source.startswith("/") else f"rbd:{source}:conf={CEPH_CONF}"

    def defined(self) -> set[str]:
        """Its disks, as it would be started by libvirt."""
        tree = etree.fromstring(self.guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        return {str(target.get("dev")) for target in tree.iterfind("devices/disk/target")}

    def untouched(self) -> None:
        """Neither libvirt nor the folder of the server has anything of ours, and its disks are its own."""
        assert self.guest.domain.listAllCheckpoints() == []
        for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
            assert ".raksha-" not in self.guest.domain.XMLDesc(flags)
        assert not [path.name for path in self.guest.folder.iterdir() if "raksha" in path.name]


def how(run: Any) -> dict[str, tuple[str, str | None]]:
    """Kind and reason of each disk."""
    (vm,) = run["vms"]
    return {d["resource"]: (d["backup"]["kind"], d["reason"]) for d in vm["resources"] if d["backup"]}
