"""Servers that come back: new servers, volumes and images from restore points, made by trust in a real cloud."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

import pytest

from tests.openstack.cloud.rest import Cloud, Refused
from tests.openstack.guest import Guest
from tests.openstack.restores import left, remove, restored
from tests.openstack.service import Service, canary

pytestmark = pytest.mark.timeout(1500)

NOT_TO_BE_HAD = (("error", "cloud_refused"), ("error", "cloud_missing"))


def write_token(guest: Guest, disk: str, token: str) -> None:
    """At a place of a disk that no file system has."""
    guest.shell(f"printf %s {token} | dd of=/dev/{disk} bs=1 seek=$((900*1024*1024)) conv=notrunc 2>/dev/null; sync")


def read_token(guest: Guest, disk: str, length: int) -> str:
    return guest.shell(f"dd if=/dev/{disk} bs=1 skip=$((900*1024*1024)) count={length} 2>/dev/null")


def test_a_server_with_volumes_comes_back_from_two_points(
    raksha: Service, server: Guest, demo: Cloud, admin: Cloud
) -> None:
    vm = server.server
    demo.nova.post(f"/servers/{vm}/metadata", {"metadata": {"tier": "gold"}})
    for kind in ("nfs", "ceph"):
        demo.attach(vm, demo.volume(f"data-{kind}", kind))
    disks = ["vda", "vdb", "vdc"]
    raksha.sees(demo, vm)
    job = raksha.of(demo).post("/backupjobs", {"name": "all of it", "vms": [{"id": vm}]})
    tokens: list[dict[str, str]] = []
    runs = []
    for _ in range(2):
        tokens.append({disk: secrets.token_hex(8) for disk in disks})
        for disk, token in tokens[-1].items():
            write_token(server, disk, token)
        runs.append(raksha.run(demo, job["id"]))
        assert runs[-1]["state"] == "available", (runs[-1], raksha.logs()[-4000:])
    shown = runs[-1]["vms"][0]["server"]
    assert shown["flavor"]["name"] == "raksha" and shown["metadata"] == {"tier": "gold"}
    assert [volume["volume_type"] for volume in shown["volumes"]] == ["nfs", "ceph"]
    assert len(shown["ports"]) == 1 and shown["ports"][0]["network_name"] == "shared"
    assert not runs[-1]["vms"][0]["warnings"]
    demo.delete_server(vm)

    before = left(demo)
    try:
        for run, wanted in zip(runs, tokens, strict=True):
            path = f"/backupjobs/{job['id']}/backupjobruns/{run['id']}"
            body = {"target": {"kind": "server"}, "vms": [{"id": vm, "name": f"again-{run['id'][:4]}"}]}
            plan = raksha.of(demo).post(path, {**body, "dry_run": True})
            assert plan["problems"] == [], plan
            restore = restored(raksha, demo, run, body["target"], vms=body["vms"])
            assert restore["state"] == "done", (restore, raksha.logs()[-6000:])
            (result,) = restore["result"]["vms"]
            again = demo.wait_for_server(result["vm"], "ACTIVE")
            assert again["name"] == f"again-{run['id'][:4]}" and again["metadata"]["tier"] == "gold"
            assert again["flavor"]["original_name"] == "raksha"
            guest = Guest(admin, result["vm"])
            guest.wait_until_ready()
            assert {disk: read_token(guest, disk, 16) for disk in disks} == wanted
            kinds = {volume["volumeId"] for volume in
                     demo.nova.get(f"/servers/{result['vm']}/os-volume_attachments")["volumeAttachments"]}  # fmt: skip
            types = {demo.cinder.get(f"/volumes/{each}")["volume"]["volume_type"] for each in kinds}
            assert types == {"nfs", "ceph"}
            guest.close()
        # of the images, those that servers boot from are left, and nothing else
        assert len(left(demo)["images"] - before["images"]) == len(runs)
        assert len(left(demo)["volumes"] - before["volumes"]) == 2 * len(runs)
    finally:
        remove(demo, before)
    canary(raksha, demo)


def with_quotas(admin: Cloud, cloud: Cloud, **quotas: int) -> None:
    """Of the tenant's project; -1: none."""
    for api, mine in ((admin.nova, ("cores", "ram")), (admin.cinder, ("gigabytes", "volumes"))):
        wanted = {name: value for name, value in quotas.items() if name in mine}
        if wanted:
            # Nova wants to be told that less than what is in use is meant
            forced = {"force": True} if api is admin.nova else {}
            api.put(f"/os-quota-sets/{cloud.project}", {"quota_set": {**wanted, **forced}})


def test_what_fails_leaves_nothing_and_a_plan_says_why(
    raksha: Service, server: Guest, demo: Cloud, admin: Cloud
) -> None:
    vm = server.server
    raksha.sees(demo, vm)
    job = raksha.of(demo).post("/backupjobs", {"name": "one disk", "vms": [{"id": vm}]})
    run = raksha.run(demo, job["id"])
    assert run["state"] == "available", run
    path = f"/backupjobs/{job['id']}/backupjobruns/{run['id']}"
    before = left(demo)
    absent = "11111111-0000-4000-8000-000000000000"
    target = {"kind": "server", "flavor": "no such flavor", "networks": [{"network_id": absent}], "key_name": "nobody"}
    plan = raksha.of(demo).post(path, {"target": target, "dry_run": True})
    assert {"flavor_missing", "network_missing", "key_missing"} <= {each["code"] for each in plan["problems"]}
    with_quotas(admin, demo, cores=1, ram=100, gigabytes=1, volumes=1)
    vms = [{"id": vm}]
    for kind, words in (("server", ("CPUs", "MiB of memory")), ("volume", ())):
        plan = raksha.of(demo).post(path, {"target": {"kind": kind}, "vms": vms, "dry_run": True})
        told = [each["message"] for each in plan["problems"] if each["code"] == "quota_reached"]
        assert len(told) == len(words) and all(any(word in each for each in told) for word in words), plan
    # the old one has its address still
    kept = raksha.of(demo).post(path, {"target": {"kind": "server"}, "dry_run": True})
    assert "address_taken" in {each["code"] for each in kept["problems"]}
    with_quotas(admin, demo, gigabytes=0, volumes=0)
    plan = raksha.of(demo).post(
        path, {"target": {"kind": "volume", "volume_type": "none"}, "vms": vms, "dry_run": True}
    )
    assert [each["code"] for each in plan["problems"]] == ["volume_type_missing", "quota_reached", "quota_reached"]
    with_quotas(admin, demo, cores=-1, ram=-1, gigabytes=-1, volumes=-1)
    refused = restored(raksha, demo, run, target)
    assert (refused["state"], refused["error"]["code"]) == ("error", "cloud_refused"), refused
    # only Nova finds out, when the disks are there already
    late = restored(raksha, demo, run, {"kind": "server", "networks": [{"network_id": absent}]})
    assert (late["state"], late["error"]["code"]) in NOT_TO_BE_HAD, late
    wrong_type = restored(raksha, demo, run, {"kind": "volume", "volume_type": "no such type"})
    assert (wrong_type["state"], wrong_type["error"]["code"]) in NOT_TO_BE_HAD, wrong_type
    assert left(demo) == before
    with pytest.raises(Refused) as answer:
        raksha.of(demo).post(path, {"target": {"kind": "image", "flavor": "raksha"}})
    assert answer.value.status == 400


def test_an_image_is_the_disk_and_a_volume_too(raksha: Service, server: Guest, demo: Cloud, tmp_path: Path) -> None:
    vm = server.server
    token = secrets.token_hex(8)
    write_token(server, "vda", token)
    raksha.sees(demo, vm)
    job = raksha.of(demo).post("/backupjobs", {"name": "image", "vms": [{"id": vm}]})
    run = raksha.run(demo, job["id"])
    before = left(demo)
    try:
        restore = restored(raksha, demo, run, {"kind": "image"}, vms=[{"id": vm, "name": "golden"}])
        assert restore["state"] == "done", (restore, raksha.logs()[-6000:])
        (disk,) = restore["result"]["vms"][0]["disks"]
        image = demo.glance.get(f"/images/{disk['image']}")
        assert (
            image["name"] == "golden vda" and image["disk_format"] == "qcow2" and image["hw_qemu_guest_agent"] == "yes"
        )
        data = tmp_path / "image.qcow2"
        data.write_bytes(demo.glance.ask("GET", f"/images/{disk['image']}/file").content)
        raw = tmp_path / "image.raw"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", data, raw], check=True)
        with raw.open("rb") as file:
            file.seek(900 * 1024 * 1024)
            assert file.read(16).decode() == token
        volume = restored(raksha, demo, run, {"kind": "volume", "volume_type": "ceph"})
        assert volume["state"] == "done", (volume, raksha.logs()[-6000:])
        (disk,) = volume["result"]["vms"][0]["disks"]
        shown = demo.cinder.get(f"/volumes/{disk['volume']}")["volume"]
        assert (shown["status"], shown["volume_type"], shown["size"]) == ("available", "ceph", 1)
    finally:
        remove(demo, before)
    assert left(demo) == before
