"""Volumes taken from storage: in use or not, from NFS and Ceph, by trust, without anybody noticing."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.openstack.cloud.configuration import NFS_EXPORT
from tests.openstack.cloud.layout import CEPH_CONF, CEPH_POOL
from tests.openstack.cloud.rest import Cloud, wait_until_gone
from tests.openstack.guest import Guest
from tests.openstack.service import ENDED, Service, canary

pytestmark = pytest.mark.timeout(1500)

MIB = 1024 * 1024
#: where tokens are written
PLACES = (3 * MIB, 900 * MIB)
RESTORED = ("done", "error", "cancelled", "needs_attention")


@pytest.fixture(scope="module")
def raksha(tmp_path_factory: pytest.TempPathFactory, admin: Cloud) -> Iterator[Service]:
    """A deployment whose agent keeps snapshots, so that Ceph tells what has changed."""
    folder: Path = tmp_path_factory.mktemp("raksha")
    folder.chmod(0o755)
    with Service(folder, admin, storage_differences=True) as made:
        yield made


# -- the volumes ----------------------------------------------------------------------------------


def nfs_file(volume: str) -> Path:
    return NFS_EXPORT / f"volume-{volume}"


def write_nfs(volume: str, at: int, data: bytes) -> None:
    """As a server would that it is attached to."""
    with nfs_file(volume).open("r+b") as file:
        file.seek(at)
        file.write(data)


def write_ceph(volume: str, tmp_path: Path, at: int, data: bytes) -> None:
    file = tmp_path / "written"
    file.write_bytes(data)
    command = f"write -q -s {file} {at} {len(data)}"
    where = f"rbd:{CEPH_POOL}/volume-{volume}:conf={CEPH_CONF}"
    subprocess.run(["qemu-io", "-f", "raw", "-c", command, "-c", "flush", where], check=True)


def ceph_content(volume: str, to: Path) -> Path:
    to.unlink(missing_ok=True)
    where = f"{CEPH_POOL}/volume-{volume}"
    subprocess.run(["rbd", "-c", CEPH_CONF, "export", "--no-progress", where, to], check=True, capture_output=True)
    return to


def write_guest(guest: Guest, disk: str, at: int, token: str) -> None:
    guest.shell(f"printf %s {token} | dd of=/dev/{disk} bs=1 seek={at} conv=notrunc 2>/dev/null; sync")


# -- what a tenant sees ---------------------------------------------------------------------------


def temporary(cloud: Cloud) -> dict[str, list[str]]:
    """What bears the mark of a task."""
    return {
        noun: [each["id"] for each in cloud.cinder.get(f"/{noun}/detail")[noun] if "raksha_task" in each["metadata"]]
        for noun in ("volumes", "snapshots")
    }


NOTHING: dict[str, list[str]] = {"volumes": [], "snapshots": []}


def kept(cloud: Cloud, volume: str) -> list[str]:
    """The runs that its snapshots are of."""
    found = cloud.cinder.get(f"/snapshots/detail?volume_id={volume}")["snapshots"]
    return [each["metadata"]["raksha_run"] for each in found]


@contextmanager
def watching(cloud: Cloud, *volumes: str) -> Iterator[set[Any]]:
    """Every combination of status and attachments that is seen of these volumes meanwhile."""
    seen: set[Any] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for volume in volumes:
                shown = cloud.cinder.get(f"/volumes/{volume}")["volume"]
                attached = tuple(sorted(each["attachment_id"] for each in shown["attachments"]))
                seen.add((volume, shown["status"], attached))
            over.wait(0.15)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def disks(run: Any) -> dict[str, Any]:
    """By VM or volume, and disk."""
    assert run["state"] == "available", run
    return {f"{vm['vm_id']}/{disk['resource']}": disk for vm in run["vms"] for disk in vm["resources"]}


def image(raksha: Service, cloud: Cloud, run: Any, member: str, to: Path, disk: str = "volume") -> Path:
    """A disk of a restore point as a raw file, by way of a restore to an image."""
    path = f"/backupjobs/{run['backupjob_id']}/backupjobruns/{run['id']}"
    body = {"target": {"kind": "image"}, "vms": [{"id": member, "disks": [disk], "name": "again"}]}
    asked = raksha.of(cloud).post(path, body)["id"]

    def ended() -> Any:
        found = raksha.of(cloud).get(f"/restores/{asked}")
        return found if found["state"] in RESTORED else None

    restore = raksha.wait(ended, 300)
    assert restore["state"] == "done", (restore, raksha.logs()[-4000:])
    (made,) = restore["result"]["vms"][0]["disks"]
    qcow2 = to.with_suffix(".qcow2")
    qcow2.write_bytes(cloud.glance.ask("GET", f"/images/{made['image']}/file").content)
    cloud.glance.delete(f"/images/{made['image']}")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow2, to], check=True)
    return to


def same(one: Path, other: Path) -> bool:
    done = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", one, other], capture_output=True)
    return done.returncode == 0


def read(file: Path, at: int, length: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(at)
        return opened.read(length)


def remove_volume(cloud: Cloud, volume: str) -> None:
    """As its owner does: first the snapshot that stays with it."""
    for snapshot in cloud.cinder.get(f"/snapshots?volume_id={volume}")["snapshots"]:
        cloud.cinder.delete(f"/snapshots/{snapshot['id']}")
        wait_until_gone(lambda id=snapshot["id"]: cloud.cinder.get(f"/snapshots/{id}")["snapshot"])
    cloud.delete_volume(volume)


# -- the tests ------------------------------------------------------------------------------------


def test_volumes_in_use_and_not_are_backed_up_and_nobody_notices(
    raksha: Service, server: Guest, demo: Cloud, tmp_path: Path
) -> None:
    nfs, used, idle = demo.volume("nfs", "nfs"), demo.volume("used", "ceph"), demo.volume("idle", "ceph")
    demo.attach(server.server, used)
    (device,) = demo.cinder.get(f"/volumes/{used}")["volume"]["attachments"]
    disk = device["device"].rpartition("/")[2]
    body = {"name": "volumes", "volumes": [{"id": nfs}, {"id": idle}, {"id": used, "force": True}]}
    job = raksha.of(demo).post("/backupjobs", body)["id"]
    names = {nfs: f"{nfs}/volume", used: f"{used}/volume", idle: f"{idle}/volume"}
    runs, truths, tokens = [], [], []
    try:
        for number, place in enumerate(PLACES):
            token = secrets.token_hex(16)
            tokens.append(token)
            write_nfs(nfs, place, token.encode())
            write_ceph(idle, tmp_path, place, token.encode())
            write_guest(server, disk, place, token)
            truth = {nfs: tmp_path / f"nfs-{number}", idle: ceph_content(idle, tmp_path / f"idle-{number}")}
            truth[nfs].write_bytes(nfs_file(nfs).read_bytes())
            truths.append(truth)
            with watching(demo, nfs, used, idle) as seen:
                run = raksha.run(demo, job)
            runs.append(run)
            found = disks(run)
            assert {status for volume, status, _ in seen if volume == used} == {"in-use"}
            assert {(status, attached) for volume, status, attached in seen if volume != used} == {("available", ())}
            assert len(seen) == 3, seen
            assert temporary(demo) == NOTHING
            # one snapshot of each volume of Ceph stays, as soon as the agent has heard of the restore point
            wanted: dict[str, list[str]] = {nfs: [], used: [run["id"]], idle: [run["id"]]}
            raksha.wait(lambda wanted=wanted: {volume: kept(demo, volume) for volume in names} == wanted)
            consistency = {vm["vm_id"]: vm["consistency"] for vm in run["vms"]}
            assert consistency == {nfs: "offline", idle: "offline", used: "crash"}
            assert {vm["engine"] for vm in run["vms"]} == {"storage"}
            assert not any(vm["temporary"] for vm in run["vms"])
            if number == 0:
                assert {each["kind"] for each in found.values()} == {"full"}
        # NFS: all was read and compared; Ceph: it told what had changed, and nothing else was read
        told = {volume: disks(runs[1])[name] for volume, name in names.items()}
        assert {each["kind"] for each in told.values()} == {"incremental"}
        assert {volume: (each["mode"], each["reason"]) for volume, each in told.items()} == {
            nfs: ("compare", "no_tracker"), idle: ("delta", None), used: ("delta", None)
        }  # fmt: skip
        for volume in (idle, used):
            assert told[volume]["progress"]["bytes_done"] <= MIB, told[volume]
        # two clusters at most, their map and tables
        assert all(each["progress"]["bytes_sent"] < 512 * 1024 for each in told.values()), told
        for number, run in enumerate(runs):
            for volume, truth in truths[number].items():
                assert same(image(raksha, demo, run, volume, tmp_path / "restored"), truth)
            restored = image(raksha, demo, run, used, tmp_path / "restored")
            written = [read(restored, place, 32).decode(errors="replace") for place in PLACES]
            assert written[0] == tokens[0] and (written[1] == tokens[1]) == (number == 1)
    finally:
        demo.detach(server.server, used)
        for volume in names:
            remove_volume(demo, volume)
    canary(raksha, demo)


def test_a_chain_goes_on_from_hypervisor_to_storage_and_back(
    raksha: Service, server: Guest, demo: Cloud, tmp_path: Path
) -> None:
    vm, api = server.server, raksha.of(demo)
    volumes = {kind: demo.volume(kind, kind) for kind in ("nfs", "ceph")}
    for volume in volumes.values():
        demo.attach(vm, volume)
    raksha.sees(demo, vm)
    job = api.post("/backupjobs", {"name": "both ways", "vms": [{"id": vm, "excluded_disks": ["vda"]}]})["id"]
    runs, tokens = [], []
    try:
        for number, (source, force) in enumerate((("hypervisor", False), ("storage", True), ("hypervisor", False))):
            member = {"id": vm, "excluded_disks": ["vda"], "source": source, "force": force}
            api.put(f"/backupjobs/{job}", {"vms": [member]}, headers={"If-Match": "*"})
            tokens.append(secrets.token_hex(16))
            for disk in ("vdb", "vdc"):
                write_guest(server, disk, (3 + number) * MIB, tokens[-1])
            with watching(demo, *volumes.values()) as seen:
                runs.append(raksha.run(demo, job))
            found = disks(runs[-1])
            assert set(found) == {f"{vm}/vdb", f"{vm}/vdc"}
            assert {each["kind"] for each in found.values()} == {"incremental" if number else "full"}
            assert {status for _, status, _ in seen} == {"in-use"} and len(seen) == 2, seen
            assert temporary(demo) == NOTHING
            if source == "storage":
                (shown,) = runs[-1]["vms"]
                assert (shown["engine"], shown["consistency"], shown["power"]) == ("storage", "crash", "running")
                told = " ".join(shown["warnings"])
                assert "one by one" in told and "hypervisor is not part" in told
                assert {each["progress"]["bytes_sent"] < 512 * 1024 for each in found.values()} == {True}
        for disk in ("vdb", "vdc"):
            for number, run in enumerate(runs):
                restored = image(raksha, demo, run, vm, tmp_path / "restored", disk)
                written = [read(restored, (3 + each) * MIB, 32).decode(errors="replace") for each in range(3)]
                assert [one == other for one, other in zip(written, tokens, strict=True)] == [
                    each <= number for each in range(3)
                ]
    finally:
        demo.delete_server(vm)
        for volume in volumes.values():
            demo.wait_for_volume(volume, "available")
            remove_volume(demo, volume)


def test_an_agent_that_is_killed_leaves_nothing_and_the_backup_is_done_again(
    raksha: Service, demo: Cloud, tmp_path: Path
) -> None:
    nfs, idle = demo.volume("nfs", "nfs"), demo.volume("idle", "ceph")
    api = raksha.of(demo)
    try:
        for place in range(0, 48 * MIB, 16 * MIB):
            data = os.urandom(8 * MIB)
            write_nfs(nfs, place, data)
            write_ceph(idle, tmp_path, place, data)
        body = {"name": "killed", "volumes": [{"id": nfs}, {"id": idle}], "bandwidth_limit": MIB}
        job = api.post("/backupjobs", body)["id"]
        run = api.post(f"/backupjobs/{job}/full")["id"]
        path = f"/backupjobs/{job}/backupjobruns/{run}"
        # both are being read: one from the share that was mounted for it
        raksha.wait(lambda: reading(api.get(path)) and mounted())
        shown = {each["volume_id"]: each for vm in api.get(path)["vms"] for each in vm["temporary"]}
        assert {volume: each["previous_status"] for volume, each in shown.items()} == dict.fromkeys(
            (nfs, idle), "available"
        )
        before = temporary(demo)
        assert {each["temp_snapshot_id"] for each in shown.values()} == set(before["snapshots"])
        assert [shown[nfs]["temp_volume_id"]] == before["volumes"]
        raksha.commands["agent"].end(signal.SIGKILL)
        assert temporary(demo) == before and mounted()
        api.put(f"/backupjobs/{job}", {"bandwidth_limit": None}, headers={"If-Match": "*"})
        raksha.commands["agent"].start()
        raksha.wait(lambda: not mounted())
        found = raksha.wait(lambda: ended(api, path), 240)
        assert found["state"] == "available", (found, raksha.logs()[-4000:])
        assert temporary(demo) == NOTHING
        assert not any(vm["temporary"] for vm in found["vms"])
        truth = tmp_path / "truth"
        truth.write_bytes(nfs_file(nfs).read_bytes())
        assert same(image(raksha, demo, found, nfs, tmp_path / "restored"), truth)
        assert same(image(raksha, demo, found, idle, tmp_path / "restored"), ceph_content(idle, truth))
        # somebody wants the next one no more, which is slow enough to be met
        api.put(f"/backupjobs/{job}", {"bandwidth_limit": MIB}, headers={"If-Match": "*"})
        run = api.post(f"/backupjobs/{job}/full")["id"]
        path = f"/backupjobs/{job}/backupjobruns/{run}"
        raksha.wait(lambda: temporary(demo)["volumes"] and mounted())
        api.post(f"{path}/cancel")
        assert raksha.wait(lambda: ended(api, path))["state"] == "cancelled"
        raksha.wait(lambda: temporary(demo) == NOTHING and not mounted())
    finally:
        for volume in (nfs, idle):
            remove_volume(demo, volume)


def reading(run: Any) -> bool:
    """Whether something of every member has been read."""
    begun = [[disk["progress"]["bytes_done"] for disk in vm["resources"]] for vm in run["vms"]]
    return bool(begun) and all(each and all(each) for each in begun)


def ended(api: Any, path: str) -> Any:
    found = api.get(path)
    return found if found["state"] in ENDED else None


def mounted() -> list[str]:
    """Shares that agents have mounted."""
    return [line for line in Path("/proc/mounts").read_text().splitlines() if "/run/raksha-volume-" in line]


def test_what_cannot_be_captured_is_refused_with_a_reason(raksha: Service, demo: Cloud, admin: Cloud) -> None:
    api = raksha.of(demo)
    idle = demo.volume("idle", "ceph")
    secret = encrypted(demo, admin)
    held = demo.volume("held", "ceph")
    quota = f"/os-quota-sets/{demo.project}"
    operator = admin.cinder
    try:
        refused = {volume: api.post("/backupjobs", {"name": volume[:8], "volumes": [{"id": volume}]})["id"]
                   for volume in (idle, secret)}  # fmt: skip
        refused[held] = in_use_later(api, demo, held)
        assert outcome(raksha, demo, refused[held]) == ("error", "volume_in_use")
        assert outcome(raksha, demo, refused[secret]) == ("error", "volume_unsupported")
        operator.put(quota, {"quota_set": {"snapshots": 0}})
        assert outcome(raksha, demo, refused[idle]) == ("error", "cloud_refused")
        operator.put(quota, {"quota_set": {"snapshots": 10}})
        demo.delete_volume(idle)
        assert outcome(raksha, demo, refused[idle])[0] == "error"
        assert temporary(demo) == NOTHING
    finally:
        operator.put(quota, {"quota_set": {"snapshots": 10}})
        for each in demo.cinder.get(f"/attachments?volume_id={held}")["attachments"]:
            demo.cinder.delete(f"/attachments/{each['id']}")
        for volume in (held, secret):
            demo.wait_for_volume(volume, "available")
            remove_volume(demo, volume)


def in_use_later(api: Any, demo: Cloud, volume: str) -> str:
    """A job whose volume was not in use when it was made. Cinder does not ask what it is attached to then."""
    job = str(api.post("/backupjobs", {"name": "held", "volumes": [{"id": volume}]})["id"])
    connector = {"initiator": "iqn.test", "ip": "127.0.0.1", "host": "somewhere", "platform": "x86_64",
                 "os_type": "linux", "multipath": False}  # fmt: skip
    body = {"volume_uuid": volume, "connector": connector}
    attachment = demo.cinder.post("/attachments", {"attachment": body})["attachment"]["id"]
    demo.cinder.post(f"/attachments/{attachment}/action", {"os-complete": {}})
    demo.wait_for_volume(volume, "in-use")
    return job


def encrypted(demo: Cloud, admin: Cloud) -> str:
    """A volume that Cinder has a key for."""
    kinds = {kind["name"]: kind["id"] for kind in admin.cinder.get("/types")["volume_types"]}
    if "luks" not in kinds:
        kind = {"name": "luks", "extra_specs": {"volume_backend_name": "ceph"}}
        kinds["luks"] = admin.cinder.post("/types", {"volume_type": kind})["volume_type"]["id"]
        how = {"provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256, "control_location": "front-end"}
        admin.cinder.post(f"/types/{kinds['luks']}/encryption", {"encryption": how})
    return demo.volume("secret", "luks")


def outcome(raksha: Service, cloud: Cloud, job: str) -> tuple[str, str]:
    """Of a run: its state, and the code of its error."""
    run = raksha.run(cloud, job)
    errors = [run["error"], *(vm["error"] for vm in run["vms"])]
    return run["state"], next((each["code"] for each in reversed(errors) if each), "")
