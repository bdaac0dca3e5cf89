"""An image that stays where it is as the target of a restore: a volume in a file, on a device or in Ceph.

QEMU writes to it. What the disk does not hold is made to read as zeroes, to the very end of the image, but only where
it does not do so already: a new, thin volume takes no more room than the disk has data.

Over an image that held something nothing brings the old content back: after an error it is `spoiled`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from raksha.errors import TargetUnusable
from raksha.restore.context import Context
from raksha.restore.plan import zero_runs
from raksha.restore.source import Pages
from raksha.restore.targets import cut
from raksha.types import Geometry
from raksha.virt.libvirt.nbd_writer import WritableImage

#: bytes zeroed between two looks at whether to end
_STEP = 256 * 1024 * 1024


class Image:
    """Fulfils `Target`. The image may be larger than the disk, not smaller."""

    overhead: int | None = None

    def __init__(self, name: str, node: Mapping[str, Any], connections: int, *, fresh: bool) -> None:
        """`name`: for people. `node`: of QEMU's block layer. `fresh`: nobody misses what it holds now."""
        self.path = Path(name)
        self.spoiled = False
        self._node = node
        self._connections = connections
        self._fresh = fresh
        self._geometry = Geometry(0)
        self._image: WritableImage | None = None

    def claim(self) -> None:
        self._image = WritableImage(str(self.path), self._node, self._connections)

    def prepare(self, pages: Pages, context: Context) -> None:
        assert self._image is not None
        self._geometry = pages.geometry
        size, cluster = self._image.size, self._geometry.cluster_size
        if size < self._geometry.size:
            detail = f"it has {size} bytes, the disk has {self._geometry.size}"
            raise TargetUnusable(target=self.path, detail=detail)
        runs = ((first * cluster, count * cluster) for first, count in zero_runs(pages))
        # what follows the last cluster of the disk, whose padding is not written
        end = self._geometry.clusters * cluster
        for start, length in chain(runs, [(end, size - end)]):
            stop = min(start + length, size)
            for at in range(start, stop, _STEP):
                context.check()
                self._touch()
                self._image.make_zero(at, min(_STEP, stop - at))

    def write(self, cluster: int, data: Sequence[bytes | memoryview]) -> None:
        assert self._image is not None
        self._touch()
        size = self._geometry.cluster_size
        self._image.write(b"".join(cut(data, cluster, size, self._image.size)), cluster * size)

    def _touch(self) -> None:
        self.spoiled = not self._fresh

    def finish(self) -> None:
        assert self._image is not None
        self._image.flush()
        self.spoiled = False
        self.discard()

    def settle(self) -> None:
        """It has had its name all along."""

    def discard(self) -> None:
        """Let the image go, as it is."""
        if self._image is not None:
            self._image.close()
            self._image = None
