"""Images of shelved servers: which is taken, and that no more and nothing else than that is fetched.

Nova and Glance are played, for what real ones do rarely; real ones are in tests/openstack/test_shelved.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from raksha.errors import CloudMissing, CloudRefused, CloudUnavailable, Interrupted, RakshaError
from raksha.openstack.lent import LentLogin
from raksha.openstack.shelved import ShelvedImage, fetch, find
from tests.contract.identity import serving

SERVER, IMAGE = "00000000-0000-4000-8000-00000000001a", "00000000-0000-4000-8000-0000000000a1"
#: longer than what is read at once, with a hole
DATA = b"x" * 700_000 + bytes(3 << 20) + b"y" * 12345
DIGEST = hashlib.sha512(DATA).hexdigest()


def image(id: str = IMAGE, **more: Any) -> dict[str, Any]:
    return {
        "id": id, "name": "web-shelved", "owner": "p1", "status": "active", "instance_uuid": SERVER,
        "image_type": "snapshot", "disk_format": "qcow2", "container_format": "bare", "size": len(DATA),
        "virtual_size": 1 << 30, "os_hash_algo": "sha512", "os_hash_value": DIGEST, **more,
    }  # fmt: skip


class Cloud:
    """Nova with one server, Glance with images. `data`: of all of them."""

    def __init__(self, *images: dict[str, Any], status: str = "SHELVED_OFFLOADED", name: str = "web") -> None:
        self.images = images
        self.server = {"id": SERVER, "name": name, "tenant_id": "p1", "status": status}
        self.data = DATA
        self.headers: dict[str, str] = {}

    def answer(self, _method: str, path: str, _headers: dict[str, str], _body: bytes) -> Any:
        if path.startswith(f"/nova/servers/{SERVER}"):
            return 200, {"Content-Type": "application/json"}, json.dumps({"server": self.server}).encode()
        if path.startswith("/glance/v2/images?"):
            return 200, {"Content-Type": "application/json"}, json.dumps({"images": self.images}).encode()
        if path == f"/glance/v2/images/{IMAGE}/file" and self.images:
            return 200, {"Content-Type": "application/octet-stream", **self.headers}, self.data
        return 404, {}, b"{}"


@contextmanager
def asking(cloud: Cloud) -> Iterator[LentLogin]:
    with serving(cloud.answer) as (url, _):
        yield LentLogin("gAAAA-lent", {"compute": f"{url}/nova", "image": f"{url}/glance"})


KNOWN = ShelvedImage(
    id=IMAGE, format="qcow2", size=len(DATA), virtual_size=1 << 30, digest=("sha512", DIGEST)
)  # fmt: skip
OTHER = "00000000-0000-4000-8000-0000000000a2"
FOUND: dict[str, tuple[Cloud, ShelvedImage]] = {
    "one": (Cloud(image()), KNOWN),
    "raw": (Cloud(image(disk_format="raw")), replace(KNOWN, format="raw")),
    "nobody knows its digest": (
        Cloud(image(os_hash_algo=None, os_hash_value=None, virtual_size=None)),
        replace(KNOWN, virtual_size=None, digest=None),
    ),
    "called otherwise since": (Cloud(image(), name="shop"), KNOWN),
    "beside those that are none": (
        Cloud(
            image(OTHER, owner="p2"),
            image(OTHER, instance_uuid=OTHER),
            image(OTHER, image_type="backup"),
            image(OTHER, status="queued"),
            image(OTHER, name="by hand"),
            image(OTHER, name="old-shelved"),
            image(),
        ),
        KNOWN,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    cloud, wanted = FOUND[name]
    with asking(cloud) as lent:
        assert find(lent, SERVER) == wanted


NOT_FOUND: dict[str, tuple[Cloud, type[RakshaError], str]] = {
    "none": (Cloud(), CloudMissing, "no image"),
    "of another project": (Cloud(image(owner="p2")), CloudMissing, "no image"),
    "unshelved": (Cloud(image(), status="ACTIVE"), CloudMissing, "ACTIVE"),
    "still on its host": (Cloud(image(), status="SHELVED"), CloudMissing, "SHELVED"),
    "two": (Cloud(image(), image(OTHER)), CloudRefused, OTHER),
    "two of other names": (Cloud(image(), image(OTHER), name="shop"), CloudRefused, OTHER),
    "vmdk": (Cloud(image(disk_format="vmdk")), CloudRefused, "vmdk"),
    "in a container": (Cloud(image(container_format="ova")), CloudRefused, "neither"),
}


@pytest.mark.parametrize("name", NOT_FOUND)
def test_not_found(name: str) -> None:
    cloud, kind, says = NOT_FOUND[name]
    with asking(cloud) as lent, pytest.raises(kind, match=says):
        find(lent, SERVER)


def fetched(cloud: Cloud, wanted: ShelvedImage = KNOWN) -> bytes:
    with tempfile.TemporaryFile() as file, asking(cloud) as lent:
        fetch(lent, wanted, file, lambda: None)
        file.seek(0)
        return file.read()


def test_it_comes_whole() -> None:
    assert fetched(Cloud(image())) == DATA
    ends_in_zeros = Cloud(image())
    ends_in_zeros.data = DATA[:1000] + bytes(2 << 20)
    unknown = replace(KNOWN, size=len(ends_in_zeros.data), digest=None)
    assert fetched(ends_in_zeros, unknown) == ends_in_zeros.data


@pytest.mark.parametrize(
    ("data", "headers", "says"),
    [
        (DATA[:-1], {}, f"{len(DATA) - 1} came"),
        (DATA + b"z", {}, "more than that came"),
        (DATA[:-1] + b"z", {}, "another digest"),
        (DATA, {"Content-Encoding": "gzip"}, "packed"),
    ],
)
def test_what_is_not_that_is_refused(data: bytes, headers: dict[str, str], says: str) -> None:
    cloud = Cloud(image())
    cloud.data, cloud.headers = data, headers
    with pytest.raises(CloudUnavailable, match=says):
        fetched(cloud)


def test_an_image_that_nova_has_deleted_is_gone() -> None:
    with pytest.raises(CloudMissing):
        fetched(Cloud())


def test_who_is_told_to_stop_stops() -> None:
    def check() -> None:
        raise Interrupted()

    with asking(Cloud(image())) as lent, pytest.raises(Interrupted):
        fetch(lent, KNOWN, io.BytesIO(), check)
