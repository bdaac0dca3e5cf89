"""Volumes of Cinder that a restore makes from images. Each bears its mark, by which it is found again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from raksha.errors import CloudMissing, CloudRefused, CloudUnavailable
from raksha.openstack.lent import MARK, LentLogin, asking

_SERVICE = "block-storage"
_POLL = 1.0
#: seconds for a volume to be filled from its image, and to go
_FILL, _GO = 7200.0, 300.0


class Volumes:
    """Of one project."""

    def __init__(self, cloud: LentLogin) -> None:
        self._cloud = cloud

    def create(
        self,
        *,
        name: str,
        size: int,
        image_id: str,
        volume_type: str | None,
        availability_zone: str | None,
        metadata: Mapping[str, str],
    ) -> str:
        """The id of a volume of `size` GiB that is being filled. Raises `CloudRefused`, `CloudUnavailable`."""
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

    def wait_until_filled(self, volume_id: str, check: Callable[[], None]) -> None:
        """Raises what `check` raises, `CloudRefused`, `CloudUnavailable`."""
        deadline = time.monotonic() + _FILL
        while (status := self._status(volume_id)) != "available":
            if status is None or status.startswith("error") or time.monotonic() > deadline:
                raise CloudRefused(service=_SERVICE, detail=f"volume {volume_id} is {status}, not filled")
            check()
            time.sleep(_POLL)

    def set_bootable(self, volume_id: str, properties: Mapping[str, str]) -> None:
        """Raises `CloudRefused`, `CloudUnavailable`."""
        with asking(_SERVICE):
            manager = self._cloud.volumes().volumes
            manager.set_bootable(volume_id, True)
            if properties:
                manager.set_image_metadata(volume_id, dict(properties))

    def of_restore(self, restore_id: str) -> list[str]:
        """Ids of those that it has made and that are still there. Raises `CloudRefused`, `CloudUnavailable`."""
        with asking(_SERVICE):
            # not by cinderclient's own list: that writes names and ids into a file below the home, for completion
            wanted = urlencode({"metadata": str({MARK: restore_id})})
            found = self._cloud.volumes().client.get(f"/volumes/detail?{wanted}")[1]["volumes"]
            # a filter that an operator has not allowed is none
            return [str(each["id"]) for each in found if (each.get("metadata") or {}).get(MARK) == restore_id]

    def delete(self, volume_id: str) -> None:
        """Until it is gone; one that is not there is as good. Raises `CloudRefused`, `CloudUnavailable`."""
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
