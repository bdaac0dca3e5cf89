"""Images of Glance that a restore makes: uploaded as a stream, with an id that was chosen before, and its mark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from raksha.errors import CloudMissing, CloudUnavailable, RakshaError
from raksha.openstack.lent import MARK, LentLogin, asking

_SERVICE = "image"
#: seconds without a sign of life during an upload: Glance writes it to its own store meanwhile
_UPLOAD = 3600.0
_POLL = 1.0
#: seconds for an image to become active after its last byte
_READY = 600.0
#: bytes handed over at once
_PIECE = 256 * 1024


class Images:
    """Of one project."""

    def __init__(self, cloud: LentLogin) -> None:
        self._cloud = cloud

    def create(self, image_id: str, name: str, properties: Mapping[str, str]) -> None:
        """An empty one, of format qcow2, which the project alone sees. Raises `CloudRefused`, `CloudUnavailable`."""
        body = {**properties, "id": image_id, "name": name, "visibility": "private",
                "disk_format": "qcow2", "container_format": "bare"}  # fmt: skip
        with asking(_SERVICE):
            self._cloud.session().post(self._at(), json=body)

    def upload(self, image_id: str, size: int, content: Iterator[bytes], check: Callable[[], None]) -> None:
        """All of it; then it is active.

        Raises what the content and `check` raise, `CloudRefused`, `CloudUnavailable`.
        """
        body = _Body(size, content, check)
        try:
            with asking(_SERVICE):
                headers = {"Content-Type": "application/octet-stream"}
                self._cloud.session(_UPLOAD).put(f"{self._at(image_id)}/file", data=body, headers=headers)
        except RakshaError:
            if body.failed is not None:  # what broke the connection off
                raise body.failed from None
            raise
        self._wait(image_id, check)

    def _wait(self, image_id: str, check: Callable[[], None]) -> None:
        deadline = time.monotonic() + _READY
        while True:
            with asking(_SERVICE):
                status = self._cloud.session().get(self._at(image_id)).json()["status"]
            if status == "active":
                return
            if status in ("killed", "deleted") or time.monotonic() > deadline:
                raise CloudUnavailable(service=_SERVICE, detail=f"image {image_id} is {status} after its upload")
            check()
            time.sleep(_POLL)

    def delete(self, image_id: str) -> None:
        """One that is not there is as good. Raises `CloudRefused`, `CloudUnavailable`."""
        with suppress(CloudMissing), asking(_SERVICE):
            self._cloud.session().delete(self._at(image_id))

    def of_restore(self, restore_id: str) -> list[str]:
        """Ids of those that it has made and that are still there. Raises `CloudRefused`, `CloudUnavailable`."""
        with asking(_SERVICE):
            found = self._cloud.session().get(self._at(), params={MARK: restore_id, "limit": 100}).json()["images"]
            return [str(each["id"]) for each in found if each.get(MARK) == restore_id]

    def _at(self, image_id: str | None = None) -> str:
        base = f"{self._cloud.endpoint(_SERVICE)}/v2/images"
        return base if image_id is None else f"{base}/{image_id}"


class _Body:
    """As a file of a known size: Glance's servers do not all take chunks."""

    def __init__(self, size: int, content: Iterator[bytes], check: Callable[[], None]) -> None:
        self._size = size
        self._content = content
        self._check = check
        self._rest = memoryview(b"")
        self.failed: RakshaError | None = None

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read():
            yield piece

    def read(self, size: int = _PIECE) -> bytes:
        try:
            while not self._rest:
                self._check()
                self._rest = memoryview(next(self._content))
        except StopIteration:
            return b""
        except RakshaError as error:
            self.failed = error
            raise
        piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return piece
