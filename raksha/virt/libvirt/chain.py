"""The chain of images below a disk, from the active layer down to the bottom, each with its format stated.

For a running VM libvirt knows the chain. For one that is shut off the headers of its layers do; what the definition
says beside is compared with them. A header is read only where the definition, or the layer above, states qcow2.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from raksha.journal import FileId
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.layer_header import LayerHeader, NotQcow2, read_header

#: libvirt itself takes no more
MAX_DEPTH = 200


class ChainBroken(ValueError):
    """The chain cannot be followed; the text says where and why."""


def same_file(one: str, other: str) -> bool:
    """Whether two spellings name one file. A file that is not there equals only its own spelling."""
    if one == other:
        return True
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def file_id(path: str) -> FileId:
    """Raises `OSError`."""
    status = Path(path).stat()
    return FileId(path, status.st_dev, status.st_ino)


def modified(path: str) -> int | None:
    """Time of modification in ns; None for a block device, whose node says nothing about its content."""
    status = Path(path).stat()
    return status.st_mtime_ns if stat.S_ISREG(status.st_mode) else None


def header(layer: Layer) -> LayerHeader | None:
    """The header of a qcow2 layer, None for a raw one. Raises `ChainBroken`, also where the file is not there."""
    try:
        if layer.format == "raw":
            Path(layer.path).stat()
            return None
        return read_header(layer.path)
    except OSError as error:
        raise ChainBroken(f"{layer.path} cannot be read: {error.strerror}") from error
    except NotQcow2 as error:
        raise ChainBroken(f"{layer.path} is not the qcow2 image that the definition calls it") from error


def size_of(layer: Layer) -> int:
    """Bytes that the guest sees of an image. Raises `ChainBroken`."""
    head = header(layer)
    if head is not None:
        return head.size
    try:
        with Path(layer.path).open("rb") as file:
            return file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ChainBroken(f"{layer.path} cannot be read: {error.strerror}") from error


def backing_of(layer: Layer) -> Layer | None:
    """The layer below, as the header names it. Raises `ChainBroken`."""
    head = header(layer)
    if head is None or head.backing is None:
        return None
    if not head.backing_format:
        raise ChainBroken(f"{layer.path} names a backing file without its format")
    name = head.backing.removeprefix("file:")
    if ":" in name.split("/", 1)[0]:
        raise ChainBroken(f"{layer.path} has a backing file that is none: {head.backing}")
    path = str(Path(layer.path).parent / name)
    kind = "block" if _is_block(path) else "file"
    return Layer(path, kind, "raw" if head.backing_format == "host_device" else head.backing_format)


def _is_block(path: str) -> bool:
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError as error:
        raise ChainBroken(f"{path} cannot be found: {error.strerror}") from error


def follow(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The whole chain of a disk of a VM that is shut off, from what its definition says. Raises `ChainBroken`."""
    if layers[0].kind == "network" and len(layers) == 1:
        return layers  # it has no header that could be read here
    chain = [layers[0]]
    while (below := backing_of(chain[-1])) is not None:
        stated = layers[len(chain)] if len(chain) < len(layers) else None
        if stated is not None and (not same_file(stated.path, below.path) or stated.format != below.format):
            raise ChainBroken(f"the definition names {stated.path} below {chain[-1].path}, its header {below.path}")
        chain.append(stated or below)
        if len(chain) > MAX_DEPTH:
            raise ChainBroken(f"{layers[0].path} has more than {MAX_DEPTH} layers, or a loop")
    if len(chain) < len(layers):
        raise ChainBroken(f"the definition names {layers[len(chain)].path}, but no header does")
    return tuple(chain)


def relative_name(overlay: str, backing: str) -> str | None:
    """How a header in `overlay` can name `backing` so that both may be moved together; None: it cannot."""
    if os.path.dirname(overlay) != os.path.dirname(backing):  # noqa: PTH120 -- text, not files, is compared
        return None
    name = Path(backing).name
    # QEMU takes what stands before a colon for a protocol.
    return None if ":" in name else name
