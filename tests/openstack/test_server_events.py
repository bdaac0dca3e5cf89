"""What happens to servers between backups and during them, by their owners' hands: nothing that a guest was told is on
its disks is lost, the next run is right, and says why a disk was read as a whole.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.openstack.cloud.rest import Cloud
from tests.openstack.guest import Guest
from tests.openstack.points import disk_of
from tests.openstack.restores import left, remove, restored
from tests.openstack.service import Service, canary
from tests.openstack.watched import Watched, how

pytestmark = pytest.mark.timeout(1800)

#: of raw volumes: there is nowhere to keep a bitmap, so each run reads them and compares
COMPARED = ("incremental", "no_bitmap_possible")
PLAIN = ("incremental", None)
EVERY = {"vda": PLAIN, "vdb": COMPARED, "vdc": COMPARED}


@pytest.fixture
def watched(raksha: Service, demo: Cloud, admin: Cloud, tmp_path: Path) -> Iterator[Watched]:
    before = left(demo)
    try:
        made = Watched(raksha, demo, admin, tmp_path)
        made.write("vdb", "vdc")
        yield made
        made.guest.close()
    finally:
        remove(demo, before)


@pytest.fixture
def flavor(admin: Cloud, request: pytest.FixtureRequest) -> Iterator[str]:
    """One of its own: with what the test says beyond the usual one."""
    name = f"flavor-{secrets.token_hex(4)}"
    numbers = {"ram": 160, "disk": 1, "vcpus": 1, **request.param}
    admin.nova.post("/flavors", {"flavor": {"id": name, "name": name, **numbers}})
    yield name
    admin.nova.delete(f"/flavors/{name}")


def at_rest(watched: Watched, run: Any, folder: Path) -> None:
    """Nobody writes now, so the point is what lies there."""
    for disk, source in watched.guest.disks().items():
        found = disk_of(watched.raksha, watched.cloud, run, disk, folder)
        form, address = ("qcow2", source) if disk == "vda" else ("raw", watched.address(source))
        command = ["qemu-img", "compare", "-U", "-f", "raw", "-F", form, found, address]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found.unlink()


@pytest.mark.parametrize("flavor", [{"disk": 2}], indirect=True)
def test_between_runs(watched: Watched, flavor: str, tmp_path: Path) -> None:
    assert {kind for kind, _ in watched.backup().values()} == {"full"}

    watched.act("reboot", "ACTIVE", value={"type": "HARD"})
    watched.again("vdb", "vdc")
    assert watched.backup() == EVERY

    watched.act("pause", "PAUSED")
    assert watched.checked(watched.raksha.run(watched.cloud, watched.job), watched.known) == EVERY
    assert (watched.last["vms"][0]["power"], watched.last["consistency"]) == ("paused", "paused")
    watched.act("unpause", "ACTIVE")
    watched.look()

    watched.act("os-stop", "SHUTOFF")
    assert watched.checked(watched.raksha.run(watched.cloud, watched.job), watched.known) == EVERY
    assert (watched.last["vms"][0]["power"], watched.last["consistency"]) == ("shut off", "offline")
    at_rest(watched, watched.last, tmp_path)
    watched.act("os-start", "ACTIVE")
    watched.again("vdb", "vdc")
    assert watched.backup() == EVERY

    watched.image("by somebody else")
    assert watched.backup() == EVERY
    watched.untouched()

    watched.cloud.detach(watched.vm, watched.volumes[0])
    watched.write("vdc")
    assert watched.backup() == {"vda": PLAIN, "vdc": COMPARED}
    watched.cloud.attach(watched.vm, watched.volumes[0])
    watched.write("vdb", "vdc")
    assert watched.backup() == EVERY

    # Nova copies the boot disk and makes it larger
    watched.act("resize", "VERIFY_RESIZE", value={"flavorRef": flavor})
    watched.act("confirmResize", "ACTIVE")
    watched.again("vdb", "vdc")
    assert watched.backup() == {**EVERY, "vda": ("full", "disk_resized")}
    assert watched.backup() == EVERY

    # and makes it anew
    image = watched.cloud.nova.get(f"/servers/{watched.vm}")["server"]["image"]["id"]
    watched.act("rebuild", "ACTIVE", value={"imageRef": image})
    watched.guest.wait_until_ready()
    watched.write("vdb", "vdc")
    assert watched.backup() == {**EVERY, "vda": ("incremental", "bitmap_lost")}
    assert watched.backup() == EVERY
    watched.untouched()
    watched.cloud.delete_server(watched.vm)
    canary(watched.raksha, watched.cloud)


def test_during_runs(watched: Watched) -> None:
    """What ends a capture fails the run, with a reason; the owner has his way, and the next run is right."""
    cloud = watched.cloud
    watched.backup()

    watched.fill()
    known = dict(watched.known)
    more = cloud.volume("more", "ceph")
    assert watched.checked(watched.during(lambda: cloud.attach(watched.vm, more)), known) == EVERY
    assert watched.backup() == {**EVERY, "vdd": ("full", "first_run")}
    cloud.detach(watched.vm, more)
    watched.untouched()

    # Nova ends whatever libvirt does with the disks when it makes an image of them
    watched.fill()
    assert broken(watched.during(lambda: watched.image("by somebody else"))) == "capture_failed"
    assert watched.backup() == EVERY

    watched.fill()
    assert broken(watched.during(lambda: watched.act("reboot", "ACTIVE", value={"type": "HARD"}))) == "capture_failed"
    watched.again("vdb", "vdc")
    assert watched.backup() == EVERY

    watched.fill()
    assert broken(watched.during(lambda: watched.act("os-stop", "SHUTOFF"))) == "capture_failed"
    assert watched.checked(watched.raksha.run(cloud, watched.job), watched.known) == EVERY
    watched.act("os-start", "ACTIVE")
    watched.again("vdb", "vdc")

    watched.fill()
    watched.act("os-stop", "SHUTOFF")
    assert broken(watched.during(lambda: watched.act("os-start", "ACTIVE"))) == "vm_started"
    watched.again("vdb", "vdc")
    assert watched.backup() == EVERY

    # libvirt detaches no disk that is read; Nova gives that up, and has taken it out of the definition already
    watched.fill()
    known = dict(watched.known)
    attachment = f"/servers/{watched.vm}/os-volume_attachments/{watched.volumes[0]}"

    def detach() -> None:
        cloud.nova.delete(attachment)
        watched.raksha.wait(lambda: "vdb" not in watched.defined())
        cloud.wait_for_volume(watched.volumes[0], "in-use")

    assert watched.checked(watched.during(detach), known) == EVERY
    assert watched.backup() == EVERY
    cloud.detach(watched.vm, watched.volumes[0])
    watched.write("vdc")
    assert watched.backup() == {"vda": PLAIN, "vdc": COMPARED}

    watched.fill()
    assert broken(watched.during(lambda: cloud.delete_server(watched.vm))) in ("vm_not_found", "capture_failed")
    run = watched.raksha.run(cloud, watched.job)
    assert (run["state"], run["error"]["code"]) == ("error", "server_gone")
    canary(watched.raksha, cloud)


def broken(run: Any) -> str:
    """Why it is no restore point."""
    assert run["state"] == "error" and how(run) == {}, run
    return str(run["error"]["code"])


@pytest.mark.parametrize(
    "flavor", [{"OS-FLV-EXT-DATA:ephemeral": 1, "swap": 64}], indirect=True, ids=["ephemeral and swap"]
)
def test_disks_that_nova_makes(raksha: Service, demo: Cloud, admin: Cloud, flavor: str) -> None:
    before = left(demo)
    try:
        vm = demo.server("own-disks", flavor=flavor, config_drive=True)
        guest = Guest(admin, vm)
        guest.wait_until_ready()
        token = secrets.token_hex(8)
        for disk in ("vda", "vdb"):
            guest.shell(f"printf %s {token} | dd of=/dev/{disk} bs=1M seek=900 conv=notrunc 2>/dev/null; sync")
        seen = raksha.sees(demo, vm)
        reasons = {disk["target"]: disk["reason"] for disk in seen["disks"]}
        assert [target for target, reason in reasons.items() if reason is None] == ["vda", "vdb", "vdc"], reasons
        (drive,) = reasons.keys() - {"vda", "vdb", "vdc"}
        api = raksha.of(demo)
        body = {"name": "without", "vms": [{"id": vm, "excluded_disks": ["vdb", "vdc"]}], "retry": {"retries": 0}}
        without = raksha.run(demo, api.post("/backupjobs", body)["id"])
        assert list(how(without)) == ["vda"], without["error"]
        job = api.post("/backupjobs", {"name": "all", "vms": [{"id": vm}], "retry": {"retries": 0}})["id"]
        run = raksha.run(demo, job)
        assert list(how(run)) == ["vda", "vdb", "vdc"], run["error"]
        assert {kind for kind, _ in how(run).values()} == {"full"}
        # each on a base image that Nova has for all: increments without reading them
        assert set(how(raksha.run(demo, job)).values()) == {PLAIN}
        shown = run["vms"][0]["server"]
        assert (shown["flavor"]["ephemeral"], shown["flavor"]["swap"], shown["config_drive"]) == (1, 64, True)
        guest.close()
        demo.delete_server(vm)

        done = restored(raksha, demo, run, {"kind": "server"})
        assert done["state"] == "done", (done, raksha.logs()[-4000:])
        (result,) = done["result"]["vms"]
        assert any("vdb was an ephemeral disk" in warning for warning in result["warnings"]), result
        again = demo.nova.get(f"/servers/{result['vm']}")["server"]
        assert again["config_drive"] and again["flavor"]["original_name"] == flavor
        # what was on the ephemeral disk is a volume; swap and config drive are Nova's, and new
        assert len(left(demo)["volumes"] - before["volumes"]) == 1
        guest = Guest(admin, result["vm"])
        guest.wait_until_ready()
        disks = guest.disks()
        assert drive in disks
        assert [Path(disks[disk]).name for disk in ("vda", "vdb", "vdc")] == ["disk", "disk.eph0", "disk.swap"]
        (volume,) = disks.keys() - {"vda", "vdb", "vdc", drive}
        for disk in ("vda", volume):
            assert guest.shell(f"dd if=/dev/{disk} bs=1M skip=900 count=1 2>/dev/null | head -c 16") == token
        assert guest.shell("dd if=/dev/vdb bs=1M skip=900 count=1 2>/dev/null | head -c 16 | tr -d '\\0'") == ""
        guest.close()
    finally:
        remove(demo, before)


def test_overlays_that_are_asked_for_are_gone_with_the_run(raksha: Service, server: Guest, demo: Cloud) -> None:
    raksha.sees(demo, server.server)
    body = {"name": "overlay", "vms": [{"id": server.server}], "engine": "overlay", "retry": {"retries": 0}}
    job = raksha.of(demo).post("/backupjobs", body)["id"]
    own = server.disks()
    for number, wanted in enumerate([("full", "asked_for_full"), ("incremental", "no_tracker")]):
        server.shell(f"echo {number} >/mnt/boot/{number}; sync")
        run = raksha.run(demo, job)
        assert run["state"] == "available", (run["error"], raksha.logs()[-4000:])
        assert (run["vms"][0]["engine"], run["vms"][0]["warnings"]) == ("overlay", [])
        assert how(run) == {"vda": wanted}
        assert server.disks() == own and not [path for path in server.folder.iterdir() if "raksha" in path.name]
    # nothing is lost when Nova starts it from its own records
    server.shell("echo after >/mnt/boot/after; sync")
    demo.nova.post(f"/servers/{server.server}/action", {"reboot": {"type": "HARD"}})
    demo.wait_for_server(server.server, "ACTIVE")
    server.wait_until_ready()
    assert server.shell("cat /mnt/boot/0 /mnt/boot/1 /mnt/boot/after").split() == ["0", "1", "after"]
    assert server.disks() == own
