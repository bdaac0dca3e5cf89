"""Servers that Nova has shelved: their boot disk is an image, which is backed up as the disk that it was."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from tests.openstack.cloud.rest import Cloud
from tests.openstack.guest import Guest
from tests.openstack.restores import left, remove, restored
from tests.openstack.service import Service, canary
from tests.openstack.test_restore import read_token, write_token

pytestmark = pytest.mark.timeout(1500)

SHELVED = "SHELVED_OFFLOADED"


def how(run: Any) -> dict[str, tuple[str, str, str | None]]:
    """How each disk was read."""
    (vm,) = run["vms"]
    return {disk["resource"]: (disk["kind"], disk["mode"], disk["reason"]) for disk in vm["resources"]}


def sent(run: Any) -> int:
    (vm,) = run["vms"]
    return sum(int(disk["progress"]["bytes_sent"]) for disk in vm["resources"])


def act(cloud: Cloud, server: str, action: str, status: str) -> None:
    cloud.nova.post(f"/servers/{server}/action", {action: None})
    cloud.wait_for_server(server, status)


def test_a_shelved_server_is_backed_up_by_its_image_and_comes_back(
    raksha: Service, server: Guest, demo: Cloud, admin: Cloud
) -> None:
    vm, tokens = server.server, [secrets.token_hex(8) for _ in range(2)]
    raksha.sees(demo, vm)
    job = raksha.of(demo).post("/backupjobs", {"name": "shelved", "vms": [{"id": vm}]})
    write_token(server, "vda", tokens[0])
    first = raksha.run(demo, job["id"])
    assert first["state"] == "available", (first, raksha.logs()[-4000:])
    write_token(server, "vda", tokens[1])
    server.close()
    act(demo, vm, "shelve", SHELVED)
    before = left(demo)
    try:
        second = raksha.run(demo, job["id"])
        assert second["state"] == "available", (second, raksha.logs()[-6000:])
        assert second["consistency"] == "offline" and second["vms"][0]["power"] == "shut off"
        assert how(second) == {"vda": ("incremental", "compare", "server_shelved")}
        assert 0 < sent(second) < sent(first) // 2
        # an image never changes
        third = raksha.run(demo, job["id"])
        assert how(third) == how(second) and sent(third) < sent(second)
        assert left(demo) == before, "nothing is made for it"

        restore = restored(raksha, demo, second, {"kind": "server"}, vms=[{"id": vm, "name": "awake"}])
        assert restore["state"] == "done", (restore, raksha.logs()[-6000:])
        (made,) = restore["result"]["vms"]
        guest = Guest(admin, made["vm"])
        guest.wait_until_ready()
        assert read_token(guest, "vda", 16) == tokens[1]
        guest.close()

        act(demo, vm, "unshelve", "ACTIVE")
        awake = Guest(admin, vm)
        awake.wait_until_ready()
        raksha.sees(demo, vm)
        fourth = raksha.run(demo, job["id"])
        assert fourth["state"] == "available", (fourth, raksha.logs()[-4000:])
        assert how(fourth)["vda"][0] == "incremental" and how(fourth)["vda"][2] != "server_shelved"
        awake.close()
    finally:
        remove(demo, before)
    canary(raksha, demo)


def test_volumes_of_a_shelved_server_are_left_out_or_waited_for(raksha: Service, server: Guest, demo: Cloud) -> None:
    """They are reserved for it, and Cinder makes no snapshots of such."""
    vm = server.server
    demo.attach(vm, demo.volume("data", "ceph"))
    server.close()
    act(demo, vm, "shelve", SHELVED)
    whole = raksha.of(demo).post("/backupjobs", {"name": "whole", "vms": [{"id": vm}]})
    boot = raksha.of(demo).post("/backupjobs", {"name": "boot", "vms": [{"id": vm, "excluded_disks": ["vdb"]}]})
    waiting = raksha.of(demo).post(f"/backupjobs/{whole['id']}/incremental")
    path = f"/backupjobs/{whole['id']}/backupjobruns/{waiting['id']}"
    shown = raksha.wait(lambda: (found := raksha.of(demo).get(path))["queued_reason"] and found)
    assert shown["queued_reason"]["code"] == "server_on_no_host" and "volumes" in shown["queued_reason"]["message"]
    run = raksha.run(demo, boot["id"])
    assert run["state"] == "available", (run, raksha.logs()[-4000:])
    assert how(run) == {"vda": ("full", "full", "asked_for_full")}
    raksha.of(demo).post(f"{path}/cancel")
    # an image that is as much like Nova's: nobody guesses
    (image,) = demo.glance.get(f"/images?instance_uuid={vm}")["images"]
    body = {"name": image["name"], "disk_format": "raw", "container_format": "bare", "image_type": "snapshot",
            "instance_uuid": vm, "visibility": "private"}  # fmt: skip
    other = demo.glance.post("/images", body)["id"]
    try:
        demo.glance.ask("PUT", f"/images/{other}/file", None, data=b"x" * 512,
                        headers={"Content-Type": "application/octet-stream"})  # fmt: skip
        run = raksha.run(demo, boot["id"])
        assert (run["state"], run["error"]["code"]) == ("error", "cloud_refused"), run
        assert other in run["error"]["message"]
    finally:
        demo.glance.delete(f"/images/{other}")
