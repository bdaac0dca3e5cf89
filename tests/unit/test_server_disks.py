"""Which disks Nova makes anew with a server, by the names that it gives them with each of its image types."""

from __future__ import annotations

import pytest

from raksha.server import AttachedVolume, Flavor, Own, Server, own_disk

INSTANCE = "/var/lib/nova/instances/0e8c7211-86ca-4929-8152-113525c6dc24"


@pytest.mark.parametrize(
    ("source", "own"),
    [
        (f"{INSTANCE}/disk", None),
        (f"{INSTANCE}/disk.eph0", Own.EPHEMERAL),
        (f"{INSTANCE}/disk.eph12", Own.EPHEMERAL),
        (f"{INSTANCE}/disk.local", Own.EPHEMERAL),
        (f"{INSTANCE}/disk.swap", Own.SWAP),
        (f"{INSTANCE}/disk.config", Own.CONFIG_DRIVE),
        ("vms/0e8c7211-86ca-4929-8152-113525c6dc24_disk", None),
        ("vms/0e8c7211-86ca-4929-8152-113525c6dc24_disk.swap", Own.SWAP),
        ("vms/0e8c7211-86ca-4929-8152-113525c6dc24_disk.config", Own.CONFIG_DRIVE),
        ("/dev/nova/0e8c7211-86ca-4929-8152-113525c6dc24_disk.eph0", Own.EPHEMERAL),
        ("/var/lib/nova/mnt/a1d5b934e3b156bdcf8272bee49c25d3/volume-5e9b9ed8-7e70-4f7b-9196-8c2cb979eac0", None),
        ("volumes/volume-5946ad6f-35d2-4a82-8f35-a7ae37bbee0a", None),
        ("/srv/my.disk.swap.raw", None),
        ("", None),
    ],
)
def test_own_disk(source: str, own: Own | None) -> None:
    assert own_disk(source) is own


@pytest.mark.parametrize(
    ("image", "stored", "boots"),
    [
        (None, ["vda"], True),
        ("cirros", ["vdb"], False),
        ("cirros", ["detached"], False),
        ("cirros", [], False),
        # from the image that Nova made when it shelved the server
        ("cirros", ["vda"], True),
        ("cirros", ["vda", "vdb"], True),
    ],
)
def test_whether_it_can_boot_from_what_was_taken_from_storage(
    image: str | None, stored: list[str], boots: bool
) -> None:
    flavor = Flavor(name="small", vcpus=1, ram=64, disk=1)
    volumes = (AttachedVolume(id="data", size=1, device="/dev/vdb"), AttachedVolume(id="detached", size=1))
    server = Server(id="web", name="web", status="ACTIVE", image_id=image, flavor=flavor, volumes=volumes)
    assert server.boots_from(stored) is boots
