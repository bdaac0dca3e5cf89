"""What Nova and Keystone do that Raksha is built around: where one of these fails, the cloud has become another one."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import libvirt
import pytest

from tests.openstack.cloud.rest import Cloud, Refused
from tests.openstack.guest import Guest


def overlay(guest: Guest) -> Path:
    """Put an overlay on the boot disk, as a snapshot does that nobody tells Nova of."""
    path = guest.folder / "overlay"
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    others = "".join(f"<disk name='{name}' snapshot='no'/>" for name in guest.disks() if name != "vda")
    guest.domain.snapshotCreateXML(
        f"<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='{path}'/></disk>{others}</disks>"
        "</domainsnapshot>",
        flags | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC,
    )
    return path


def test_nova_loses_an_overlay_when_it_starts_a_server_again(demo: Cloud, server: Guest) -> None:
    """Without a word: what the guest wrote since is gone. So nothing of ours stays in the chain of a Nova server."""
    server.shell("echo before >/mnt/boot/before; sync")
    path = overlay(server)
    server.shell("echo after >/mnt/boot/after; sync")
    assert server.disks()["vda"] == str(path)
    demo.nova.post(f"/servers/{server.server}/action", {"reboot": {"type": "HARD"}})
    demo.wait_for_server(server.server, "ACTIVE")
    server.wait_until_ready()
    assert server.disks()["vda"] == str(server.folder / "disk")
    assert server.shell("cat /mnt/boot/before") == "before\n"
    assert server.shell("ls /mnt/boot").split().count("after") == 0


def test_an_overlay_that_is_committed_before_does_no_harm(demo: Cloud, server: Guest) -> None:
    path = overlay(server)
    server.shell("echo after >/mnt/boot/after; sync")
    base = str(server.folder / "disk")
    server.domain.blockCommit("vda", base, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    deadline = time.monotonic() + 60
    while True:
        job = server.domain.blockJobInfo("vda")
        if job and job["cur"] == job["end"]:
            server.domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    path.unlink()
    demo.nova.post(f"/servers/{server.server}/action", {"reboot": {"type": "HARD"}})
    demo.wait_for_server(server.server, "ACTIVE")
    server.wait_until_ready()
    assert server.shell("cat /mnt/boot/after") == "after\n"


def test_a_checkpoint_known_to_libvirt_keeps_nova_from_deleting_the_server(demo: Cloud, admin: Cloud) -> None:
    """So none is left: its definition is kept by us, and libvirt forgets it."""
    made = demo.server("checkpointed")
    guest = Guest(admin, made)
    try:
        guest.wait_until_ready()
        guest.domain.checkpointCreateXML("<domaincheckpoint><name>ours</name></domaincheckpoint>")
        demo.nova.delete(f"/servers/{made}")
        found = demo.wait_for_server(made, "ERROR", "DELETED")
        assert found["status"] == "ERROR"
    finally:
        domain = guest.domain
        for each in domain.listAllCheckpoints():
            each.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        admin.nova.post(f"/servers/{made}/action", {"os-resetState": {"state": "active"}})
        demo.delete_server(made)


def test_a_bitmap_outlives_its_checkpoint_s_metadata_and_a_new_start(demo: Cloud, server: Guest) -> None:
    server.domain.checkpointCreateXML("<domaincheckpoint><name>ours</name></domaincheckpoint>")
    definition = server.domain.checkpointLookupByName("ours").getXMLDesc()
    server.domain.checkpointLookupByName("ours").delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    demo.nova.post(f"/servers/{server.server}/action", {"os-stop": None})
    demo.wait_for_server(server.server, "SHUTOFF")
    told = subprocess.run(
        ["qemu-img", "info", "--output=json", server.folder / "disk"], capture_output=True, text=True, check=True
    ).stdout
    assert '"ours"' in told
    demo.nova.post(f"/servers/{server.server}/action", {"os-start": None})
    demo.wait_for_server(server.server, "ACTIVE")
    server.wait_until_ready()
    redefine = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
    server.domain.checkpointCreateXML(definition, redefine).delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def test_a_trust_carries_the_right_to_write_a_vault_and_ends_with_it(demo: Cloud, alt: Cloud, admin: Cloud) -> None:
    trustee = admin.keystone.get("/users?name=raksha")["users"][0]["id"]
    roles = [{"name": "member"}]
    body = {
        "trustor_user_id": demo.login.get_user_id(), "trustee_user_id": trustee, "project_id": demo.project,
        "impersonation": True, "roles": roles, "allow_redelegation": False,
    }  # fmt: skip
    trust = demo.keystone.post("/OS-TRUST/trusts", {"trust": body})["trust"]["id"]
    trusted = Cloud("raksha", trust_id=trust)
    assert trusted.project == demo.project
    trusted.swift.put("/by-trust")
    trusted.swift.put("/by-trust/object", data=b"written by trust")
    assert demo.swift.ask("GET", "/by-trust/object").content == b"written by trust"
    with pytest.raises(Refused) as refused:
        trusted.swift.ask("PUT", f"/../AUTH_{alt.project}/stolen")
    assert refused.value.status in (403, 412)
    demo.keystone.delete(f"/OS-TRUST/trusts/{trust}")
    with pytest.raises(Exception, match=r"(?i)trust|could not find|unauthorized|404|401|403"):
        _ = Cloud("raksha", trust_id=trust).token
