"""The image that Nova has made of a server's boot disk when it shelved it: found in Glance, and fetched.

Nova tells nobody which image it is. It is the one of the server's own project that says it is a snapshot of that server
and is called NAME-shelved: one, or none is taken. Whoever may upload images to the project can make another such image,
so what is in it is believed as little as what a guest writes: its format is what Glance says, raw or qcow2, and whoever
opens it looks at its header first.

An image never changes. Nova deletes it when the server is unshelved: a fetch that this breaks off fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, BinaryIO

import requests
from msgspec import Struct

from raksha.errors import CloudMissing, CloudRefused, CloudUnavailable
from raksha.openstack.lent import LentLogin, asking

#: status of a server that is on no host, and whose disk is an image
SHELVED = "SHELVED_OFFLOADED"
FORMATS = ("raw", "qcow2")

_SERVICE = "image"
_SUFFIX = "-shelved"
#: seconds without a byte
_PATIENCE = 300.0
_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
#: of a list; more of one server than that are none of Nova's
_PAGE = 100


class ShelvedImage(Struct, frozen=True, kw_only=True):
    id: str
    #: `raw` or `qcow2`
    format: str
    #: bytes to fetch
    size: int
    #: bytes that the guest saw, where Glance knows
    virtual_size: int | None
    #: algorithm and digest of its bytes, where Glance knows
    digest: tuple[str, str] | None


def find(cloud: LentLogin, server_id: str) -> ShelvedImage:
    """Raises `CloudMissing`: it is shelved no more, or there is no such image. `CloudRefused`: it cannot be told which
    one it is, or it is of another format. `CloudUnavailable`."""
    with asking("compute"):
        shown = cloud.compute().servers.get(server_id).to_dict()
        name, project, status = str(shown["name"]), str(shown["tenant_id"]), str(shown["status"])
    if status != SHELVED:
        raise CloudMissing(service="compute", detail=f"server {name} is {status}, not {SHELVED}")
    with asking(_SERVICE):
        wanted = {"instance_uuid": server_id, "image_type": "snapshot", "owner": project, "limit": _PAGE}
        found = cloud.session().get(_at(cloud), params=wanted).json()["images"]
        # a filter that is not understood is none
        mine = [each for each in found if _is_of(each, server_id, project)]
        # it may have had another name then
        named = [each for each in mine if each["name"] == name + _SUFFIX] if len(mine) > 1 else mine
        if len(named) == 1:
            return _known(named[0])
    if not mine:
        raise CloudMissing(service=_SERVICE, detail=f"there is no image of the shelved server {name}")
    ids = ", ".join(sorted(str(each["id"]) for each in mine))
    raise CloudRefused(service=_SERVICE, detail=f"which image is that of the shelved server {name} is not clear: {ids}")


def fetch(cloud: LentLogin, image: ShelvedImage, to: BinaryIO, check: Callable[[], None]) -> None:
    """All of it into an empty file, with holes for zeros; to its end, and as Glance knows it.

    Raises what `check` raises, `OSError`, `CloudMissing`, `CloudRefused`, `CloudUnavailable`.
    """
    hashed = hashlib.new(image.digest[0]) if image.digest is not None else None
    got = 0
    with asking(_SERVICE):
        # what is packed is not unpacked: it would not have the size that was said
        plain = {"Accept-Encoding": "identity"}
        answer = cloud.session(_PATIENCE).get(f"{_at(cloud)}/{image.id}/file", headers=plain, stream=True)
    with closing(answer):
        for piece in _pieces(answer):
            check()
            got += len(piece)
            if got > image.size:
                break
            if hashed is not None:
                hashed.update(piece)
            if piece == _ZEROS[: len(piece)]:
                to.seek(len(piece), 1)
            else:
                to.write(piece)
    to.truncate(min(got, image.size))
    to.flush()
    if got != image.size:
        said = "more than that" if got > image.size else f"{got}"
        raise CloudUnavailable(service=_SERVICE, detail=f"image {image.id} has {image.size} bytes, and {said} came")
    if hashed is not None and image.digest is not None and hashed.hexdigest() != image.digest[1]:
        raise CloudUnavailable(service=_SERVICE, detail=f"image {image.id} came with another digest than Glance says")


def _pieces(answer: Any) -> Iterator[bytes]:
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise CloudUnavailable(service=_SERVICE, detail="it sends something packed that was not asked for")
    try:
        yield from answer.iter_content(_PIECE)
    except requests.RequestException as error:
        raise CloudUnavailable(service=_SERVICE, detail=f"it broke off ({type(error).__name__})") from None


def _is_of(image: Any, server_id: str, project: str) -> bool:
    told = (image.get("instance_uuid"), image.get("image_type"), image.get("owner"), image.get("status"))
    mine = told == (server_id, "snapshot", project, "active")
    return mine and str(image.get("name") or "").endswith(_SUFFIX)


def _known(image: Any) -> ShelvedImage:
    form = str(image.get("disk_format"))
    if form not in FORMATS or image.get("container_format") != "bare":
        raise CloudRefused(service=_SERVICE, detail=f"image {image['id']} is {form}, neither raw nor qcow2")
    virtual, algorithm, digest = image.get("virtual_size"), image.get("os_hash_algo"), image.get("os_hash_value")
    known = algorithm in hashlib.algorithms_guaranteed and not str(algorithm).startswith("shake") and digest
    return ShelvedImage(
        id=str(image["id"]),
        format=form,
        size=int(image["size"]),
        virtual_size=int(virtual) if virtual else None,
        digest=(str(algorithm), str(digest)) if known else None,
    )


def _at(cloud: LentLogin) -> str:
    return f"{cloud.endpoint(_SERVICE)}/v2/images"
