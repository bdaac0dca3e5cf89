"""Which disks Nova makes anew with a server, by the names that it gives them with each of its image types."""

from __future__ import annotations

import pytest

from raksha.server import Own, own_disk

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
