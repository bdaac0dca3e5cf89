"""Volumes of Cinder that a restore makes, empty or from images, and those of the project that it writes over.

Each new one bears the restore's mark, by which it is found again. One of the project's own never does: what bears it is
removed when the restore is done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from msgspec import Struct

from raksha.errors import CloudMissing, CloudRefused, CloudUnavailable
from raksha.openstack.attach import attachments_of, detach
from raksha.openstack.lent import MARK, LentLogin, asking

_SERVICE = "block-storage"
_POLL = 1.0
#: seconds for a volume to be filled from its image, and to go
_FILL, _GO = 7200.0, 300.0


class Volume(Struct, frozen=True, kw_only=True):
    """As Cinder shows it now."""

    id: str
    #: available, in-use, …
    status: str
    #: GiB
    size: int
    multiattach: bool
    metadata: Mapping[str, str]


class Volumes:
    """Of one project."""

    def __init__(self, cloud: LentLogin) -> None:
        self._cloud = cloud

    def create(
        self,
        *,
        name: str,
        size: int,
        image_id: str | None,
        volume_type: str | None,
        availability_zone: str | None,
        metadata: Mapping[str, str],
    ) -> str:
        """The id of a volume of `size` GiB that is being made, and filled if there is an image.

        Raises `CloudRefused`, `CloudUnavailable`.
        """
        with asking(_SERVICE):
            made = self._cloud.volumes().volumes.create(
                size,
                name=name,
                imageRef=image_id,
                volume_type=volume_type,
                availability_zone=availability_zone,
                metadata=dict(metadata),
            )
            return str(made.id)

    def wait_until_available(self, volume_id: str, check: Callable[[], None]) -> None:
        """Raises what `check` raises, `CloudRefused`, `CloudUnavailable`."""
        deadline = time.monotonic() + _FILL
        while (status := self._status(volume_id)) != "available":
            if status is None or status.startswith("error") or time.monotonic() > deadline:
                raise CloudRefused(service=_SERVICE, detail=f"volume {volume_id} is {status}, not available")
            check()
            time.sleep(_POLL)

    def set_bootable(self, volume_id: str, properties: Mapping[str, str]) -> None:
        """Raises `CloudRefused`, `CloudUnavailable`."""
        with asking(_SERVICE):
            manager = self._cloud.volumes().volumes
            manager.set_bootable(volume_id, True)
            if properties:
                manager.set_image_metadata(volume_id, dict(properties))

    def get(self, volume_id: str) -> Volume:
        """Raises `CloudMissing`, `CloudRefused`, `CloudUnavailable`."""
        with asking(_SERVICE):
            shown: Any = self._cloud.volumes().volumes.get(volume_id)
            return Volume(
                id=str(shown.id),
                status=str(shown.status),
                size=int(shown.size),
                multiattach=bool(shown.multiattach),
                metadata=dict(shown.metadata),
            )

    def note(self, volume_id: str, key: str, value: str | None) -> None:
        """In its metadata; None: no more. Raises `CloudMissing`, `CloudRefused`, `CloudUnavailable`."""
        with asking(_SERVICE):
            manager = self._cloud.volumes().volumes
            if value is not None:
                manager.set_metadata(volume_id, {key: value})
            elif key in manager.get(volume_id).metadata:
                manager.delete_metadata(volume_id, [key])

    def let_go(self, volume_id: str) -> bool:
        """Delete its attachments to hosts; those to servers stay. Whether there was none of these.

        Raises `CloudRefused`, `CloudUnavailable`.
        """
        found = []
        with suppress(CloudMissing):
            found = attachments_of(self._cloud, volume_id)
        for attachment in found:
            if attachment.server is None:
                detach(self._cloud, attachment.id)
        return all(attachment.server is None for attachment in found)

    def of_restore(self, restore_id: str) -> list[str]:
        """Ids of those that it has made and that are still there. Raises `CloudRefused`, `CloudUnavailable`."""
        with asking(_SERVICE):
            # not by cinderclient's own list: that writes names and ids into a file below the home, for completion
            wanted = urlencode({"metadata": str({MARK: restore_id})})
            found = self._cloud.volumes().client.get(f"/volumes/detail?{wanted}")[1]["volumes"]
            # a filter that an operator has not allowed is none
            return [str(each["id"]) for each in found if (each.get("metadata") or {}).get(MARK) == restore_id]

    def delete(self, volume_id: str) -> None:
        """Until it is gone; one that is not there is as good. Raises `CloudRefused`, `CloudUnavailable`.

        What writes to it is not waited for: it has lost.
        """
        self.let_go(volume_id)
        with suppress(CloudMissing), asking(_SERVICE):
            self._cloud.volumes().volumes.delete(volume_id)
        deadline = time.monotonic() + _GO
        while (status := self._status(volume_id)) is not None:
            if status == "error_deleting" or time.monotonic() > deadline:
                raise CloudUnavailable(service=_SERVICE, detail=f"volume {volume_id} does not go: {status}")
            time.sleep(_POLL)

    def _status(self, volume_id: str) -> str | None:
        try:
            with asking(_SERVICE):
                found: Any = self._cloud.volumes().volumes.get(volume_id)
                return str(found.status)
        except CloudMissing:
            return None
