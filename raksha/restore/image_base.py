"""An image of any format QEMU knows as the base of a thin restore, read through `qemu-nbd`. Needs libnbd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from raksha.errors import TargetUnusable
from raksha.types import Extent
from raksha.virt.libvirt.chain import ChainBroken, follow
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.extents import extents
from raksha.virt.libvirt.nbd import Reader, Server


class ImageBase:
    """Fulfils `Base`; a context manager. The image's own backing chain is part of it."""

    def __init__(self, path: Path, image_format: str, connections: int = 16) -> None:
        """Raises `TargetUnusable` for an image whose chain cannot be followed, `CaptureFailed`."""
        self.path = path
        self.format = image_format
        try:
            chain = follow((Layer(str(path.absolute()), "block" if path.is_block_device() else "file", image_format),))
        except ChainBroken as error:
            raise TargetUnusable(target=path, detail=str(error)) from error
        self._server = Server("(base image)", str(path), chain, share=False, connections=connections)
        self.size = self._server.size

    def __enter__(self) -> ImageBase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def open(self) -> Reader:
        return Reader(self._server)

    def extents(self) -> Iterator[Extent]:
        return extents(self._server, None)
