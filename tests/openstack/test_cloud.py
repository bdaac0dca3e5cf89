"""The cloud itself: a server boots from its image, gets volumes of both kinds, and keeps what it writes."""

from __future__ import annotations

import pytest

from tests.openstack.cloud.rest import Cloud, Refused
from tests.openstack.guest import Guest


def test_a_server_with_a_boot_disk_and_a_volume_of_each_kind(demo: Cloud, server: Guest) -> None:
    for kind in ("ceph", "nfs"):
        demo.attach(server.server, demo.volume(kind, kind))
    assert server.shell("ls -d /dev/vd?").split() == ["/dev/vda", "/dev/vdb", "/dev/vdc"]
    server.shell(
        "echo boot >/mnt/boot/note; for d in vdb vdc; do echo $d | dd of=/dev/$d conv=fsync 2>/dev/null; done; sync"
    )
    disks = server.disks()
    assert disks["vda"] == str(server.folder / "disk") and disks["vdb"].startswith("volumes/volume-")
    demo.nova.post(f"/servers/{server.server}/action", {"reboot": {"type": "HARD"}})
    demo.wait_for_server(server.server, "ACTIVE")
    server.wait_until_ready()
    assert server.shell("cat /mnt/boot/note; head -c 4 /dev/vdb; head -c 4 /dev/vdc") == "boot\nvdb\nvdc\n"


def test_tenants_do_not_see_each_other(demo: Cloud, alt: Cloud, server: Guest) -> None:
    assert server.server in [each["id"] for each in demo.nova.get("/servers")["servers"]]
    with pytest.raises(Refused) as refused:
        alt.nova.get(f"/servers/{server.server}")
    assert refused.value.status == 404
    demo.swift.put("/mine")
    with pytest.raises(Refused) as refused:
        alt.swift.ask("GET", f"/../AUTH_{demo.project}/mine")
    assert refused.value.status in (403, 404, 412)
